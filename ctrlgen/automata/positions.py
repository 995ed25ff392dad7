"""Position automata (Glushkov 1961), and the minimal deterministic ones of the same texts.

A position is a place of a pattern where a word may be read: it has a test that the word must pass, and positions that
may follow it. A part of a pattern is known by the positions where it may begin and end, so that parts are put together
without knowing more of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctrlgen.automata.automaton import (
    END,
    MAX_STATES,
    Automaton,
    Booleans,
    Integers,
    TooLargeError,
)

MOST_SUBSETS = 8_192  # states before an automaton is made minimal
BEGIN = -1


@dataclass(frozen=True)
class Special:
    """The ids of the tokens that are no words: <end> and <pad>, and <unk>, which stands for words of no test."""

    nothing: tuple[int, ...]
    unknown: int


@dataclass(frozen=True)
class Part:
    """Where a part of a pattern may begin and end, and whether it may have no word."""

    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    empty: bool = True


@dataclass
class Positions:
    """The positions of a pattern: the number of each one's test, and which may follow it."""

    test_of: list[int] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def one(self, test: int) -> Part:
        """One word that passes a test."""
        position = frozenset([len(self.test_of)])
        self.test_of.append(test)
        self.follow.append(set())
        return Part(position, position, empty=False)

    def chain(self, parts: Sequence[Part]) -> Part:
        """One part after another."""
        whole = Part()
        for part in parts:
            self.join(whole.last, part.first)
            whole = Part(
                whole.first | part.first if whole.empty else whole.first,
                part.last | whole.last if part.empty else part.last,
                whole.empty and part.empty,
            )
        return whole

    def either(self, parts: Sequence[Part]) -> Part:
        """One of several parts."""
        first = frozenset[int]().union(*(part.first for part in parts))
        last = frozenset[int]().union(*(part.last for part in parts))
        return Part(first, last, any(part.empty for part in parts))

    def repeat(self, new: Callable[[], Part], fewest: int, most: int | None) -> Part:
        """A part, made anew each time, `fewest` to `most` times; None is any number."""
        parts = [new() for _ in range(fewest)]
        if most is None:
            part = new()
            self.join(part.last, part.first)
            return self.chain([*parts, Part(part.first, part.last)])
        optional = Part()  # (a(a(a)?)?)?, from the inside
        for _ in range(most - fewest):
            once = self.chain([new(), optional])
            optional = Part(once.first, once.last)
        return self.chain([*parts, optional])

    def join(self, last: frozenset[int], first: frozenset[int]) -> None:
        for position in last:
            self.follow[position] |= first

    def automaton(self, whole: Part, tests: Booleans, special: Special) -> Automaton:
        """The minimal automaton of the texts of `whole`, by the subset construction. Raises TooLargeError.

        tests (T, V): which words each test holds of.
        """
        letter_of, columns = letters_of(tests, special)
        readable = [frozenset(p for p, test in enumerate(self.test_of) if column[test]) for column in columns]
        begin = frozenset([BEGIN])  # a state is the set of positions that may just have been read
        number, states, rows = {begin: 0}, [begin], []
        for state in states:
            ahead = frozenset[int]().union(*(whole.first if p == BEGIN else self.follow[p] for p in state))
            row = [number[state]]  # the letter END
            for positions in readable:
                after = ahead & positions
                if after not in number:
                    number[after] = len(states)
                    states.append(after)
                row.append(number[after])
            rows.append(row)
            if len(states) > MOST_SUBSETS:
                raise TooLargeError(f"more than {MAX_STATES} states")
        accepting = np.array([not whole.last.isdisjoint(s) or (whole.empty and s == begin) for s in states])
        written = np.zeros(1 + len(columns), dtype=bool)
        written[np.delete(letter_of, [*special.nothing, special.unknown])] = True
        automaton = Automaton(letter_of, np.array(rows), accepting, written).minimal()
        if automaton.states > MAX_STATES:
            raise TooLargeError(f"more than {MAX_STATES} states")
        return automaton


def letters_of(tests: Booleans, special: Special) -> tuple[Integers, list[Booleans]]:
    """The letter of each word (V,), and which tests (T,) hold of the words of letter 1, 2, and so on.

    tests (T, V). Words of which the same tests hold share a letter; OTHER is that of words told apart by none.
    """
    packed = np.ascontiguousarray(np.packbits(tests, axis=0).T)  # (V, T / 8), one signature a row
    whole_rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    words, signature = np.unique(whole_rows, return_index=True, return_inverse=True)[1:]  # one of each letter
    letter_of = 1 + signature
    letter_of[list(special.nothing)] = END
    return letter_of, [tests[:, word] for word in words]
