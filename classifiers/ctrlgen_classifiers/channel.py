"""A channel that turns a text into a source by keeping, replacing, inserting and deleting words.

It reads the text's words w_1 ... w_n from left to right and writes the source s_1 ... s_m. Before each word, and after
the last, it writes a further word u ~ pi with probability `inserted`, and again. Then it takes the next word and with
probability `deleted` writes nothing; else it writes u with probability

    p(u | w) = (1 - sum_v eps_v) [u = w] + eps_u,    eps_u = min(replaced, rarely * pi_u).

Over all sources these probabilities sum to 1. A word of the source may be unread (ERASED): it may have been any. The
floor eps_u makes the channel robust: where a word of the source is less likely than that, it was replaced, and pulls no
longer. The floor follows the word's own prior pi_u, or rare words such as names would be below it, and lose their pull,
wherever noise is high.

The denoiser's words are independent given x_t, so log p(source | x_t) is exact: a forward recursion over both lengths,
as in a pair hidden Markov model (Durbin et al. 1998, section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.controls.template import NO_WORD
from ctrlgen.diffusion.precision import precise

NEVER = -1e9  # log 0, finite so that gradients are
ERASED = NO_WORD  # instead of the id of a word


@dataclass(frozen=True)
class Channel:
    """What the channel does to words. prior (V,): how frequent each word is, pi."""

    prior: Tensor
    inserted: float = 0.05
    deleted: float = 0.05
    replaced: float = 0.05
    rarely: float = 0.05

    def __post_init__(self) -> None:
        if (
            not 0 < self.replaced < 1
            or not 0 < self.rarely < 1
            or not 0 < self.inserted < 1
            or not 0 < self.deleted < 1
        ):
            raise ValueError("the channel's probabilities must lie between 0 and 1")

    @property
    def floor(self) -> Tensor:
        """eps of each word. (V,)"""
        return (self.rarely * self.prior).clamp(max=self.replaced)

    @property
    def log_keep(self) -> float:
        """log probability that a word is kept as it is."""
        return math.log1p(-float(self.floor.sum()))

    @property
    def log_skip(self) -> float:
        """log probability of taking a word of the text and writing nothing."""
        return math.log1p(-self.inserted) + math.log(self.deleted)

    @property
    def log_take(self) -> float:
        """log probability of taking a word of the text and writing one."""
        return math.log1p(-self.inserted) + math.log1p(-self.deleted)

    @property
    def log_stop(self) -> float:
        return math.log1p(-self.inserted)

    def log_prob(self, log_q: Tensor, source: Tensor, sizes: Tensor, lengths: Tensor) -> Tensor:
        """log p(source) of texts with independent words, differentiable in log_q. -> (B,)

        log_q (B, n, m): the log-probability that a text's position i holds the source's word j. source (B, m): the ids
        of these words. Of each row the first `lengths` (B,) positions and the first `sizes` (B,) words count.
        """
        match = self.match(log_q, source)
        alignments = self.alignments(match.detach(), source, sizes, lengths)
        # d log p / d match is how often each pair is aligned, so no gradient need run through the recursion itself
        surrogate = (alignments.aligned().to(match) * match).sum((1, 2))
        return surrogate - surrogate.detach() + alignments.log_prob.to(match)

    @torch.no_grad()
    def word_log_prob(self, log_q: Tensor, source: Tensor, sizes: Tensor, lengths: Tensor) -> Tensor:
        """log p(source | word v at position i), the other positions as in log_q. (B, n, V)"""
        alignments = self.alignments(self.match(log_q, source), source, sizes, lengths)
        around, skipping = alignments.around(), alignments.skipping()  # (B, n, m), (B, n)
        erased = (source == ERASED)[:, None]
        floor = self.floor.log()[source.clamp(min=0)][:, None].masked_fill(erased, 0.0)
        replaced = (around + floor).logsumexp(-1)
        whatever = torch.logaddexp(skipping, replaced)  # the word is
        read = around.masked_fill(erased, -math.inf)
        top = read.amax(-1, keepdim=True).clamp(min=NEVER)
        kept = around.new_zeros(*skipping.shape, len(self.prior))
        index = source.clamp(min=0)[:, None].expand(read.shape)
        kept = kept.scatter_add(-1, index, (read - top).exp()).log() + top
        return torch.logaddexp(whatever[..., None], kept + self.log_keep).to(log_q)

    def match(self, log_q: Tensor, source: Tensor) -> Tensor:
        """log probability that position i, if taken, is written as the source's word j. (B, n, m)"""
        match = torch.logaddexp(log_q + self.log_keep, self.floor.log()[source.clamp(min=0)][:, None].to(log_q))
        return match.masked_fill((source == ERASED)[:, None], 0.0)

    def alignments(self, match: Tensor, source: Tensor, sizes: Tensor, lengths: Tensor) -> Alignments:
        log_prior = self.prior.log()[source.clamp(min=0)].masked_fill(source == ERASED, 0.0)
        insert = precise(log_prior) + math.log(self.inserted)  # (B, m)
        return Alignments(self, precise(match), F.pad(insert.cumsum(1), (1, 0)), sizes, lengths)


class Alignments:
    """All ways in which the channel may have made sources (B, m) of texts (B, n), by forward and backward recursion.

    match (B, n, m); inserted (B, m + 1): log probability of writing the source's first j words without the text.
    """

    def __init__(self, channel: Channel, match: Tensor, inserted: Tensor, sizes: Tensor, lengths: Tensor):
        self.channel, self.match, self.inserted = channel, match, inserted
        self.sizes, self.lengths = sizes, lengths
        self.before = self.forward()
        self.after = self.backward()
        end = self.before[torch.arange(len(match), device=match.device), lengths]  # (B, m + 1)
        self.log_prob = end.gather(1, sizes[:, None]).squeeze(1) + channel.log_stop  # (B,)

    def forward(self) -> Tensor:
        """log p(source's first j words written, text's first i taken). (B, n + 1, m + 1)"""
        row = self.inserted
        rows = [row]
        for match in self.match.unbind(1):  # (B, m)
            taken = F.pad(row[:, :-1] + match + self.channel.log_take, (1, 0), value=-math.inf)
            reached = torch.logaddexp(row + self.channel.log_skip, taken)
            row = (reached - self.inserted).logcumsumexp(1) + self.inserted
            rows.append(row)
        return torch.stack(rows, 1)

    def backward(self) -> Tensor:
        """log p(the rest of the source | its first j words written, text's first i taken). (B, n + 1, m + 1)"""
        word = torch.arange(self.inserted.shape[1], device=self.inserted.device)
        rest = self.inserted.gather(1, self.sizes[:, None]) - self.inserted + self.channel.log_stop
        last = rest.masked_fill(word > self.sizes[:, None], -math.inf)
        n = self.match.shape[1]
        row = last
        rows = [row]
        for i in reversed(range(n)):
            taken = F.pad(row[:, 1:] + self.match[:, i] + self.channel.log_take, (0, 1), value=-math.inf)
            reached = torch.logaddexp(row + self.channel.log_skip, taken)
            row = (reached + self.inserted).flip(1).logcumsumexp(1).flip(1) - self.inserted
            row = torch.where((i < self.lengths)[:, None], row, last)
            rows.append(row)
        return torch.stack(rows[::-1], 1)

    def around(self) -> Tensor:
        """log p(source, position i written as word j) but for p(word j | position i). (B, n, m), -inf past the end."""
        around = self.before[:, :-1, :-1] + self.channel.log_take + self.after[:, 1:, 1:]
        return around.masked_fill(~self.within()[..., None], -math.inf)

    def skipping(self) -> Tensor:
        """log p(source, position i written as nothing). (B, n)"""
        return (self.before[:, :-1] + self.channel.log_skip + self.after[:, 1:]).logsumexp(-1)

    def aligned(self) -> Tensor:
        """The probability that position i was written as word j. (B, n, m)"""
        return (self.around() + self.match - self.log_prob[:, None, None]).exp()

    def within(self) -> Tensor:
        """Positions that are no filling. bool (B, n)"""
        return torch.arange(self.match.shape[1], device=self.match.device) < self.lengths[:, None]
