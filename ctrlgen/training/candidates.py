"""The words among which a training batch is told apart: its own, and a sample of the others.

With 20,000 words the output costs as much as with 800, and the loss stays one of all words, since the probability of
being among the candidates is taken off (`diffusion.sampled_cross_entropy_loss`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlgen.diffusion.words import NO_ROW


class Candidates(NamedTuple):
    """K words: what `WordTable.vectors` needs of each, and the log-probability that it is among them."""

    ids: Tensor  # (K,), rising
    own: Tensor  # (K,) the same, NO_ROW where a word has to do without its own vector
    spelling: Tensor  # (K, m)
    log_prior: Tensor  # (K,)
    log_chance: Tensor  # (K,)


class CandidateSampler:
    """Draws the candidates of training batches.

    Ids from `vocab_size` on are words too rare for a vector of their own: they are candidates where their batch has
    them, made of pieces, so that training meets words that it does not know. Of the others a share `own_dropout` does
    without its own vector, too.
    """

    def __init__(
        self, counts: Tensor, log_prior: Tensor, spelling: Tensor, vocab_size: int, sampled: int, own_dropout: float
    ):
        """counts in the training texts (W,), log_prior (W,) and spelling (W, m) of all words.

        sampled: how many words are drawn, on average.
        """
        self.log_prior, self.spelling = log_prior, spelling
        self.vocab_size, self.own_dropout = vocab_size, own_dropout
        counts = counts.double().clamp(min=1)
        self.share = counts / counts.sum()  # p(w)
        self.drawn = torch.zeros_like(self.share)
        self.drawn[:vocab_size] = inclusion(counts[:vocab_size].sqrt(), sampled)

    def draw(self, tokens: Tensor, rng: torch.Generator) -> Candidates:
        """Candidates of a batch. tokens: all ids that occur in it, any shape; negative ones stand for none."""
        present = tokens[tokens >= 0]
        among = torch.rand(len(self.share), generator=rng) < self.drawn
        among[present] = True
        ids = among.nonzero()[:, 0]
        missed = (1.0 - self.drawn[ids]) * (1.0 - self.share[ids]) ** len(present)
        keeps = torch.rand(len(ids), generator=rng) >= self.own_dropout
        own = ids.where(keeps & (ids < self.vocab_size), torch.tensor(NO_ROW))
        return Candidates(ids, own, self.spelling[ids], self.log_prior[ids], (-missed).log1p().float())


def inclusion(weights: Tensor, expected: int) -> Tensor:
    """Probabilities min(1, c * weight) that add up to `expected`, or 1 for all where there are fewer. (V,)"""
    if expected >= len(weights):
        return torch.ones_like(weights)
    low, high = 0.0, float(expected / weights.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * weights).clamp(max=1.0).sum() < expected else (low, middle)
    return (high * weights).clamp(max=1.0)


def places(tokens: Tensor, ids: Tensor) -> Tensor:
    """Where each token stands among the sorted ids of the candidates; negative ones stay."""
    return torch.where(tokens < 0, tokens, torch.searchsorted(ids, tokens.clamp(min=0)))
