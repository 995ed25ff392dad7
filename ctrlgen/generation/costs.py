"""What finished texts cost, in nats a word, and their costliest word. Costs guide nothing; they may reject.

By the model's own language model where there is one, which takes a hundredth of the time of writing; else by the bound
on its likelihood, which takes about as long as writing and so has to be asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.choosing import Texts
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import CostlyWord, Rejection, Sample
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
        self, reader: Reader, workers: Workers, samples: Mapping[Job, Sample], texts: Texts, settings: Settings
    ) -> dict[Job, Sample]:
        """The samples with their costs."""
        asked = settings.cost or settings.max_cost is not None
        if self.lm is not None:
            costs = dict(zip(samples, self.lm.costs([s.tokens for s in samples.values()]), strict=True))
        elif asked:
            costs = workers.map(lambda jobs, _: bounds(reader, jobs, texts), list(samples))
        else:
            return dict(samples)
        by = DOMAIN_LM if self.lm is not None else BOUND
        return {job: with_cost(reader, job, sample, costs[job], by) for job, sample in samples.items()}


def bounds(reader: Reader, jobs: Sequence[Job], texts: Texts) -> list[list[float]]:
    """What each word adds to the bound on each text's -log p, and whatever stands behind the text as one more."""
    own = reader.of(jobs[0].request)
    batch, opening = Batch(own.model, jobs), len(own.model.tokenizer.opening)
    rows = own.word_bounds(batch.fill(texts), batch.lengths).tolist()
    ends = [opening + len(own.model.tokenizer.decode(texts[job])) for job in jobs]
    return [[*row[opening:end], sum(row[end:])] for row, end in zip(rows, ends, strict=True)]


def with_cost(reader: Reader, job: Job, sample: Sample, nats: Sequence[float], by: str) -> Sample:
    """The sample with what its words cost, its end last. The end counts as a word where the model writes one."""
    words = sample.tokens
    count = len(words) + (by == DOMAIN_LM)
    if not words:
        return sample
    tokenizer = reader.of(job.request).model.tokenizer
    known = [place for place, word in enumerate(words) if word in tokenizer]
    place = max(known, key=lambda place: nats[place], default=None)
    worst = CostlyWord(place, words[place], nats[place]) if place is not None else None
    return replace(sample, cost=sum(nats) / count, cost_by=by, costliest_word=worst)


def with_rejections(samples: Mapping[Job, Sample], settings: Settings) -> dict[Job, Sample]:
    """The samples, of which those say why that cost too much or equal an earlier one of their request."""
    if settings.max_cost is None and not settings.distinct:
        return dict(samples)
    first: dict[tuple[int, str], int] = {}
    rejected: dict[Job, Sample] = {}
    for job in sorted(samples, key=lambda job: job.sample):
        sample, rejection = samples[job], None
        if settings.max_cost is not None and sample.cost is not None and sample.cost > settings.max_cost:
            why = f"costs {sample.cost:.2f} nats a word, more than {settings.max_cost:g}"
            rejection = Rejection("max_cost", why)
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
