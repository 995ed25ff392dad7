"""Why a control failed: each part of it that a finished text lacks is watched while the text is drawn once more.

A text is the same whenever its seed is, so nothing need be kept while texts are drawn first, and those that obey cost
nothing. A part (a tag, a phrase, a constituent) is a target of its own: the oracle says at which steps the likeliest
words had it, and the gradients on x_t which other control moved x_t the other way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any

import torch
from torch import Tensor

from ctrlgen.controls.encoded import encode
from ctrlgen.controls.language import Control, check
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.denoising import drafts
from ctrlgen.generation.guidance import Term, active
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.judging import words_of
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import ControlResult, Explanation, Sample
from ctrlgen.generation.workers import Workers
from ctrlgen.settings import Guidance, Settings

LEAST_OPPOSED = 0.1  # mean cosine; controls that have nothing to do with each other stay below


@dataclass(frozen=True, eq=False, kw_only=True)
class FailedPart(Job):
    """A part of one control that a finished text lacks, as the job that draws the text again."""

    first: Job  # that drew it
    position: int  # of the control among the job's
    target: Any  # the part
    detail: str  # what the oracle says

    @property
    def batch_key(self) -> tuple[Any, ...]:
        return (*super().batch_key, self.position)


def explain(
    reader: Reader,
    workers: Workers,
    samples: Mapping[Job, Sample],
    texts: Mapping[Job, list[int]],
    settings: Settings,
) -> dict[Job, Sample]:
    """The samples with an explanation of each part of a control that failed. `texts` are their word ids."""
    failed = [part for job, sample in samples.items() for part in failed_parts(job, sample)]
    ids = {part: texts[part.first] for part in failed}
    explanations = workers.map(partial(explain_batch, reader, ids, settings), failed)
    by_control: dict[tuple[Job, int], list[Explanation]] = defaultdict(list)
    for part in failed:
        by_control[part.first, part.position].append(explanations[part])

    def explained(job: Job, position: int, result: ControlResult) -> ControlResult:
        return replace(result, explanation=tuple(by_control[job, position]))

    return {
        job: replace(sample, controls=tuple(explained(job, i, result) for i, result in enumerate(sample.controls)))
        for job, sample in samples.items()
    }


def failed_parts(job: Job, sample: Sample) -> list[FailedPart]:
    """The parts of each failed control that its oracle misses."""
    return [
        FailedPart(**vars(job), first=job, position=position, target=target, detail=detail)
        for position, result in enumerate(sample.controls)
        if result.verdict.success is False
        for target, detail in missing_parts(result, sample.tokens)
    ]


def missing_parts(result: ControlResult, words: Sequence[str]) -> list[tuple[Any, str]]:
    """Targets with the oracle's words; the whole control where it has no parts or none of them alone is missing."""
    classifier, target = result.control.classifier, result.control.target
    parts = classifier.parts_of(target)
    missing = []
    if len(parts) > 1 and not result.control.complement:
        verdicts = classifier.check([words] * len(parts), parts)
        missing = [(p, v.detail or "") for p, v in zip(parts, verdicts, strict=True) if v.success is False]
    return missing or [(target, result.verdict.detail or "")]


@torch.no_grad()
def explain_batch(
    reader: Reader,
    texts: Mapping[FailedPart, list[int]],
    settings: Settings,
    failed: Sequence[FailedPart],
    stopped: Event,
) -> list[Explanation]:
    """Draw the texts once more and watch. The parts are of controls at the same position."""
    batch = Batch(reader, failed)
    position = failed[0].position
    others = list(batch.terms)
    targets = [part.target for part in failed]
    encoded = encode(others[position].classifier, targets, batch.text_sizes, batch.model.device)
    term = replace(others.pop(position), encoded=encoded, targets=tuple(targets))
    clean = batch.reader.clean(batch.fill(texts), batch.lengths)
    explanations = [
        Explanation(part.detail, p, negated=part.controls[position].statement.negated)
        for part, p in zip(failed, term.log_prob(clean).exp().tolist(), strict=True)
    ]
    if term.classifier.structural:  # decided before the first step
        return explanations
    opposition = Opposition(term, others, settings.guidance)
    steps = []
    for ids in drafts(batch, settings, opposition if others else None):
        if stopped.is_set():
            return explanations
        steps.append(batch.cut(ids))
    for row, part in enumerate(failed):
        said = [rows[row] for rows in steps]
        if said[-1] != texts[part]:  # another text: some accelerators do not repeat themselves
            continue
        control = replace(part.controls[position], target=part.target)
        held = last_held(control, [words_of(batch.reader, part, ids) for ids in said])
        other = opposition.strongest(row, held or 1)
        names = [control.text for control in part.controls if control is not part.controls[position]]
        pulled_by = names[other] if other is not None else None
        explanations[row] = replace(explanations[row], steps=len(steps), last_held=held, pulled_by=pulled_by)
    return explanations


def last_held(control: Control, texts: Sequence[Sequence[str]]) -> int | None:
    """The last step, from 1, whose likeliest words obey a control, by its oracle; None where no step's do."""
    verdicts = check([control] * len(texts), texts)
    return max((step for step, verdict in enumerate(verdicts, start=1) if verdict.success), default=None)


class Opposition:
    """Watches a batch: how far the gradients of other controls point against that of one."""

    def __init__(self, term: Term, others: Sequence[Term], guidance: Guidance):
        self.term, self.others, self.guidance = term, others, guidance
        self.cosines: list[Tensor] = []  # (B, others) a step; 0 of those that do not act

    def __call__(self, denoise: Callable[[Tensor], Denoised], x_t: Tensor, progress: float) -> None:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_(True)
            denoised = denoise(x_t)
            gradient = row_gradients(self.term.log_prob(denoised), x_t)
            pulls = [
                row_gradients(other.log_prob(denoised), x_t)
                if active([other], self.guidance, progress)
                else torch.zeros_like(gradient)
                for other in self.others
            ]
        self.cosines.append(torch.stack([torch.cosine_similarity(gradient, pull, -1) for pull in pulls], -1))

    def strongest(self, row: int, since: int) -> int | None:
        """Which of the others opposed a row most, on average from step `since`; None where none did."""
        if not self.cosines:
            return None
        mean = torch.stack(self.cosines[since - 1 :])[:, row].mean(0)  # (others,)
        return int(mean.argmin()) if mean.min() < -LEAST_OPPOSED else None


def row_gradients(log_p: Tensor, x_t: Tensor) -> Tensor:
    """(B,) -> (B, n * d)"""
    (gradient,) = torch.autograd.grad(log_p.sum(), x_t, retain_graph=True)
    return gradient.flatten(1)
