"""The texts of a batch of jobs, each drawn alone or, where a scorer steers, as the best of several particles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ctrlgen.diffusion.seeds import seeded
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.denoising import drafts
from ctrlgen.generation.jobs import MAX_BATCH_TOKENS, Job
from ctrlgen.generation.judging import words_of
from ctrlgen.generation.particles import Particles
from ctrlgen.generation.reading import Reader
from ctrlgen.settings import Settings
from ctrlgen.text.joining import write

Rows = list[list[int]]  # word ids of texts


def draw(reader: Reader, jobs: Sequence[Job], settings: Settings) -> Iterator[tuple[int, Rows]]:
    """After each step, how many words were denoised and the likeliest words so far; the texts of all jobs last."""
    if settings.scorer is None:
        batch = Batch(reader, jobs)
        for ids in drafts(batch, settings):
            yield sum(batch.sizes), batch.cut(ids)
        return
    most = max(1, MAX_BATCH_TOKENS // (settings.particles * max(job.length for job in jobs)))
    finished: Rows = []
    for first in range(0, len(jobs), most):
        for words, rows in draw_particles(reader, jobs[first : first + most], settings):
            yield words, finished + rows
        finished += rows


def draw_particles(reader: Reader, jobs: Sequence[Job], settings: Settings) -> Iterator[tuple[int, Rows]]:
    """The same of texts that are each the best of several particles by the scorer."""
    assert settings.scorer is not None
    count = settings.particles
    drawn = [replace(job, candidate=job.candidate * count + k) for job in jobs for k in range(count)]
    batch = Batch(reader, drawn)

    def texts(ids: Tensor) -> list[str]:
        rows = zip(drawn, batch.cut(ids), strict=True)
        return [write(words_of(batch.reader, job, row)).text for job, row in rows]

    rngs = [seeded(job.noise_seed) for job in jobs]
    particles = Particles(settings.scorer, count, settings.steps, texts, rngs)
    for ids in drafts(batch, settings, particles=particles):
        yield sum(job.length for job in jobs), batch.cut(ids)[::count]
    best = particles.best(ids, batch.reader.joint(ids, batch.lengths, batch.terms))
    yield 0, [batch.cut(ids)[row] for row in best]
