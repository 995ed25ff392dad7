"""The diffusion process over word embeddings: marginals, posterior, KL, and the noise of a training batch.

x_t = alpha_t x_0 + sigma_t eps with alpha^2 + sigma^2 = 1. Shapes: x (B, n, d); log_snr (B,) or a scalar.
`s` is the less noisy of two times s < t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctrlgen.diffusion.schedule import alpha_sigma


def per_row(scale: Tensor, x: Tensor) -> Tensor:
    """Let a (B,) or scalar tensor, of any precision, broadcast over x (B, n, d)."""
    return scale.to(x.dtype).reshape(scale.shape + (1,) * (x.dim() - scale.dim()))


def q_sample(x_0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """Draw from q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) with the given standard normal `eps`."""
    alpha, sigma = alpha_sigma(log_snr)
    return per_row(alpha, x_0) * x_0 + per_row(sigma, x_0) * eps


def posterior(x_t: Tensor, x_0: Tensor, log_snr_s: Tensor, log_snr_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x_0) (Kingma et al. 2021, eq. 25-28; Ho et al. 2020, eq. 7).

    With c = sigma_{t|s}^2 / sigma_t^2 = -expm1(lambda_t - lambda_s):
    mean = (1 - c) alpha_s/alpha_t x_t + c alpha_s x_0,  variance = c sigma_s^2.
    """
    alpha_s, sigma_s = alpha_sigma(log_snr_s)
    alpha_t, _ = alpha_sigma(log_snr_t)
    c = -torch.expm1(log_snr_t - log_snr_s)
    mean = per_row((1.0 - c) * alpha_s / alpha_t, x_t) * x_t + per_row(c * alpha_s, x_t) * x_0
    return mean, c * sigma_s**2


def gaussian_kl(mean_1: Tensor, variance_1: Tensor, mean_2: Tensor, variance_2: Tensor) -> Tensor:
    """KL(N(mean_1, variance_1) || N(mean_2, variance_2)) per element, in nats."""
    ratio = variance_1 / variance_2
    return 0.5 * (ratio - 1.0 - torch.log(ratio) + (mean_1 - mean_2) ** 2 / variance_2)


@dataclass(frozen=True)
class Noise:
    """All that is random in one training batch, drawn for the whole batch so that shards agree."""

    t: Tensor  # (B,) in [0, 1), of discrete times in (0, 1]
    eps: Tensor  # (B, n, d)
    eps_0: Tensor  # (B, n, d), the embedding step's own noise (mse objective)
    clean: Tensor  # (B, n) positions given without noise
    self_condition: Tensor  # bool, one for the whole batch

    def tensors(self) -> tuple[Tensor, ...]:
        return self.t, self.eps, self.eps_0, self.clean, self.self_condition

    def rows(self, index: slice) -> Noise:
        return Noise(self.t[index], self.eps[index], self.eps_0[index], self.clean[index], self.self_condition)


def draw_noise(
    batch: int,
    length: int,
    dim: int,
    rng: torch.Generator,
    span_mask_rate: float = 0.0,
    steps: int | None = None,
    spans: int = 1,
) -> Noise:
    """Times, noise and clean positions for a batch.

    t is stratified over the batch (low variance, Kingma et al. 2021, appendix I.1) and shuffled, or uniform
    over the `steps` discrete times of the paper's process. With probability `span_mask_rate` a sentence is
    given clean outside some random spans, at most `spans`, so that infilling is learned (SED, Strudel et al. 2022,
    section 4.3: several spans teach more than one).
    """
    if steps is None:
        t = (torch.randperm(batch, generator=rng) + torch.rand(1, generator=rng)) / batch
    else:
        t = torch.randint(1, steps + 1, (batch,), generator=rng) / steps
    eps = torch.randn(batch, length, dim, generator=rng)
    eps_0 = torch.randn(batch, length, dim, generator=rng) if steps else eps
    masked = torch.rand(batch, 1, generator=rng) < span_mask_rate
    ends = torch.randint(0, length + 1, (batch, 2 * spans), generator=rng)
    if spans > 1:
        used = 2 * torch.randint(1, spans + 1, (batch, 1), generator=rng)
        ends = ends.masked_fill(torch.arange(2 * spans) >= used, length)  # beyond the text
    inside = (ends[:, None] <= torch.arange(length)[:, None]).sum(-1) % 2 == 1  # (B, n): an odd number begun or ended
    clean = masked & ~inside & inside.any(-1, keepdim=True)
    return Noise(t, eps, eps_0, clean, torch.rand((), generator=rng) < 0.5)
