"""Finished texts become samples: every oracle and every guide is asked about them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrlgen.controls.language import check
from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.choosing import Texts
from ctrlgen.generation.jobs import Job, make_batches
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import ControlResult, Sample
from ctrlgen.text.joining import write

LEAST_DOUBT = 1e-6  # a calibrated score is at least this far from 0 and 1


@torch.no_grad()
def judge(reader: Reader, texts: Texts) -> dict[Job, Sample]:
    """The sample of each text, with the verdict and the score of each of its controls."""
    tokens = {job: words_of(reader, job, ids) for job, ids in texts.items()}
    results: dict[Job, list[ControlResult]] = {job: [] for job in texts}
    for jobs in make_batches(list(texts)):
        if not jobs[0].controls:
            continue
        batch = Batch(reader, jobs)
        clean = batch.reader.clean(batch.fill(texts), batch.lengths)
        for position, term in enumerate(batch.terms):
            controls = [job.controls[position] for job in jobs]
            if not controls[0].judged:
                continue
            p = term.log_prob(clean).exp()
            if not p.isfinite().all():
                said = f"the classifier of {jobs[0].controls[position].statement.name} computes numbers that are"
                raise CtrlgenError(f"{said} not finite: its weights are damaged, or its training diverged")
            scores = calibrated(p, term.classifier.score_temperature).tolist()
            verdicts = check(controls, [tokens[job] for job in jobs])
            for job, *result in zip(jobs, controls, verdicts, scores, strict=True):
                results[job].append(ControlResult(*result))
    return {job: sample_of(job, tokens[job], results[job]) for job in texts}


def sample_of(job: Job, tokens: list[str], results: Sequence[ControlResult]) -> Sample:
    """A job's finished text, with what is given written as it was typed."""
    template = job.request.template
    text = write(tokens, template.typed(job.kept) if template is not None else ())
    return Sample(job.request, job.index, text.text, tokens, job.seed, tuple(results), job.attempt + 1, text.offsets)


def words_of(reader: Reader, job: Job, ids: Sequence[int]) -> list[str]:
    """The words of ids, but the user's own where they are given."""
    words = reader.of(job.request).model.tokenizer.decode(ids)
    return [kept or word for kept, word in zip(job.kept, words, strict=True)] if job.kept else words


def calibrated(p: Tensor, temperature: float) -> Tensor:
    """Probabilities with their log-odds divided by a temperature, as `ctrlgen eval --calibrate` fitted it."""
    return p if temperature == 1.0 else p.logit(eps=LEAST_DOUBT).div(temperature).sigmoid()
