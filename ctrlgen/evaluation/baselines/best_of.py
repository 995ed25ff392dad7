"""What all baselines share: they draw texts while the seconds last, and keep the best. No oracle is ever asked.

The best is chosen by what may choose: the diffusion model's own guides, log p(controls | text) of the finished text,
and the language model's cost where they see no difference.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from threading import Event

import torch
from torch import Tensor

from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.seeds import SEED_STRIDE
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.evaluation.systems import Draft
from ctrlgen.evaluation.targets import Words
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.guidance import joint_log_prob
from ctrlgen.generation.jobs import Job, allowed_lengths, make_batches
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import Request
from ctrlgen.generation.workers import Workers

ROUND = 256  # texts drawn at once
DIGITS = 1  # of a guide's log-probability; what differs by less is a tie

Rank = tuple[float, float]  # higher is better; the first number decides
Pair = tuple[int, int]  # a request and a text, by their numbers


@dataclass(frozen=True)
class Drawn:
    """A text drawn for a request."""

    request: int
    words: Words


class BestOf(ABC):
    """Draws for each request, keeps its best. Subclasses say how to draw and what is better."""

    name: str

    def __init__(self, generator: Generator, lm: LanguageModel):
        self.generator, self.lm = generator, lm
        self.longest = generator.model.longest
        self.notes: list[str] = []  # what this baseline cannot be asked, each said once

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        """The best texts drawn within `seconds`, but one draw a text at least; none for requests it cannot obey."""
        texts = [
            (number, index)
            for number, request in enumerate(requests)
            if self.obeys(request)
            for index in range(request.n)
        ]
        if not texts:
            return []
        ranks: dict[int, dict[Words, Rank]] = defaultdict(dict)
        for drawn in self.rounds(requests, texts, seconds or 0.0):
            for (request, text), rank in self.ranks(requests, drawn).items():
                ranks[request][drawn[text].words] = rank
        drafts = []
        for number in dict.fromkeys(number for number, _ in texts):
            of_request = ranks[number]
            best = sorted(of_request, key=of_request.__getitem__, reverse=True)
            drafts += [
                Draft(number, index, words) for index, words in enumerate(islice(cycle(best), requests[number].n))
            ]
        return drafts

    def rounds(self, requests: Sequence[Request], texts: Sequence[Pair], seconds: float) -> Iterator[list[Drawn]]:
        """Draws for each text, one at first, then as many more as are expected to end in time."""
        started = time.monotonic()
        done, draws = 0, 1
        while draws:
            begun = time.monotonic()
            numbers = [number for number, _ in texts for _ in range(draws)]
            seeds = [
                requests[number].seed + index + draw * SEED_STRIDE
                for number, index in texts
                for draw in range(done, done + draws)
            ]
            words = self.draw([requests[number] for number in numbers], seeds)
            yield [Drawn(number, tuple(of)) for number, of in zip(numbers, words, strict=True)]
            now = time.monotonic()
            done += draws
            affordable = int((seconds - (now - started)) / max(1e-9, now - begun) * draws)
            draws = max(0, min(affordable, max(1, ROUND // len(texts))))

    def obeys(self, request: Request) -> bool:
        """Whether this baseline can be asked; otherwise a note says why, once."""
        reason = "it fills no blanks" if request.template is not None else self.refuses(request)
        if reason is None:
            return True
        note = f"{self.name} leaves out what it was not asked fairly: {reason}"
        if note not in self.notes:
            self.notes.append(note)
            logging.getLogger(__name__).warning(note)
        return False

    def lengths(self, request: Request) -> list[int]:
        return allowed_lengths(self.generator.model, request.controls)

    def ends(self, requests: Sequence[Request]) -> PermittedEnds:
        """One row a request."""
        return PermittedEnds([self.lengths(request) for request in requests], self.longest, self.lm)

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Why this baseline has no way to obey a request, or None."""

    @abstractmethod
    def draw(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        """A text for each request."""

    @abstractmethod
    def ranks(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Mapping[Pair, Rank]:
        """How good a text is for a request, of those pairs that may be."""

    def guided_ranks(
        self, requests: Sequence[Request], drawn: Sequence[Drawn], pairs: Iterable[Pair]
    ) -> dict[Pair, Rank]:
        """By the guides, then by the language model."""
        costs = self.lm.costs([text.words for text in drawn])
        log_p = guide_log_probs(
            self.generator.reader, self.generator.workers, requests, [text.words for text in drawn], pairs
        )
        return {pair: (round(log_p[pair], DIGITS), -costs[pair[1]]) for pair in log_p}


class PermittedEnds:
    """An `Adjust`: a text may end only at a length that its controls allow, and ends at the longest of them."""

    def __init__(self, lengths: Sequence[Iterable[int]], longest: int, lm: LanguageModel):
        self.may_end = torch.zeros(len(lengths), longest + 2, dtype=torch.bool, device=lm.lm.device)
        for row, of_row in enumerate(lengths):
            self.may_end[row, list(of_row)] = True
        self.end_id = lm.tokenizer.end_id

    def __call__(self, words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """words (B, t), logits (B, V), rows (B,) -> (B, V)"""
        written = words.shape[1]
        may_end = self.may_end[rows]  # (B, longest + 2)
        forbidden = ~may_end[:, written + 1 :].any(1, keepdim=True).expand_as(logits).clone()
        forbidden[:, self.end_id] = ~may_end[:, written]
        return logits.masked_fill(forbidden, -torch.inf)


@torch.no_grad()
def guide_log_probs(
    reader: Reader, workers: Workers, requests: Sequence[Request], texts: Sequence[Words], pairs: Iterable[Pair]
) -> dict[Pair, float]:
    """The guides' weighted log p(controls | text) for each pair, from what the denoiser says of the text without noise.

    The denoiser reads each text once, on every core.
    """
    model = reader.model
    ids = [model.tokenizer.ids(words) for words in texts]
    if model.fixed_length:
        ids = model.rows([of[: model.longest] for of in ids])
    asking: dict[int, list[int]] = defaultdict(list)
    for request, text in pairs:
        asking[text].append(request)
    jobs = {Job(Request(), 0, text, 0, 0, len(ids[text])): ids[text] for text in asking}

    def score(read: Sequence[Job], stopped: Event) -> list[dict[Pair, float]]:
        batch = Batch(reader, read)
        clean = reader.clean(batch.fill(jobs), batch.lengths)
        row_of = {job.index: row for row, job in enumerate(read)}
        asked = [replace(job, request=requests[number], place=number) for job in read for number in asking[job.index]]
        found: dict[int, dict[Pair, float]] = {job.index: {} for job in read}
        for part in make_batches(asked):
            rows = torch.tensor([row_of[job.index] for job in part], device=model.device)
            scores = joint_log_prob(Batch(reader, part).terms, take_rows(clean, rows, part[-1].length))
            for job, value in zip(part, scores.tolist(), strict=True):
                found[job.index][job.sample] = value
        return [found[job.index] for job in read]

    scored = workers.map(score, list(jobs))
    return {pair: value for of_text in scored.values() for pair, value in of_text.items()}


def take_rows(denoised: Denoised, rows: Tensor, longest: int) -> Denoised:
    """Some rows of a batch, cut to the longest of them."""
    return replace(
        denoised,
        x_t=denoised.x_t[rows, :longest],
        log_snr=denoised.log_snr if len(denoised.log_snr) == 1 else denoised.log_snr[rows],
        logits=denoised.logits[rows, :longest],
        x0_hat=denoised.x0_hat[rows, :longest],
        hidden=tuple(h[rows, :longest] for h in denoised.hidden),
        row_lengths=None if denoised.row_lengths is None else denoised.row_lengths[rows],
    )
