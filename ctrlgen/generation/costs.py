"""What finished texts cost, in nats a word, their worst word, and whether it is a slip. Costs guide nothing; they may
reject.

By the model's own language model where there is one, which takes a hundredth of the time of writing; else by the bound
on its likelihood, which takes about as long as writing and so has to be asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.choosing import Texts
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import CostlyWord, Rejection, Sample
from ctrlgen.generation.slips import worst_word
from ctrlgen.generation.small_lm import SmallLM
from ctrlgen.generation.workers import Workers
from ctrlgen.settings import Settings

log = logging.getLogger(__name__)
DOMAIN_LM, BOUND = "domain LM", "bound"  # by what texts are measured


class Costs:
    """Measures texts by the best model that there is."""

    def __init__(self, model: DiffusionLM):
        self.lm: SmallLM | None = None
        try:
            self.lm = SmallLM.of(model)
        except CtrlgenError as error:
            log.warning("%s; texts have no cost: train it again with `ctrlgen train-lm --force`", error)

    def measured(
        self,
        reader: Reader,
        workers: Workers,
        samples: Mapping[Job, Sample],
        texts: Texts,
        given: Mapping[Job, Collection[int]],
        settings: Settings,
    ) -> dict[Job, Sample]:
        """The samples with their costs. `given`: the places of words that the user wrote, which are no slips."""
        asked = settings.cost or settings.max_cost is not None
        if self.lm is not None:
            return {job: by_lm(self.lm, sample, given[job]) for job, sample in samples.items()}
        if not asked:
            return dict(samples)
        costs = workers.map(lambda jobs, _: bounds(reader, jobs, texts), list(samples))
        return {job: by_bound(reader, job, sample, costs[job], given[job]) for job, sample in samples.items()}

    def refuse(self, settings: Settings) -> None:
        """Raises UsageError where nothing says which texts to leave out."""
        if not settings.no_slips:
            return
        if self.lm is None:
            raise UsageError("no-slips needs a language model of the model's words: `ctrlgen train-lm` makes one")
        if self.lm.slips is None:
            raise UsageError("nothing says what a slip of this model is: `ctrlgen train-lm --only-slips` learns it")


def by_lm(lm: SmallLM, sample: Sample, given: Collection[int]) -> Sample:
    """The sample with what its words cost under the language model. The end counts as one."""
    if not sample.tokens:
        return sample
    (nats,) = lm.costs([sample.tokens])
    usual = lm.slips.usual if lm.slips is not None else None
    worst = worst_word(lm.tokenizer.ids(sample.tokens), nats[:-1], lm.tokenizer.unk_id, usual, given)
    slip = None if lm.slips is None else worst is not None and worst[1] > lm.slips.bound
    cost = sum(nats) / len(nats)
    return replace(sample, cost=cost, cost_by=DOMAIN_LM, costliest_word=costly(sample, worst, nats), slip=slip)


def bounds(reader: Reader, jobs: Sequence[Job], texts: Texts) -> list[list[float]]:
    """What each word adds to the bound on each text's -log p, and whatever stands behind the text as one more."""
    batch = Batch(reader, jobs)
    tokenizer = batch.model.tokenizer
    opening = len(tokenizer.opening)
    rows = batch.reader.word_bounds(batch.fill(texts), batch.lengths).tolist()
    ends = [opening + len(tokenizer.decode(texts[job])) for job in jobs]
    return [[*row[opening:end], sum(row[end:])] for row, end in zip(rows, ends, strict=True)]


def by_bound(reader: Reader, job: Job, sample: Sample, nats: Sequence[float], given: Collection[int]) -> Sample:
    """The sample with what its words add to the bound. The end counts as no word: no model writes it."""
    if not sample.tokens:
        return sample
    tokenizer = reader.of(job.request).model.tokenizer
    worst = worst_word(tokenizer.ids(sample.tokens), nats[:-1], tokenizer.unk_id, given=given)
    cost = sum(nats) / len(sample.tokens)
    return replace(sample, cost=cost, cost_by=BOUND, costliest_word=costly(sample, worst, nats))


def costly(sample: Sample, worst: tuple[int, float] | None, nats: Sequence[float]) -> CostlyWord | None:
    """A sample's worst word as it is told, with its cost."""
    return None if worst is None else CostlyWord(worst[0], sample.tokens[worst[0]], nats[worst[0]])


def with_rejections(samples: Mapping[Job, Sample], settings: Settings) -> dict[Job, Sample]:
    """The samples, of which those say why that cost too much, have a slip or equal an earlier one of their request."""
    if settings.max_cost is None and not settings.no_slips and not settings.distinct:
        return dict(samples)
    first: dict[tuple[int, str], int] = {}
    rejected: dict[Job, Sample] = {}
    for job in sorted(samples, key=lambda job: job.sample):
        sample, rejection = samples[job], None
        if settings.max_cost is not None and sample.cost is not None and sample.cost > settings.max_cost:
            why = f"costs {sample.cost:.2f} nats a word, more than {settings.max_cost:g}"
            rejection = Rejection("max_cost", why)
        elif settings.no_slips and sample.slip and sample.costliest_word is not None:
            rejection = Rejection("no_slips", f"{sample.costliest_word.word!r} is hardly ever written there")
        elif settings.distinct and first.setdefault((job.place, sample.text), job.index) != job.index:
            rejection = Rejection("distinct", f"equals sample {first[job.place, sample.text]}")
        rejected[job] = replace(sample, rejected=rejection)
    return rejected


def to_redraw(samples: Mapping[Job, Sample], attempt: int, settings: Settings) -> list[Job]:
    """The samples that this attempt draws again. Texts that equal others are, even where failures are not."""
    found: list[Job] = []
    for job, sample in samples.items():
        equal = sample.rejected is not None and sample.rejected.by == "distinct"
        if equal or (attempt <= settings.until_success and (sample.success is False or sample.rejected is not None)):
            found.append(job)
    return found
