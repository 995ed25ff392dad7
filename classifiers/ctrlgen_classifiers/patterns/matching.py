"""Where a pattern stands in a finished text: the oracle, which knows no automaton and needs no vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ctrlgen_classifiers.patterns.syntax import Chain, Choice, Node, Repeat, Test

Holds = Callable[[Test, str], bool]  # whether a word passes a test


def ends(node: Node, words: Sequence[str], starts: frozenset[int], holds: Holds) -> frozenset[int]:
    """Where the pattern may end, counted in words from 0, if it begins at one of `starts`."""
    match node:
        case Chain(parts=parts):
            for part in parts:
                starts = ends(part, words, starts, holds)
            return starts
        case Choice(options=options):
            return frozenset().union(*(ends(option, words, starts, holds) for option in options))
        case Repeat(part=part, fewest=fewest, most=most):
            for _ in range(fewest):
                starts = ends(part, words, starts, holds)
            reached = newest = starts
            more = len(words) if most is None else most - fewest
            while more > 0 and newest:
                newest = ends(part, words, newest, holds) - reached
                reached |= newest
                more -= 1
            return reached
        case _:
            return frozenset(at + 1 for at in starts if at < len(words) and holds(node, words[at]))


def spans(node: Node, words: Sequence[str], holds: Holds) -> list[range]:
    """Every stretch of words that the pattern may take, in the order of their first words, shorter ones first."""
    every = ((start, ends(node, words, frozenset([start]), holds)) for start in range(len(words) + 1))
    return [range(start, stop) for start, stops in every for stop in sorted(stops)]
