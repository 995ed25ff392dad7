"""What training minimises, and the bound on a text's likelihood. Shapes as in `process.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.diffusion.denoiser import Context, Denoised, Denoiser
from ctrlgen.diffusion.process import Noise, gaussian_kl, q_sample
from ctrlgen.diffusion.schedule import Schedule, alpha_sigma
from ctrlgen.diffusion.words import NO_ROW, WordVectors

if TYPE_CHECKING:
    from ctrlgen.diffusion.bert import AnyDenoiser

SCORED_LEVELS = 32  # noise levels at which the bound on a text's likelihood is summed


def denoise(model: AnyDenoiser, x_t: Tensor, log_snr: Tensor, clean: Tensor | None, self_condition: bool) -> Denoised:
    """One training-time call of the denoiser, with the self-conditioning estimate where asked for.

    Chen et al. 2022, Analog Bits, algorithm 1: the first estimate is made without gradient and fed back.
    """
    x0_hat = torch.zeros_like(x_t)
    if self_condition:
        with torch.no_grad():
            x0_hat = model(x_t, log_snr, x0_hat, clean).x0_hat
    return model(x_t, log_snr, x0_hat, clean)


def cross_entropy_loss(model: Denoiser, schedule: Schedule, tokens: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the words given x_t (CDCD, eq. 5). tokens (B, n) -> loss (B,), log_snr (B,)."""
    log_snr = schedule.log_snr(noise.t)
    x_0 = model.embed(tokens)
    x_t = torch.where(noise.clean[..., None], x_0, q_sample(x_0, noise.eps, log_snr))
    denoised = denoise(model, x_t, log_snr, noise.clean, bool(noise.self_condition))
    return mean_cost(denoised.logits, tokens, noise.clean), log_snr


def mean_cost(logits: Tensor, tokens: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy of the words that are not given, in nats a word. (B, n, V), (B, n), (B, n) -> (B,)"""
    cost = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
    asked = (~clean).to(cost)
    return (cost * asked).sum(-1) / asked.sum(-1)


def sampled_cross_entropy_loss(
    model: Denoiser,
    schedule: Schedule,
    tokens: Tensor,
    noise: Noise,
    words: WordVectors,
    log_chance: Tensor,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy_loss` where each word is told apart from K candidates alone, not from all words.

    tokens (B, n) and context (B, m; NO_ROW where there is none) are places among the candidates; words: the
    candidates' vectors; log_chance (K,): the log-probability pi_w that a word is among them. -> loss (B,), log_snr (B,)

    The loss is -log p(word | x_t, candidates): with p(candidates | word) proportional to 1 / pi_word, Bayes' rule takes
    log pi off every logit (Jean et al. 2015, section 3.2). The self-conditioning estimate is the mean embedding over
    all words, estimated from the candidates: each weighs 1 / pi, but the word itself, which is among them for certain,
    weighs 1, or the estimate would give the answer away.
    """
    log_snr = schedule.log_snr(noise.t)
    x_0 = F.embedding(tokens, words.embedding)
    x_t = torch.where(noise.clean[..., None], x_0, q_sample(x_0, noise.eps, log_snr))
    before = None
    if context is not None:
        before = Context(F.embedding(context.clamp(min=0), words.embedding), context != NO_ROW)

    def logits(x0_hat: Tensor) -> Tensor:
        """Less log pi. (B, n, K)"""
        hidden = model.hidden_states(x_t, log_snr, x0_hat, noise.clean, None, before)
        return model.word_logits(x_t, log_snr, hidden[-1], words._replace(bias=words.bias - log_chance))

    x0_hat = torch.zeros_like(x_t)
    if noise.self_condition:
        with torch.no_grad():
            estimated = logits(x0_hat)
            estimated.scatter_add_(-1, tokens[..., None], log_chance[tokens][..., None])
            x0_hat = estimated.softmax(-1) @ words.embedding
    return mean_cost(logits(x0_hat), tokens, noise.clean), log_snr


def simple_loss(model: Denoiser, schedule: Schedule, tokens: Tensor, noise: Noise, steps: int) -> tuple[Tensor, Tensor]:
    """L_simple^e2e of Li et al. 2022, eq. 2: ||x_0 - x0_hat||^2, the x_T term and the rounding term.

    x_0 is drawn from q(x_0 | w) = N(Emb(w), sigma_0^2 I). At t = 1 the target is Emb(w) itself. -> (B,), (B,)
    """
    log_snr = schedule.log_snr(noise.t)
    log_snr_0 = schedule.log_snr(torch.zeros(()))
    _, sigma_0 = alpha_sigma(log_snr_0)
    mean_0 = model.embed(tokens)
    x_0 = mean_0 + sigma_0 * noise.eps_0
    denoised = denoise(model, q_sample(x_0, noise.eps, log_snr), log_snr, noise.clean, bool(noise.self_condition))
    first = (noise.t * steps).round() == 1
    target = torch.where(first[:, None, None], mean_0, x_0)
    x_0_term = (target - denoised.x0_hat).square().mean((1, 2))
    alpha_T, _ = alpha_sigma(schedule.log_snr(torch.ones(())))
    x_T_term = (alpha_T * x_0).square().mean((1, 2))
    logits = model.rounding_logits(x_0)
    rounding_term = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).mean(1)
    return x_0_term + x_T_term + rounding_term, log_snr


def bound_by_word(
    model: AnyDenoiser,
    tokens: Tensor,
    schedule: Schedule,
    noise: Callable[[], Tensor],
    lengths: Tensor | None = None,
    levels: int = SCORED_LEVELS,
    context: Tensor | None = None,
) -> Tensor:
    """An upper bound on -log p(tokens), in nats, as the sum of what each word adds (Kingma et al. 2021, eq. 11-17).

    (B, n) -> (B, n), 0 beyond a text's end.

    -log p <= 1/2 integral of |x_0 - x0_hat|^2 d SNR + rounding cost at t = 0 + KL(q(x_T | x_0) || N(0, I)).
    The integral is a sum over `levels` equal steps of the schedule's t, each with one draw of `noise()` (B, n, d);
    give all candidates the same noise, so that their differences are not chance.

    context (B, m): the words before the texts.
    """
    batch, length = tokens.shape
    x_0 = model.embed(tokens)

    more = {} if context is None else {"context": context}

    def predict(log_snr: Tensor) -> Denoised:
        return model(q_sample(x_0, noise(), log_snr), log_snr[None], lengths=lengths, **more)

    snr = schedule.log_snr(torch.linspace(0.0, 1.0, levels + 1)).exp().to(x_0)
    middle = schedule.log_snr((torch.arange(levels) + 0.5) / levels).to(x_0)
    cost = x_0.new_zeros(batch, length)
    for level in range(levels):
        error = (x_0 - predict(middle[level]).x0_hat).square().sum(-1)
        cost += 0.5 * error * (snr[level] - snr[level + 1])
    least_noise, most_noise = schedule.log_snr(torch.tensor([0.0, 1.0])).to(x_0)
    words = predict(least_noise).logits
    cost += F.cross_entropy(words.flatten(0, 1), tokens.flatten(), reduction="none").view(batch, length)
    alpha, sigma = alpha_sigma(most_noise)
    cost += gaussian_kl(alpha * x_0, sigma**2, torch.zeros(()), torch.ones(())).sum(-1)
    if lengths is not None:
        cost = cost.masked_fill(torch.arange(length, device=cost.device) >= lengths[:, None], 0.0)
    return cost
