"""Choosing among texts: of two drafts of one sample, of its candidates. Never by an oracle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from ctrlgen.diffusion.samplers import Prediction
from ctrlgen.errors import UsageError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.guidance import MARGIN, Term
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.workers import Workers
from ctrlgen.settings import Settings

WORST = 2  # words by which slips are found: the mean over all hides them
LEAST_TYPICAL = -4.0  # the sum of their typicality, in nats, below which a text is doubted

Texts = Mapping[Job, list[int]]  # finished word ids


def better_draft(
    reader: Reader, earlier: Prediction | None, later: Prediction, lengths: Tensor | None, terms: Sequence[Term]
) -> Prediction:
    """Of two drafts, row by row, the later one unless the guides hold the controls likelier in the earlier.

    Terms (the controls that act now) may be none; then no guide chooses.
    """
    if earlier is None or not terms:
        return later
    before, after = (reader.joint(draft.logits.argmax(-1), lengths, terms) for draft in (earlier, later))
    return later.where(after > before - MARGIN, earlier)


def choose(reader: Reader, workers: Workers, texts: Texts, settings: Settings) -> dict[Job, list[int]]:
    """The best candidate of every sample, by the model's and the guides' scores or by MBR."""
    if settings.candidates == 1:
        return dict(texts)
    if settings.select == "mbr":
        scores = expected_bleu(reader, texts)
    else:

        def score(jobs: Sequence[Job], stopped: Event) -> list[float]:
            return candidate_scores(Batch(reader, jobs), texts)

        scores = workers.map(score, list(texts))
    best: dict[tuple[int, int], Job] = {}
    for job, value in scores.items():
        if job.sample not in best or value > scores[best[job.sample]]:
            best[job.sample] = job
    return {job: texts[job] for job in best.values()}


@torch.no_grad()
def candidate_scores(batch: Batch[Job], texts: Texts) -> list[float]:
    """A bound on log p(text) plus the weighted log p(controls | text), for each job of a batch."""
    ids, reader = batch.fill(texts), batch.reader
    return (reader.bound(ids, batch.lengths) + reader.joint(ids, batch.lengths, batch.terms)).tolist()


@dataclass(frozen=True)
class Reading:
    """What the model says of a finished text."""

    worst: float  # typicality of its WORST least typical words that the model chose, see `Reader.typicality`: nats
    controls: float  # weighted log p(controls | text)

    @property
    def doubted(self) -> bool:
        return self.worst < LEAST_TYPICAL

    @property
    def score(self) -> float:
        return self.worst + self.controls


def redraft(
    reader: Reader, workers: Workers, texts: Texts, draw: Callable[[Sequence[Job]], Texts], most: int
) -> dict[Job, list[int]]:
    """The texts, but better ones for those that the model doubts, if `draw` writes some in at most `most` attempts."""
    texts = dict(texts)
    read = readings(reader, workers, texts)
    for number in range(1, most + 1):
        anew = {job: job.redraft(number) for job in texts if read[job].doubted}
        if not anew:
            break
        drawn = draw(list(anew.values()))
        read |= readings(reader, workers, drawn)
        for job, new in anew.items():
            if read[new].score > read[job].score:
                del texts[job]
                texts[new] = drawn[new]
    return texts


def readings(reader: Reader, workers: Workers, texts: Texts) -> dict[Job, Reading]:
    """What the model says of each text."""
    return workers.map(lambda jobs, _: read_batch(Batch(reader, jobs), texts), list(texts))


@torch.no_grad()
def read_batch(batch: Batch[Job], texts: Texts) -> list[Reading]:
    """The same of the jobs of one batch."""
    ids, reader = batch.fill(texts), batch.reader
    chosen = batch.changeable & (ids < batch.model.config.vocab_size)  # a new word is there because it was asked for
    untypical = reader.typicality(ids, batch.lengths).clamp(max=0.0) * chosen
    worst = untypical.sort(1).values[:, :WORST].sum(1)
    controls = reader.joint(ids, batch.lengths, batch.terms)
    return [Reading(*row) for row in zip(worst.tolist(), controls.tolist(), strict=True)]


def expected_bleu(reader: Reader, texts: Texts) -> dict[Job, float]:
    """Mean BLEU of each candidate against the others: minimum Bayes risk (Li et al. 2022, section 5.3)."""
    try:
        from sacrebleu import BLEU
    except ImportError:
        raise UsageError("--select mbr needs sacrebleu: pip install sacrebleu") from None

    bleu = BLEU(effective_order=True, tokenize="none")
    by_sample: dict[tuple[int, int], list[Job]] = defaultdict(list)
    for job in texts:
        by_sample[job.sample].append(job)
    words = {job: " ".join(reader.of(job.request).model.tokenizer.decode(ids)) for job, ids in texts.items()}
    return {
        job: sum(bleu.sentence_score(words[job], [words[other]]).score for other in jobs if other is not job)
        for jobs in by_sample.values()
        for job in jobs
    }
