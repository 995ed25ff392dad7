"""The probability that a text of independent words is accepted by an automaton.

Given x_t the denoiser's words are independent, so log p(accepted | x_t) is exact: one recursion over the positions,
as in a hidden Markov model (Rabiner 1989, section III.A), in log space because it may be far below 1e-30.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctrlgen.automata.automaton import END, OTHER, Automaton
from ctrlgen.diffusion.precision import precise

IMPOSSIBLE = -1e9  # log 0, finite so that gradients are


@dataclass(frozen=True)
class Automata:
    """One automaton a row, in tensors. With S states and K letters at most."""

    letter_of: Tensor  # (B, V), the letter of each word
    moves: Tensor  # (B, S, K)
    accepting: Tensor  # bool (B, S)

    def to(self, device: torch.device) -> Automata:
        return Automata(self.letter_of.to(device), self.moves.to(device), self.accepting.to(device))

    def log_prob(self, log_q: Tensor) -> Tensor:
        """log p(accepted) of letters with independent log-probabilities log_q (B, n, K). -> (B,)"""
        return self.to_the_end(log_q)[0][:, 0]

    def letter_log_prob(self, log_q: Tensor) -> Tensor:
        """log p(accepted | letter k at position i), the other positions as in log_q. (B, n, K) -> (B, n, K)"""
        before, after = self.from_the_start(log_q), self.to_the_end(log_q)
        conditionals = [  # sum over the states s before i: p(s) p(accepted | moves[s, k] after i)
            (alpha[..., None] + self.next(beta)).logsumexp(1) for alpha, beta in zip(before, after[1:], strict=True)
        ]
        return torch.stack(conditionals, 1)

    def word_log_prob(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """log p(accepted | word at position i), log_q as from `letters` of the words' log_p (B, n, V). -> (B, n, V)"""
        of_letters = self.letter_log_prob(log_q).to(log_p)
        return of_letters.gather(-1, self.letter_of[:, None].expand(log_p.shape))

    def letters(self, log_p: Tensor, lengths: Tensor | None) -> Tensor:
        """log p of each letter, given that of each word, (B, n, V); beyond a row's length (B,) there is END. (B, n, K)

        The letter OTHER, which most words have, is summed apart: that is many times faster with large vocabularies.
        """
        is_other = self.letter_of == OTHER  # (B, V)
        columns = (~is_other).any(0).nonzero()[:, 0]  # words that are a letter of their own in some row
        few = self.letter_of[:, columns]
        log_q = scatter_logsumexp(log_p[..., columns], few[:, None].expand(*log_p.shape[:2], -1), self.moves.shape[2])
        other = log_p.masked_fill(~is_other[:, None], IMPOSSIBLE).logsumexp(-1)
        log_q = precise(torch.cat([log_q[..., :OTHER], other[..., None], log_q[..., OTHER + 1 :]], -1))
        if lengths is None:
            return log_q
        nothing = torch.full_like(log_q[0, 0], IMPOSSIBLE)
        nothing[END] = 0.0
        position = torch.arange(log_q.shape[1], device=log_q.device)
        return torch.where((position < lengths[:, None])[..., None], log_q, nothing)

    def accept(self, ids: Tensor, lengths: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Whether texts (M, n) of these lengths are accepted, by the automata of these rows (M,). bool (M,)"""
        rows = torch.arange(len(ids), device=ids.device) if rows is None else rows
        letters = self.letter_of[rows[:, None], ids]
        if lengths is not None:
            letters = letters.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None], END)
        state = torch.zeros_like(rows)
        for letter in letters.unbind(1):
            state = self.moves[rows, state, letter]
        return self.accepting[rows, state]

    def next(self, beta: Tensor) -> Tensor:
        """A value of the state that each state and letter lead to. (B, S) -> (B, S, K)"""
        return beta.gather(1, self.moves.flatten(1)).view(self.moves.shape)

    def to_the_end(self, log_q: Tensor) -> list[Tensor]:
        """log p(accepted | state) before each position and after the last: n + 1 of (B, S)."""
        beta = torch.where(self.accepting, 0.0, IMPOSSIBLE).to(log_q)
        betas = [beta]
        for q in reversed(log_q.unbind(1)):  # (B, K)
            beta = (q[:, None] + self.next(beta)).logsumexp(-1)
            betas.append(beta)
        return betas[::-1]

    def from_the_start(self, log_q: Tensor) -> list[Tensor]:
        """log p(state) before each position: n of (B, S)."""
        alpha = log_q.new_full(self.accepting.shape, IMPOSSIBLE)
        alpha[:, 0] = 0.0
        alphas = []
        for q in log_q.unbind(1):  # (B, K)
            alphas.append(alpha)
            moved = (alpha[..., None] + q[:, None]).flatten(1)  # (B, S * K)
            alpha = scatter_logsumexp(moved, self.moves.flatten(1), alpha.shape[1])
        return alphas


def stack(automata: Sequence[Automaton]) -> Automata:
    """Tables of one size; what fills them up is never reached."""
    states, letters = max(a.states for a in automata), max(a.letters for a in automata)
    moves = torch.zeros(len(automata), states, letters, dtype=torch.long)
    accepting = torch.zeros(len(automata), states, dtype=torch.bool)
    for row, automaton in enumerate(automata):
        moves[row, : automaton.states, : automaton.letters] = torch.from_numpy(automaton.moves)
        accepting[row, : automaton.states] = torch.from_numpy(automaton.accepting)
    return Automata(torch.stack([torch.from_numpy(a.letter_of) for a in automata]), moves, accepting)


def scatter_logsumexp(x: Tensor, index: Tensor, size: int) -> Tensor:
    """log of the sum of exp(x) over the entries of the last dimension that share an index. (..., m) -> (..., size)"""
    shape = (*x.shape[:-1], size)
    top = x.new_full(shape, IMPOSSIBLE).scatter_reduce(-1, index, x.detach(), "amax")
    total = x.new_zeros(shape).scatter_add(-1, index, (x - top.gather(-1, index)).exp())
    return top + total.clamp(min=torch.finfo(x.dtype).tiny).log()
