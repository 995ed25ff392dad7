"""A whole text chosen at once among those that an automaton accepts.

Words are independent but for the automaton. So one recursion from the text's end to its start (Viterbi's, or the
backward one of a hidden Markov model: Rabiner 1989, section III) says what every state is worth to the words that may
follow, and the text is then read off, or drawn, from its start.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctrlgen.automata.automaton import END, Automaton

Floats = NDArray[np.float64]


def best_path(logits: Tensor, automaton: Automaton) -> list[int] | None:
    """The accepted text of n words with the greatest sum of logits (n, V), which are -inf where a word may not stand.

    None where no accepted text may stand there.
    """
    return read_off(logits, automaton, np.maximum, lambda scores: int(scores.argmax()))


def draw_path(logits: Tensor, automaton: Automaton, temperature: float, rng: torch.Generator) -> list[int] | None:
    """An accepted text of n words, with probability proportional to exp(sum of its logits (n, V) / temperature).

    None where no accepted text may stand there.
    """

    def draw(log_weights: Floats) -> int:
        p = np.exp(log_weights - log_weights.max())
        return int(torch.multinomial(torch.from_numpy(p), 1, generator=rng))

    return read_off(logits / temperature, automaton, np.logaddexp, draw)


def read_off(logits: Tensor, automaton: Automaton, join: np.ufunc, choose: Callable[[Floats], int]) -> list[int] | None:
    """`join` makes one value of those of all ways on; `choose` takes one of them, given their values."""
    x = logits.cpu().numpy().astype(np.float64)  # on the CPU, for not every device has them
    scores = of_letters(x, automaton, join)
    ahead = values_ahead(scores, automaton, join)
    if ahead[0][0] == -np.inf:
        return None
    text, state = [], 0
    for of_words, score, value in zip(x, scores, ahead[1:], strict=True):
        letter = choose(score + value[automaton.moves[state]])
        words = np.flatnonzero(automaton.letter_of == letter)
        text.append(int(words[choose(of_words[words])]))
        state = automaton.moves[state, letter]
    return text


def of_letters(x: Floats, automaton: Automaton, join: np.ufunc) -> Floats:
    """The logits (n, V) of each letter's words, joined. -> (n, K)"""
    by_letter = np.argsort(automaton.letter_of, kind="stable")
    letters, starts = np.unique(automaton.letter_of[by_letter], return_index=True)
    scores = np.full((len(x), automaton.letters), -np.inf)
    scores[:, letters] = join.reduceat(x[:, by_letter], starts, axis=1)
    scores[:, END] = -np.inf
    return scores


def values_ahead(scores: Floats, automaton: Automaton, join: np.ufunc) -> list[Floats]:
    """What the ways from each state to an accepting one are worth together: n + 1 of (S,)."""
    value = np.where(automaton.accepting, 0.0, -np.inf)
    values = [value]
    for score in scores[::-1]:
        value = join.reduce(score + value[automaton.moves], axis=1)  # (S, K) -> (S,)
        values.append(value)
    return values[::-1]
