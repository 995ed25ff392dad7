"""Particles: any function of texts can steer, for it needs no gradient.

Several drafts of a text, its particles, are denoised side by side. At a few noise levels each is scored by its
likeliest words, and drawn anew in proportion to exp(2 standardised score): good drafts go on in several copies, which
fresh noise makes different again, bad ones end. The best-scored finished particle is the text. This is a particle
filter with a potential function (Singhal et al. 2025, "A general framework for inference-time scaling and steering of
diffusion models").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from ctrlgen.errors import CtrlgenError
from ctrlgen.settings import Scorer

LEVELS = (0.3, 0.45, 0.7, 0.85)  # shares of the steps after which particles are drawn anew
SHARPNESS = 2.0  # of a score's deviations from the mean, in nats each
_one_at_a_time = Lock()  # a user's function need not be safe in threads
MOST_DOUBT = 1.0  # nats: of the finished particles only those whose controls are held so nearly as likely as the best's


class Particles:
    """The rows of a batch as groups of `count` particles. `write` makes texts of word ids (B, n)."""

    def __init__(
        self,
        scorer: Scorer,
        count: int,
        steps: int,
        write: Callable[[Tensor], list[str]],
        rngs: Sequence[torch.Generator],
    ):
        self.scorer, self.count, self.write, self.rngs = scorer, count, write, rngs
        self.due = {round(level * steps) for level in LEVELS}
        self.moves = 0

    def order(self, ids: Tensor) -> Tensor | None:
        """After one more step with these likeliest words (B, n): the row that each row goes on from, (B,), or None."""
        self.moves += 1
        if self.moves not in self.due:
            return None
        groups = self.scores(ids).split(self.count)
        weights = [SHARPNESS * standardised(group) for group in groups]
        chosen = [systematic(group, rng) for group, rng in zip(weights, self.rngs, strict=True)]
        return torch.cat([row * self.count + order for row, order in enumerate(chosen)]).to(ids.device)

    def scores(self, ids: Tensor) -> Tensor:
        """The score of each row's text. (B,)"""
        return score(self.scorer, self.write(ids))

    def best(self, ids: Tensor, controls: Tensor) -> list[int]:
        """The best row of each group of finished texts (B, n). controls (B,): the joint log p of their controls."""
        scores = self.scores(ids)
        rows = []
        for first in range(0, len(ids), self.count):
            group = slice(first, first + self.count)
            held = controls[group].cpu() >= controls[group].max().cpu() - MOST_DOUBT
            rows.append(first + int(scores[group].masked_fill(~held, -math.inf).argmax()))
        return rows


def standardised(scores: Tensor) -> Tensor:
    """With mean 0 and deviation 1; all 0 where they are equal. (K,)"""
    deviation = scores.std(correction=0)
    return (scores - scores.mean()) / deviation if deviation > 0 else torch.zeros_like(scores)


def systematic(log_weights: Tensor, rng: torch.Generator) -> Tensor:
    """Systematic resampling (Kitagawa 1996): K indices, each about as often as its weight says. (K,)"""
    count = len(log_weights)
    points = (torch.arange(count, dtype=torch.double) + torch.rand((), generator=rng, dtype=torch.double)) / count
    return torch.searchsorted(log_weights.softmax(-1).cumsum(-1), points).clamp(max=count - 1)


def score(scorer: Scorer, texts: Sequence[str]) -> Tensor:
    """The scorer's numbers, (B,). Raises CtrlgenError where it fails or gives something else."""
    try:
        with _one_at_a_time:
            numbers = list(scorer(list(texts)))
        scores = torch.tensor([float(number) for number in numbers], dtype=torch.double)
    except Exception as error:  # a user's function may fail in any way
        raise CtrlgenError(f"the scorer failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(texts) or not scores.isfinite().all():
        raise CtrlgenError(f"the scorer gave {len(scores)} numbers for {len(texts)} texts, or one that is not finite")
    return scores


def cost(texts: int, count: int) -> str:
    """What a run with a scorer takes, in one line."""
    calls = count * (len(LEVELS) + 1)
    return (
        f"scorer: {texts} texts of {count} particles each: {count} times the denoising, {calls * texts} texts to score"
    )
