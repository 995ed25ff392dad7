"""Which words of a finished text speak against its controls.

Gradient times input, at several noise levels: how much log p(controls | x_t) would gain if a word were not there (to
first order). Between the levels of noise and text a guide neither knows nothing nor is too sure to have a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.diffusion.precision import fast
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.generation.guidance import Term, joint_log_prob

NOISES = (0.5, 1.0, 2.0)  # sigma/alpha
LEAST_SHARE = 0.08  # of all that speaks against the controls, in a word that is to blame


def blame(model: DiffusionLM, ids: Tensor, lengths: Tensor | None, terms: Sequence[Term]) -> Tensor:
    """What each word takes from the weighted log p of the controls, in nats, 0 where it takes nothing. (B, n)"""
    taken = torch.zeros(ids.shape, device=ids.device)
    terms = [term for term in terms if not term.classifier.structural]
    if not terms:
        return taken
    x_0 = model.denoiser.embed(ids)
    for noise in NOISES:
        log_snr = torch.tensor([-2 * math.log(noise)], device=ids.device)
        alpha, _ = alpha_sigma(log_snr[0])
        with torch.enable_grad():
            x_t = (alpha * x_0).requires_grad_(True)
            denoised = fast(model.denoiser, ids.device)(x_t, log_snr, lengths=lengths)
            (gradient,) = torch.autograd.grad(joint_log_prob(terms, denoised).sum(), x_t)
        taken -= (gradient * x_t.detach()).sum(-1) / len(NOISES)
    if lengths is not None:
        taken = taken * (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])
    return taken.clamp(min=0.0)


def most_to_blame(taken: Sequence[float], kept: Set[int], unknown: Set[int]) -> tuple[float, ...]:
    """The same, but 0 for words that are kept, and for those that speak against the controls only a little.

    Guides read unknown words badly: unless the word most to blame is one, none of them is.
    """
    free = [0.0 if place in kept else nats for place, nats in enumerate(taken)]
    if free.index(max(free)) not in unknown:
        free = [0.0 if place in unknown else nats for place, nats in enumerate(free)]
    least = LEAST_SHARE * sum(free)
    return tuple(nats if nats >= least else 0.0 for nats in free)
