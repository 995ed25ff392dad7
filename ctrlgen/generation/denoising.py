"""From noise to texts: one batch is denoised step by step, its restart and its corrections included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.process import q_sample
from ctrlgen.diffusion.rounding import clamp
from ctrlgen.diffusion.samplers import Prediction, Refine, make_sampler
from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.choosing import better_draft
from ctrlgen.generation.correction import correct
from ctrlgen.generation.guarantee import choose_texts, free, possible
from ctrlgen.generation.guidance import (
    PUBLISHED_UNGUIDED,
    Denoise,
    Term,
    active,
    condition_words,
    refine,
    steer,
    within,
)
from ctrlgen.generation.jobs import J
from ctrlgen.generation.kept import KeptWords
from ctrlgen.generation.particles import Particles
from ctrlgen.settings import Settings

RESTART_SHARE = 0.4  # of the steps

Observe = Callable[[Callable[[Tensor], Denoised], Tensor, float], None]


class Predictor:
    """The denoiser as a sampler sees it: self-conditioned, steered by the controls, at a temperature."""

    def __init__(self, batch: Batch[J], settings: Settings, observe: Observe | None = None):
        self.reader, self.batch, self.settings, self.observe = batch.reader, batch, settings, observe
        self.model, self.guidance, self.noise = batch.model, settings.guidance, batch.noise()
        self.temperature = self.model.temperature(settings)
        reader = self.reader
        self.drafts = noise_levels(self.model, settings)
        self.log_snrs = torch.cat(self.drafts)
        self.denoiser: Denoise = reader.denoiser
        if batch.kept is not None and settings.infilling == "replaced":
            self.denoiser = batch.kept.replaced(self.denoiser, reader.embeddings, self.log_snrs[0])
        elif batch.kept is not None:
            self.denoiser = batch.kept.conditioned(self.denoiser, reader.embeddings)
        self.forbidden = reader.forbidden  # (V,)
        if self.model.fixed_length and any(job.kept for job in batch.jobs):  # where the text ends is given
            in_text = torch.tensor([bool(job.kept) for job in batch.jobs], device=self.model.device)
            self.forbidden = torch.where(in_text[:, None, None], reader.forbidden_in_text, reader.forbidden)
        self.best: Prediction | None = None  # the text so far, from which a restart goes on
        self.latest: Prediction | None = None
        self.order: Tensor | None = None  # (B,), the rows that rows go on from, once particles are drawn anew

    def progress(self, log_snr: Tensor) -> float:
        """From 0 at the noisiest step to 1 at the last."""
        return int((self.log_snrs < log_snr).sum()) / max(1, len(self.log_snrs) - 1)

    def acting(self, log_snr: Tensor) -> list[Term]:
        """The controls that act at this step."""
        return active(self.batch.terms, self.guidance, self.progress(log_snr))

    def backward(self, log_snr: Tensor) -> bool:
        """Whether this step's gradient is taken through the whole network, as it must be without a Gaussian skip."""
        return self.model.config.objective == "mse" or within(self.guidance.backward, self.progress(log_snr))

    def __call__(self, last: Tensor, x_t: Tensor, log_snr: Tensor, previous: Prediction | None) -> Prediction:
        """The steered estimate of x_0. `last` is the log-SNR of the step at which words become final."""
        model, terms = self.model, self.acting(log_snr)
        previous = previous or self.best
        if previous is not None and self.order is not None:
            previous, self.order = previous.rows(self.order), None
        self_condition = previous.x0_hat if previous is not None else None
        given = (log_snr if model.fixed_length else log_snr + self.settings.time_offset)[None]
        lengths = self.batch.lengths
        denoiser = partial(self.denoiser, log_snr=given, self_condition=self_condition, lengths=lengths)
        if self.observe is not None:
            self.observe(denoiser, x_t, self.progress(log_snr))
        denoised, shift = steer(
            denoiser, x_t, terms, self.guidance, self.reader.embeddings,
            predicts_x0=model.config.objective == "mse", through_network=self.backward(log_snr),
        )  # fmt: skip
        final = bool(log_snr == last)
        if final:
            refuse_not_finite(denoised.logits)
        jointly = final and self.chooses_jointly(terms)
        if self.guidance.method == "gradient" and final:
            denoised = condition_words(denoised, free(terms) if jointly else terms)
        logits = self.pinned(denoised.logits + self.forbidden)
        if jointly:
            logits = KeptWords(self.choose(terms, denoised.logits)).pin(logits)
        x0_hat = denoised.x0_hat
        if model.config.objective == "ce":
            x0_hat = (logits / self.temperature).softmax(-1) @ self.reader.embeddings
        x0_hat = x0_hat + shift
        if self.settings.clamp:
            x0_hat = clamp(x0_hat, self.reader.embeddings)
            if model.imported and (not terms or self.guidance.moves_draws):  # words of the last x_0, as in the original
                logits = self.pinned(model.denoiser.rounding_logits(x0_hat) + self.forbidden)
        self.latest = Prediction(x_t, log_snr, x0_hat, logits)
        return self.latest

    def pinned(self, logits: Tensor) -> Tensor:
        return logits if self.batch.kept is None else self.batch.kept.pin(logits)

    def chooses_jointly(self, terms: Sequence[Term]) -> bool:
        """Whether the last call chooses the whole text at once: where automata decide, or words are drawn."""
        guaranteed = len(free(terms)) < len(terms)
        return (guaranteed or self.settings.last_temperature > 0) and not published(self.model, self.settings)

    def choose(self, terms: Sequence[Term], logits: Tensor) -> Tensor:
        """The texts (B, n) of the last call, of those that the controls' automata accept."""
        may_stand = possible(logits, self.reader.forbidden < 0, self.batch.kept)
        rngs = self.noise.generators
        return choose_texts(terms, may_stand, self.batch.sizes, self.settings.last_temperature, rngs)

    def resample(self, particles: Particles, x_s: Tensor, *_: Tensor) -> Tensor:
        """The draws of x_s that go on, chosen by the likeliest words of the step before."""
        assert self.latest is not None
        self.order = particles.order(self.latest.logits.argmax(-1))
        return x_s if self.order is None else x_s[self.order]

    def refine(self, x_s: Tensor, mean: Tensor, variance: Tensor, log_snr: Tensor) -> Tensor:
        """A draw of x_s moved by the paper's guidance."""
        terms, lengths = self.acting(log_snr), self.batch.lengths
        cleaner = int((self.log_snrs > log_snr).sum())  # levels
        if not terms or (self.guidance.method == "published" and cleaner + 1 < PUBLISHED_UNGUIDED):
            return x_s
        return refine(self.denoiser, x_s, mean, variance, log_snr[None], lengths, terms, self.guidance)


@torch.no_grad()
def drafts(
    batch: Batch[J],
    settings: Settings,
    observe: Observe | None = None,
    particles: Particles | None = None,
) -> Iterator[Tensor]:
    """Denoise one batch, yielding the likeliest word ids (B, n) after each step, the finished texts last.

    `observe` is given the denoiser of each step, x_t and the progress, from 0 to 1. `particles` are the rows' groups.
    """
    predictor = Predictor(batch, settings, observe)
    noise = predictor.noise
    moved: Refine | None = predictor.refine if settings.guidance.moves_draws and batch.terms else None
    if particles is not None:
        moved = partial(predictor.resample, particles)
    for levels in predictor.drafts:  # from noise, then from the text so far with noise added (Xu et al. 2023)
        best, last = predictor.best, levels[-1]
        x_t = noise() if best is None else q_sample(best.x0_hat, noise(), levels[0])
        predict = partial(predictor, last)
        for draft in make_sampler(settings.sampler, predict, x_t, levels, noise, settings.eta, moved):
            if draft.log_snr < last:
                yield draft.logits.argmax(-1)
        terms = predictor.acting(last)
        predictor.best = better_draft(batch.reader, best, draft, batch.lengths, terms)
        ids = predictor.best.logits.argmax(-1)
        if levels is not predictor.drafts[-1]:
            yield ids
    sweeps = 0 if published(batch.model, settings) else settings.corrections
    yield correct(batch.reader, ids, batch.changeable, batch.lengths, terms, sweeps)


def refuse_not_finite(logits: Tensor) -> None:
    """Raises CtrlgenError where logits (B, n, V) name no word. What goes wrong at any step is seen at the last."""
    if not logits.max(-1).values.isfinite().all():
        raise CtrlgenError(
            "the model computes numbers that are not finite: its weights, or those of a classifier, are damaged, "
            "or their training diverged"
        )


def published(model: DiffusionLM, settings: Settings) -> bool:
    """Whether sampling is Diffusion-LM's own, which knows neither restarts nor corrections."""
    return model.fixed_length or settings.guidance.moves_draws


def noise_levels(model: DiffusionLM, settings: Settings) -> list[Tensor]:
    """The log-SNR of each draft's steps, noisiest first: from noise to a text, then of the restart."""
    again = round(RESTART_SHARE * settings.steps)
    if settings.sampler != "ancestral" or published(model, settings) or settings.restart == 0:
        again = 0
    levels = [model.schedule.steps(settings.steps - again), model.schedule.steps(again, settings.restart)]
    return [part.to(model.device) for part in levels if len(part)]
