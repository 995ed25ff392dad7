"""Deterministic finite automata over the words of a vocabulary.

An automaton reads letters, not words: a letter is a set of words that the automaton never tells apart. So its table
has a handful of columns, however large the vocabulary is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

END, OTHER = 0, 1  # the letters of <end> and <pad>, which change nothing, and of the words not told apart
MAX_STATES = 512  # of one control: nine words in any order
MAX_PRODUCT = 16_384  # of all controls of a text together
USUAL_LENGTHS = 64  # words; lengths up to this are worked out at once

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class TooLargeError(ValueError):
    """An automaton would have more states, or a pattern more words, than are allowed. The message says how many."""


@dataclass(frozen=True, eq=False)
class Automaton:
    """It starts in state 0 and moves from state s by letter k to moves[s, k]."""

    letter_of: Integers  # (V,), the letter of each word
    moves: Integers  # (S, K)
    accepting: Booleans  # (S,)
    written: Booleans  # (K,), whether a text can have a word of this letter
    _lengths: dict[int, bool] = field(default_factory=dict, init=False, repr=False)  # those accepted, once worked out

    @property
    def states(self) -> int:
        return len(self.moves)

    @property
    def letters(self) -> int:
        return self.moves.shape[1]

    @property
    def start(self) -> Booleans:
        """The state before any word, among all (S,)."""
        return np.arange(self.states) == 0

    def accepts(self, ids: Sequence[int]) -> bool:
        """Whether the text of these word ids is accepted."""
        state = 0
        for letter in self.letter_of[list(ids)]:
            state = self.moves[state, letter]
        return bool(self.accepting[state])

    def accepts_length(self, length: int) -> bool:
        """Whether some text of `length` words is accepted."""
        if length not in self._lengths:
            reached = self.start
            for n in range(max(length, USUAL_LENGTHS) + 1):
                self._lengths[n] = bool((reached & self.accepting).any())
                reached = self.after_any_word(reached)
        return self._lengths[length]

    @property
    def is_empty(self) -> bool:
        """Whether no text is accepted."""
        reached, before = self.start, None
        while before is None or (reached != before).any():
            before = reached
            reached = reached | self.after_any_word(reached)
        return not (reached & self.accepting).any()

    def after_any_word(self, reached: Booleans) -> Booleans:
        """The states (S,) that one more word leads to from those reached."""
        after = np.zeros_like(reached)
        after[self.moves[reached][:, self.written]] = True
        return after

    def after_word(self, reached: Booleans, word: int) -> Booleans:
        """The states (S,) that the word of this id leads to from those reached."""
        after = np.zeros_like(reached)
        after[self.moves[reached, self.letter_of[word]]] = True
        return after

    def accepts_some(self, ids: Sequence[int | None]) -> bool:
        """Whether a text of these word ids, with any word where None stands, is accepted."""
        reached = self.start
        for id in ids:
            reached = self.after_any_word(reached) if id is None else self.after_word(reached, id)
        return bool((reached & self.accepting).any())

    def complement(self) -> Automaton:
        """The automaton of all other texts."""
        return Automaton(self.letter_of, self.moves, ~self.accepting, self.written)

    def minimal(self) -> Automaton:
        """The automaton with fewest states that accepts the same texts (Moore 1956): classes of states are split
        until the states of one class move into the same classes by every letter. States at different distances
        from an accepting one are told apart at once, or each round of a long chain would split off a single state."""
        classes = renumber(self.distances())
        while True:
            finer, count = classes, int(classes.max()) + 1
            for letter in range(self.letters):
                finer = renumber(finer * count + classes[self.moves[:, letter]])
            if finer.max() == classes.max():
                break
            classes = finer
        first = np.unique(classes, return_index=True)[1]  # a state of each class
        return reachable(self.letter_of, classes[self.moves[first]], self.accepting[first], self.written, classes[0])

    def distances(self) -> Integers:
        """How many letters lead from each state (S,) to the nearest accepting one; -1 where none do."""
        distances = np.where(self.accepting, 0, -1)
        away, steps = np.flatnonzero(~self.accepting), 0
        while True:
            reached = (distances[self.moves[away]] == steps).any(axis=1)
            if not reached.any():
                return distances
            steps += 1
            distances[away[reached]] = steps
            away = away[~reached]


def any_text(vocabulary: int) -> Automaton:
    """The automaton of all texts."""
    return Automaton(np.full(vocabulary, OTHER), np.zeros((1, 2), dtype=np.int64), np.ones(1, bool), np.ones(2, bool))


def renumber(values: Integers) -> Integers:
    """The same partition, its classes numbered from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def reachable(letter_of: Integers, moves: Integers, accepting: Booleans, written: Booleans, start: int) -> Automaton:
    """The automaton of the states that letters lead to from `start`, numbered in the order of their distance."""
    order, number = [int(start)], {int(start): 0}
    for state in order:
        for after in moves[state].tolist():
            if after not in number:
                number[after] = len(order)
                order.append(after)
    new = np.empty(len(moves), dtype=np.int64)
    new[order] = np.arange(len(order))
    return Automaton(letter_of, new[moves[order]], accepting[order], written)


def intersection(one: Automaton, other: Automaton, limit: int = MAX_PRODUCT) -> Automaton:
    """The minimal automaton of the texts that both accept. Raises TooLargeError."""
    pairs, letter_of = np.unique(one.letter_of * other.letters + other.letter_of, return_inverse=True)
    ones, others = np.divmod(pairs, other.letters)  # (K,)
    written = one.written[ones] & other.written[others]
    number: dict[tuple[int, int], int] = {(0, 0): 0}
    states, rows = [(0, 0)], []
    for a, b in states:
        row = []
        for after in zip(one.moves[a, ones].tolist(), other.moves[b, others].tolist(), strict=True):
            if after not in number:
                number[after] = len(states)
                states.append(after)
            row.append(number[after])
        rows.append(row)
        if len(states) > limit:
            raise TooLargeError(f"more than {limit} states")
    a, b = np.array(states).T
    accepting = one.accepting[a] & other.accepting[b]
    return Automaton(letter_of.astype(np.int64), np.array(rows), accepting, written).minimal()


def intersect(automata: Sequence[Automaton], limit: int = MAX_PRODUCT) -> Automaton:
    """The minimal automaton of the texts that all accept, the smallest first. Raises TooLargeError."""
    first, *rest = sorted(automata, key=lambda automaton: automaton.states)
    for automaton in rest:
        first = intersection(first, automaton, limit)
    return first


@lru_cache(maxsize=512)
def product(automata: tuple[Automaton, ...]) -> Automaton:
    """`intersect`, remembered: a request asks for the product of the same automata many times."""
    return intersect(automata)
