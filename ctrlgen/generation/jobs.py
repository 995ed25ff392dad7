"""A request's samples, candidate by candidate: the jobs that are drawn, and which of them may share a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.contradiction import accepted_lengths, common_automaton, common_lengths
from ctrlgen.controls.filling import Fills
from ctrlgen.controls.language import Control
from ctrlgen.controls.template import Template
from ctrlgen.diffusion.seeds import SEED_STRIDE, seeded
from ctrlgen.generation.request import Request

MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 128, 2048
MAX_STRETCH = 1.4  # longest over shortest sentence of a batch
FEW_LENGTHS = 10
REDRAFT = 1 << 30  # candidates between one draft's and the next one's: more than a sample ever has


@dataclass(frozen=True, eq=False)
class Job:
    """One candidate of one sample. The first attempt has candidates 0 to K - 1, the second K to 2 K - 1, and so on."""

    request: Request
    place: int  # of the request among those that are answered together
    index: int
    candidate: int
    seed: int
    length: int
    kept: tuple[str | None, ...] = ()  # a template's words, None where one is to be written; empty without a template
    attempt: int = 0

    @property
    def controls(self) -> tuple[Control, ...]:
        return self.request.controls

    @property
    def given(self) -> frozenset[int]:
        """Places of the words that a template gives."""
        if self.request.template is None:
            return frozenset()
        return frozenset(place for place, word in enumerate(self.kept) if word is not None)

    @property
    def noise_seed(self) -> int:
        return self.seed + self.candidate * SEED_STRIDE

    def redraft(self, number: int) -> Job:
        """The same text from other noise, which no candidate and no redraft of a lower number has."""
        return replace(self, candidate=self.candidate + number * REDRAFT)

    @property
    def sample(self) -> tuple[int, int]:
        """Identifies the sample that this is a candidate of; samples are answered in this order."""
        return self.place, self.index

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Jobs that share this may run as rows of one batch."""
        kinds = (
            (c.classifier.group, c.statement.weight, c.complement, c.judged, c.statement.window) for c in self.controls
        )
        return self.request.words, bool(self.request.before), *kinds


J = TypeVar("J", bound=Job)


class Draws:
    """All the jobs that requests may need: of the first attempt, and of later ones.

    The lengths that a request may have, and how its template may be filled, are worked out once.
    """

    def __init__(self, model: DiffusionLM, requests: Sequence[Request], candidates: int = 1):
        self.model, self.candidates = model, candidates
        self.requests = requests
        self.lengths = [allowed_lengths(model, request.controls, request.template) for request in requests]
        self.fills = [fills_of(request) for request in requests]

    def first(self) -> list[Job]:
        """Every candidate of every sample."""
        return [
            job
            for place, request in enumerate(self.requests)
            for index in range(request.n)
            for job in self.of_sample(place, index, attempt=0)
        ]

    def again(self, failed: Iterable[Job], attempt: int) -> list[Job]:
        """New candidates of the samples that these jobs have drawn, from the seeds that follow."""
        return [job for one in failed for job in self.of_sample(one.place, one.index, attempt)]

    def of_sample(self, place: int, index: int, attempt: int) -> Iterator[Job]:
        request, fills = self.requests[place], self.fills[place]
        seed, first = request.seed + index, attempt * self.candidates
        length = draw_length(self.model, self.lengths[place], seed + first * SEED_STRIDE, request.controls)
        for candidate in range(first, first + self.candidates):
            noise_seed = seed + candidate * SEED_STRIDE
            kept: tuple[str | None, ...] = ()
            if fills is not None and fills.count(length):
                kept = fills.draw(length, noise_seed)
            elif request.template is not None:
                kept = request.template.fill(length, noise_seed)
            places = self.model.config.max_length if self.model.fixed_length else length
            yield Job(request, place, index, candidate, seed, places, kept, attempt)


def allowed_lengths(model: DiffusionLM, controls: Sequence[Control], template: Template | None = None) -> list[int]:
    """The lengths that all controls and the template allow together. Raises UsageError where there is none."""
    lengths = common_lengths(controls, model.longest, template)
    return accepted_lengths(controls, lengths, template) or lengths


def fills_of(request: Request) -> Fills | None:
    """The ways to fill a request's template of which some text obeys the automata of its controls."""
    automaton = common_automaton(request.controls) if request.template is not None else None
    return Fills(request.template, automaton) if request.template is not None and automaton is not None else None


def draw_length(model: DiffusionLM, lengths: Sequence[int], seed: int, controls: Sequence[Control] = ()) -> int:
    """One of the lengths, as the controls prefer them, or else by how often training texts have them.

    A model of fixed length does not know how often; of templates it fills the shortest FEW_LENGTHS alike. Depends on
    the controls and the seed alone.
    """
    said = [c.classifier.length_prior(c.target, lengths) for c in controls if not c.complement]
    priors = [torch.tensor(prior) for prior in said if prior is not None]
    if priors:
        weights = torch.stack(priors).sum(0).softmax(0)
    else:
        weights = torch.tensor([float(model.lengths.get(n, 0)) for n in lengths])
        if model.fixed_length:
            weights = (torch.arange(len(lengths)) < FEW_LENGTHS).float()
    if weights.sum() == 0:
        return lengths[0]
    return lengths[int(torch.multinomial(weights, 1, generator=seeded(seed)))]


def make_batches(jobs: Sequence[J], workers: int = 1) -> list[list[J]]:
    """Jobs of the same kinds of control and about the same length together, enough batches for all workers."""
    share = sum(job.length for job in jobs) // (2 * workers)
    most = max(MIN_BATCH_TOKENS, min(MAX_BATCH_TOKENS, share))
    groups: dict[tuple[Any, ...], list[J]] = defaultdict(list)
    for job in jobs:
        groups[job.batch_key].append(job)
    batches: list[list[J]] = []
    for group in groups.values():
        batch: list[J] = []
        for job in sorted(group, key=lambda job: job.length):  # the last one of a batch is its longest
            fits = batch and job.length <= MAX_STRETCH * batch[0].length
            if not fits or (len(batch) + 1) * job.length > most:
                batch = []
                batches.append(batch)
            batch.append(job)
    return batches
