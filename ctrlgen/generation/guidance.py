"""Steering: classifiers' gradients on x_t move the denoiser's estimate of x_0.

Tweedie's formula for the conditional posterior mean (Dhariwal and Nichol 2021, section 4; Chung et al. 2022):

    x0_hat(x_t, c) = x0_hat(x_t) + sigma_t^2 / alpha_t * grad_{x_t} log p(c | x_t)

Several controls are a sum of log-probabilities, so one backward pass serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.automata.automaton import Automaton
from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.encoded import Encoded, take_rows
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.precision import precise
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.errors import UsageError
from ctrlgen.settings import Guidance

Denoise = Callable[..., Denoised]  # a Denoiser, or one whose kept words are fixed

LEAST_DOUBT = 1e-6  # in nats: a log p nearer to 0 counts as that far from it, so that log(1 - p) is finite
MARGIN = 0.1  # in nats: texts that the guides like about as well differ in rounding only
PUBLISHED_UNGUIDED = 10  # steps at the end
MAX_SHIFT = 2.0  # root mean square over a text's words, in lengths of a word's embedding


@dataclass(frozen=True)
class Term:
    """One control of a batch: a classifier with its encoded targets, one a row."""

    classifier: Classifier
    encoded: Encoded  # first dimension B
    weight: float = 1.0
    negated: bool = False
    window: tuple[float, float] = (0.0, 1.0)
    impossible: Tensor | None = None  # bool (B,): rows whose length rules the control out; only of a negated one
    automata: tuple[Automaton, ...] | None = None  # one a row, where the control is a matter of the words alone
    targets: tuple[Any, ...] = ()  # what is encoded, one a row

    def rows(self, rows: Tensor) -> Term:
        """The term of these rows (M,) of its batch."""
        impossible = None if self.impossible is None else self.impossible[rows]
        automata = None if self.automata is None else tuple(self.automata[row] for row in rows.tolist())
        targets, encoded = tuple(self.targets[row] for row in rows.tolist()), take_rows(self.encoded, rows)
        return replace(self, encoded=encoded, impossible=impossible, automata=automata, targets=targets)

    @property
    def parts(self) -> Tensor:
        """Of how many parts each target is. (B,)"""
        return torch.tensor([len(self.classifier.parts_of(target)) for target in self.targets])

    def log_prob(self, denoised: Denoised) -> Tensor:
        """log p(c | x_t), or log(1 - p) if negated, without the weight. -> (B,)"""
        log_p = self.classifier.log_prob(denoised.text, self.encoded)
        return self.avoided(log_p) if self.negated else log_p

    def avoided(self, log_p: Tensor) -> Tensor:
        """log(1 - p), of the text (B,) or of any part of it (B, ...); 0 where the length alone avoids the control."""
        log_not = log_complement(log_p)
        if self.impossible is None:
            return log_not
        return log_not.masked_fill(self.impossible.view(-1, *[1] * (log_p.dim() - 1)), 0.0)


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p), in float32 at least: bfloat16 cannot tell p = 0.998 from 1. A certain p has no gradient."""
    log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
    return torch.log(-torch.expm1(log_p.clamp(max=-LEAST_DOUBT)))


def within(window: tuple[float, float], progress: float) -> bool:
    return window[0] <= progress <= window[1]


def active(terms: Sequence[Term], guidance: Guidance, progress: float) -> list[Term]:
    """The terms that act at this part of denoising; progress runs from 0 (noise) to 1 (text)."""
    if guidance.scale == 0 or not within(guidance.window, progress):
        return []
    return [t for t in terms if t.weight > 0 and not t.classifier.structural and within(t.window, progress)]


def joint_log_prob(terms: Sequence[Term], denoised: Denoised) -> Tensor:
    """The weighted sum of the controls' log-probabilities. -> (B,)"""
    total = denoised.x_t.new_zeros(len(denoised.x_t))
    for term in terms:
        total = total + term.weight * term.log_prob(denoised)
    return total


def tweedie_shift(gradient: Tensor, log_snr: Tensor, strength: float) -> Tensor:
    """strength * sigma^2/alpha * gradient, each text's scaled down to MAX_SHIFT where it is larger. (B, n, d)

    Without the bound a confident classifier at high noise throws x0_hat far outside the embeddings. It holds for the
    text, not for each word, so that words that matter to the control still move further than words that do not.
    """
    alpha, sigma = alpha_sigma(log_snr)
    shift = strength * sigma**2 / alpha * gradient
    squared = precise(shift).square().sum(-1)  # (B, n); as double, sums do not depend on how far rows are filled up
    moved = (squared > 0).sum(1).clamp(min=1)
    rms = (squared.sum(1) / moved).sqrt().to(shift.dtype)
    largest = MAX_SHIFT * math.sqrt(gradient.shape[-1])
    return shift * (largest / rms.clamp(min=1e-12)).clamp(max=1.0)[:, None, None]


def steer(
    denoiser: Callable[[Tensor], Denoised],
    x_t: Tensor,
    terms: Sequence[Term],
    guidance: Guidance,
    embeddings: Tensor,
    *,
    predicts_x0: bool = False,
    through_network: bool = True,
) -> tuple[Denoised, Tensor]:
    """One call of the denoiser, steered by `terms`.

    `denoiser` knows all but x_t (B, n, d): the noise level, one for all rows, at which the gradient is scaled as well.
    Returns what it said, its logits corrected where the method corrects words, and the shift to add to x0_hat
    (B, n, d). `paper` and `published` steer elsewhere, in `refine`. Where the denoiser predicts x_0 and not words, its
    x0_hat moves under `exact` as the mean embedding (V, d) of its words does. The gradient is taken through the whole
    network, or through the Gaussian skip alone.
    """
    if guidance.method != "gradient" or not terms:
        with torch.no_grad():
            denoised = denoiser(x_t)
            shift = torch.zeros_like(x_t)
            if guidance.method != "exact":
                return denoised, shift
            conditioned = condition_words(denoised, terms, guidance.scale, every=True)
            if predicts_x0:
                shift = (conditioned.probs - denoised.probs) @ embeddings
            return conditioned, shift
    if through_network:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_(True)
            denoised = denoiser(x_t)
            (gradient,) = torch.autograd.grad(joint_log_prob(terms, denoised).sum(), x_t)
    else:
        with torch.no_grad():
            denoised = denoiser(x_t)
        gradient = skip_gradient(denoised, terms, embeddings)
    return detach(denoised), tweedie_shift(gradient, denoised.log_snr[0], guidance.scale)


def skip_gradient(denoised: Denoised, terms: Sequence[Term], embeddings: Tensor) -> Tensor:
    """The gradient of log p(c | x_t) through the Gaussian skip alone. (B, n, d)

    The skip adds alpha x_t . e_w / sigma^2 to the logit of each word w, so that no backward pass through the network is
    needed; what a guide reads from hidden states alone is left out.
    """
    with torch.enable_grad():
        logits = denoised.logits.detach().requires_grad_(True)
        read = replace(denoised, logits=logits, x0_hat=logits.softmax(-1) @ embeddings)
        (by_logit,) = torch.autograd.grad(joint_log_prob(terms, read).sum(), logits, materialize_grads=True)
    alpha, sigma = alpha_sigma(denoised.log_snr)
    return (alpha / sigma**2)[:, None, None] * (by_logit @ embeddings)


def detach(denoised: Denoised) -> Denoised:
    d = denoised
    hidden = tuple(h.detach() for h in d.hidden)
    return replace(d, x_t=d.x_t.detach(), logits=d.logits.detach(), x0_hat=d.x0_hat.detach(), hidden=hidden)


def condition_words(denoised: Denoised, terms: Sequence[Term], strength: float = 1.0, every: bool = False) -> Denoised:
    """p(w | x_t, c) by Bayes' rule: the logits plus log p(c | w), controls by product.

    Terms without a closed form of log p(c | w) are passed over, or with `every` raise UsageError.
    """
    logits, text = denoised.logits, denoised.text
    for term in terms:
        log_p = term.classifier.word_log_prob(text, term.encoded)
        if log_p is None:
            if every:
                raise UsageError(f"{term.classifier.kind}: has no closed form; use --guidance gradient")
            continue
        if term.negated:  # 1 - p(c_i | w) prod_j p(c_j | x_t): the other words may break the control as well
            each = (text.logits.log_softmax(-1) + log_p).logsumexp(-1, keepdim=True)  # (B, n, 1)
            others = each.sum(1, keepdim=True) - each
            log_p = term.avoided(log_p + others)
        logits = logits + strength * term.weight * F.pad(log_p, (0, 0, denoised.opening, 0))
    return replace(denoised, logits=logits)


def refine(
    denoiser: Denoise,
    x_s: Tensor,
    mean: Tensor,
    variance: Tensor,
    log_snr: Tensor,
    lengths: Tensor | None,
    terms: Sequence[Term],
    guidance: Guidance,
) -> Tensor:
    """Diffusion-LM's update of a draw x_s of x_{t-1}: Adagrad steps on the controls and a fluency term.

    mean and variance are those of p(x_{t-1} | x_t), log_snr (1,) is the noise level of x_s. `paper` and `published`
    differ in their loss; and in the original's code each step has an Adagrad of its own, so that it is a step of
    lr * sign.
    """
    published = guidance.method == "published"
    loss = published_loss if published else paper_loss
    x = x_s.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        for step in range(guidance.paper_steps):
            if step == 0 or published:
                optimizer = torch.optim.Adagrad([x], lr=guidance.paper_lr * guidance.scale)
            optimizer.zero_grad()
            loss(denoiser(x, log_snr, lengths=lengths), x - mean, variance, terms, guidance).backward()
            optimizer.step()
    return x.detach()


def paper_loss(
    denoised: Denoised, offset: Tensor, variance: Tensor, terms: Sequence[Term], guidance: Guidance
) -> Tensor:
    """-(lambda log p(x_{t-1} | x_t) + log p(c | x_{t-1})), summed over the batch. offset: x_{t-1} - mean."""
    fluency = -(offset**2).sum() / (2 * variance)
    return -(guidance.paper_fluency * fluency + joint_log_prob(terms, denoised).sum())


def published_loss(
    denoised: Denoised, offset: Tensor, variance: Tensor, terms: Sequence[Term], guidance: Guidance
) -> Tensor:
    """-mean_i log p(c_i | x) + lambda |x - mean|^2 / sigma, as the original's code has it.

    The mean is taken over a control's labels c_i: the parts of its target, as the tags of a pattern or the constituents
    of a tree. sigma is the standard deviation of the draw. lambda depends on the kind of control (Li et al. 2022,
    appendix); of several kinds the largest is taken.
    """
    control = torch.zeros_like(offset[:, 0, 0])  # (B,)
    for term in terms:
        mean = term.log_prob(denoised) / term.parts.to(control.device)
        control = control + term.weight * mean
    fluency = max(term.classifier.published_fluency for term in terms)
    return fluency * offset.square().sum() / variance.sqrt() - control.sum()
