"""Finite automata over words, and the probability that a text with independent words is accepted by one.

Given x_t the denoiser's words are independent, so log p(accepted | x_t) is exact: one recursion over the positions,
as in a hidden Markov model (Rabiner 1989, section III.A), in log space because it may be far below 1e-30.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ctrlgen.controls.template import Blank

Place = Literal["anywhere", "start", "end"]
Phrase = tuple[str, ...]
State = tuple[frozenset[tuple[int, int]], frozenset[int]]  # begun: (phrase, words so far); phrases found

END, OTHER = 0, 1  # the letters that are no word: nothing, beyond a text's end; any word that no phrase has
IMPOSSIBLE = -1e9  # log 0, finite so that gradients are
MAX_STATES = 512  # nine words in any order


@dataclass(frozen=True)
class Automaton:
    """Deterministic: it starts in state 0 and moves from state s by letter k to moves[s][k]."""

    words: tuple[str, ...]  # letter 2 + i is words[i]
    moves: tuple[tuple[int, ...], ...]
    accepting: tuple[bool, ...]
    shortest: int  # fewest words that are accepted

    @property
    def letters(self) -> int:
        return 2 + len(self.words)

    def letter(self, word: str) -> int:
        return 2 + self.words.index(word) if word in self.words else OTHER

    def accepts_some(self, parts: Sequence[str | Blank]) -> bool:
        """Whether a text of these words, with any words in its blanks, is accepted."""
        reached = {0}
        for part in parts:
            if isinstance(part, str):
                reached = {self.moves[state][self.letter(part)] for state in reached}
                continue
            for _ in range(part.fewest):
                reached = self.after_any_word(reached)
            more = len(self.moves) if part.most is None else part.most - part.fewest
            for _ in range(min(len(self.moves), more)):  # by then nothing new is reached
                reached |= self.after_any_word(reached)
        return any(self.accepting[state] for state in reached)

    def after_any_word(self, states: Set[int]) -> set[int]:
        return {after for state in states for after in self.moves[state][OTHER:]}


@dataclass(frozen=True)
class Search:
    """Looks for phrases. A text passes that has all of them, or any one; `avoided` turns that round."""

    phrases: tuple[Phrase, ...]
    place: Place = "anywhere"
    every: bool = True
    avoided: bool = False

    def first(self) -> State:
        return frozenset((p, 0) for p in range(len(self.phrases))), frozenset()

    def after(self, state: State, word: str | None) -> State:
        """The state after one more word; None is a word that no phrase has."""
        begun, found = state
        if self.place != "end" and self.decided(found):
            return state
        grown = {(p, done + 1) for p, done in begun if self.phrases[p][done] == word}
        complete = {p for p, done in grown if done == len(self.phrases[p])}
        found = frozenset(complete if self.place == "end" else found | complete)
        if self.place != "end" and self.decided(found):
            return frozenset(), frozenset(range(len(self.phrases)))
        if self.place != "start":  # a phrase may begin at any word
            grown |= {(p, 0) for p in range(len(self.phrases))}
        unfinished = {(p, done) for p, done in grown if done < len(self.phrases[p])}
        if self.place == "anywhere":
            unfinished = {(p, done) for p, done in unfinished if p not in found}
        return frozenset(unfinished), found

    def decided(self, found: frozenset[int]) -> bool:
        return len(found) == len(self.phrases) if self.every else bool(found)

    def passes(self, state: State) -> bool:
        return self.decided(state[1]) != self.avoided


@lru_cache(maxsize=1024)
def compile_search(search: Search) -> Automaton:
    """The automaton that accepts what the search passes. Raises ValueError beyond MAX_STATES."""
    words = tuple(sorted({word for phrase in search.phrases for word in phrase}))
    states = [search.first()]
    number, depth, moves = {states[0]: 0}, [0], []
    for state in states:  # grows as new states are reached, those nearest to the start first
        row = [number[state]]  # the letter END leaves everything as it is
        for word in (None, *words):
            reached = search.after(state, word)
            if reached not in number:
                number[reached] = len(states)
                depth.append(depth[number[state]] + 1)
                states.append(reached)
            row.append(number[reached])
        moves.append(tuple(row))
        if len(states) > MAX_STATES:
            raise ValueError(f"more than {MAX_STATES} states")
    accepting = tuple(map(search.passes, states))
    shortest = min(d for d, accepts in zip(depth, accepting, strict=True) if accepts)
    return Automaton(words, tuple(moves), accepting, shortest)


def have_common_text(one: Automaton, other: Automaton) -> bool:
    """Whether some text is accepted by both."""
    words = {*one.words, *other.words}
    letters = [(OTHER, OTHER), *((one.letter(word), other.letter(word)) for word in words)]
    reached, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        state, others_state = waiting.pop()
        if one.accepting[state] and other.accepting[others_state]:
            return True
        after = {(one.moves[state][k], other.moves[others_state][j]) for k, j in letters}
        waiting += after - reached
        reached |= after
    return False


@dataclass(frozen=True)
class Automata:
    """One automaton a row, in tensors. With S states and K letters at most."""

    moves: Tensor  # (B, S, K)
    accepting: Tensor  # bool (B, S)

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


def scatter_logsumexp(x: Tensor, index: Tensor, size: int) -> Tensor:
    """log of the sum of exp(x) over the entries of the last dimension that share an index. (..., m) -> (..., size)"""
    shape = (*x.shape[:-1], size)
    top = x.new_full(shape, IMPOSSIBLE).scatter_reduce(-1, index, x.detach(), "amax")
    total = x.new_zeros(shape).scatter_add(-1, index, (x - top.gather(-1, index)).exp())
    return top + total.clamp(min=torch.finfo(x.dtype).tiny).log()


def stack(automata: Sequence[Automaton]) -> Automata:
    """Tables of one size; what fills them up is never reached."""
    states, letters = max(len(a.moves) for a in automata), max(a.letters for a in automata)
    moves = torch.zeros(len(automata), states, letters, dtype=torch.long)
    accepting = torch.zeros(len(automata), states, dtype=torch.bool)
    for row, automaton in enumerate(automata):
        moves[row, : len(automaton.moves), : automaton.letters] = torch.tensor(automaton.moves)
        accepting[row, : len(automaton.moves)] = torch.tensor(automaton.accepting)
    return Automata(moves, accepting)
