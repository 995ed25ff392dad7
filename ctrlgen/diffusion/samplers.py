"""Samplers: each a generator that walks x_t down the noise levels and yields one prediction per step.

A sampler sees the model only through `predict(x_t, log_snr, previous) -> Prediction`, which holds
self-conditioning, temperature and guidance, and randomness only through `noise()`. The last prediction is the
answer; no noise is added after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ctrlgen.diffusion.process import posterior
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.diffusion.seeds import seeded
from ctrlgen.settings import SamplerName


@dataclass(frozen=True)
class Prediction:
    """The (steered) estimate of x_0 at one step, and the word logits it rests on."""

    x_t: Tensor  # (B, n, d)
    log_snr: Tensor  # ()
    x0_hat: Tensor  # (B, n, d)
    logits: Tensor  # (B, n, V)

    def rows(self, rows: Tensor) -> Prediction:
        """The prediction of these rows (M,)."""
        return Prediction(self.x_t[rows], self.log_snr, self.x0_hat[rows], self.logits[rows])

    def where(self, rows: Tensor, other: Prediction) -> Prediction:
        """This prediction in the rows where `rows` (B,) is True, the other one elsewhere."""
        mine = rows[:, None, None]
        x_t, x0_hat, logits = (
            torch.where(mine, a, b)
            for a, b in ((self.x_t, other.x_t), (self.x0_hat, other.x0_hat), (self.logits, other.logits))
        )
        return Prediction(x_t, self.log_snr, x0_hat, logits)


Predict = Callable[[Tensor, Tensor, "Prediction | None"], Prediction]
DrawNoise = Callable[[], Tensor]
Refine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class SeededNoise:
    """Standard normal noise in which row i depends on seed i and its length alone, whatever else is in the batch."""

    def __init__(self, seeds: Sequence[int], lengths: Sequence[int], dim: int, device: torch.device | str = "cpu"):
        self.generators = [seeded(seed) for seed in seeds]
        self.lengths, self.dim, self.device = lengths, dim, device

    def __call__(self) -> Tensor:
        """(B, n, d) with n the greatest length; zero beyond a row's end."""
        noise = torch.zeros(len(self.generators), max(self.lengths), self.dim)
        for row, length, generator in zip(noise, self.lengths, self.generators, strict=True):
            row[:length] = torch.randn(length, self.dim, generator=generator)
        return noise.to(self.device)


def ancestral(
    predict: Predict, x_t: Tensor, log_snrs: Tensor, noise: DrawNoise, refine: Refine | None = None
) -> Iterator[Prediction]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x_s is drawn from q(x_s | x_t, x0_hat).

    `refine(x_s, mean, variance, log_snr_s)` may move each draw, as Diffusion-LM's guidance does.
    """
    prediction = None
    for t, log_snr_t in enumerate(log_snrs):
        prediction = predict(x_t, log_snr_t, prediction)
        yield prediction
        if t + 1 < len(log_snrs):
            log_snr_s = log_snrs[t + 1]
            mean, variance = posterior(x_t, prediction.x0_hat, log_snr_s, log_snr_t)
            x_t = mean + variance.sqrt() * noise()
            if refine is not None:
                x_t = refine(x_t, mean, variance, log_snr_s)


def ddim(predict: Predict, x_t: Tensor, log_snrs: Tensor, noise: DrawNoise, eta: float = 0.0) -> Iterator[Prediction]:
    """DDIM (Song et al. 2021, eq. 12 and 16). eta = 0 is deterministic, eta = 1 is ancestral."""
    prediction = None
    for t, log_snr_t in enumerate(log_snrs):
        prediction = predict(x_t, log_snr_t, prediction)
        yield prediction
        if t + 1 < len(log_snrs):
            log_snr_s = log_snrs[t + 1]
            alpha_t, sigma_t = alpha_sigma(log_snr_t)
            alpha_s, sigma_s = alpha_sigma(log_snr_s)
            eps_hat = (x_t - alpha_t * prediction.x0_hat) / sigma_t
            added = eta * sigma_s * (-torch.expm1(log_snr_t - log_snr_s)).sqrt()  # eta times the posterior's deviation
            x_t = alpha_s * prediction.x0_hat + (sigma_s**2 - added**2).clamp(min=0).sqrt() * eps_hat
            if eta > 0:
                x_t = x_t + added * noise()


def dpm_solver(predict: Predict, x_t: Tensor, log_snrs: Tensor, noise: DrawNoise) -> Iterator[Prediction]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), deterministic; the last step is of first order.

    Their lambda is half the log-SNR; h is its increase over a step and r the ratio of the last two.
    """
    prediction: Prediction | None = None
    previous_h: Tensor | None = None
    for t, log_snr_t in enumerate(log_snrs):
        earlier = prediction
        prediction = predict(x_t, log_snr_t, prediction)
        yield prediction
        if t + 1 < len(log_snrs):
            log_snr_s = log_snrs[t + 1]
            _, sigma_t = alpha_sigma(log_snr_t)
            alpha_s, sigma_s = alpha_sigma(log_snr_s)
            h = (log_snr_s - log_snr_t) / 2
            x_0 = prediction.x0_hat
            if earlier is not None and previous_h and t + 2 < len(log_snrs):  # a step of no length tells no slope
                r = previous_h / h
                x_0 = x_0 + (x_0 - earlier.x0_hat) / (2 * r)
            x_t = sigma_s / sigma_t * x_t - alpha_s * torch.expm1(-h) * x_0
            previous_h = h


def make_sampler(
    name: SamplerName,
    predict: Predict,
    x_t: Tensor,
    log_snrs: Tensor,
    noise: DrawNoise,
    eta: float = 0.0,
    refine: Refine | None = None,
) -> Iterator[Prediction]:
    """The sampler called `name`, started at x_t on the noise levels `log_snrs`."""
    if name == "ancestral":
        return ancestral(predict, x_t, log_snrs, noise, refine)
    if refine is not None:
        raise ValueError("the paper's guidance moves ancestral draws: use --sampler ancestral")
    if name == "ddim":
        return ddim(predict, x_t, log_snrs, noise, eta)
    if name == "dpm":
        return dpm_solver(predict, x_t, log_snrs, noise)
    raise ValueError(f"unknown sampler {name!r}: use {', '.join(get_args(SamplerName))}")
