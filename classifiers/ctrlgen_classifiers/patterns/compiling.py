"""Patterns to automata."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ctrlgen.automata.automaton import MAX_STATES, Automaton, TooLargeError
from ctrlgen.automata.positions import Part, Positions
from ctrlgen_classifiers.patterns.syntax import Chain, Choice, Node, Repeat, Test
from ctrlgen_classifiers.patterns.word_sets import WordSets

MOST_POSITIONS = 2000  # words of a pattern with its repetitions written out


def compile_pattern(node: Node, words: WordSets) -> Automaton:
    """The minimal automaton of the texts that a pattern describes. Raises TooLargeError."""
    if size(node) > MOST_POSITIONS:
        raise TooLargeError(f"more than {MOST_POSITIONS} words with its repetitions written out")
    if shortest(node) >= MAX_STATES:
        raise TooLargeError(f"more than {MAX_STATES} states")  # one before each word, and one after the last
    tests = list(dict.fromkeys(leaves(node)))
    positions = Positions()
    whole = add(node, positions, {test: number for number, test in enumerate(tests)})
    return positions.automaton(whole, np.array([words.of(test) for test in tests]), words.special)


def add(node: Node, positions: Positions, number: Mapping[Test, int]) -> Part:
    """The part that a node stands for, its positions added. `number`: of each test."""
    match node:
        case Chain(parts=parts):
            return positions.chain([add(part, positions, number) for part in parts])
        case Choice(options=options):
            return positions.either([add(option, positions, number) for option in options])
        case Repeat(part=part, fewest=fewest, most=most):
            return positions.repeat(lambda: add(part, positions, number), fewest, most)
        case _:
            return positions.one(number[node])


def size(node: Node) -> int:
    """How many positions a pattern has with its repetitions written out."""
    match node:
        case Chain(parts=parts):
            return sum(map(size, parts))
        case Choice(options=options):
            return sum(map(size, options))
        case Repeat(part=part, fewest=fewest, most=most):
            return size(part) * (fewest + 1 if most is None else most)
        case _:
            return 1


def shortest(node: Node) -> int:
    """How many words the shortest text of a pattern has."""
    match node:
        case Chain(parts=parts):
            return sum(map(shortest, parts))
        case Choice(options=options):
            return min(map(shortest, options))
        case Repeat(part=part, fewest=fewest):
            return shortest(part) * fewest
        case _:
            return 1


def leaves(node: Node) -> list[Test]:
    """The tests of a pattern in the order written."""
    match node:
        case Chain(parts=parts):
            return [test for part in parts for test in leaves(part)]
        case Choice(options=options):
            return [test for option in options for test in leaves(option)]
        case Repeat(part=part):
            return leaves(part)
        case _:
            return [node]
