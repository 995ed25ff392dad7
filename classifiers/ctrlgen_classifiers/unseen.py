"""A value of a field that no training text had: `name: Chez Marcel`.

No head can know it. It is asked for in words: the phrase occurs, and no other value of the field does. The guide is an
automaton, and the words are certain (see `words.py`). Words that the vocabulary lacks take the vectors of a value that
texts had, as if it were written in its place: so the denoiser knows what they are, which no spelling tells.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

from ctrlgen.automata.automaton import MAX_STATES, Automaton, TooLargeError, intersect
from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.errors import UsageError, shown
from ctrlgen.text.joining import detokenize
from ctrlgen_classifiers.patterns.compiling import compile_pattern
from ctrlgen_classifiers.patterns.syntax import Choice, Node, Parser, Pattern, escape, without_quotes
from ctrlgen_classifiers.words import Wanted, Words


class UnseenValue(Words):
    kind = "field"
    summary = "a value of a field that no training text had"
    syntax = 'FIELD: VALUE, or FIELD: "VALUE" where it resembles another'
    example = "name: Chez Marcel"
    oracle = "matching"
    suite: ClassVar[str | None] = None

    def __init__(self, model: DiffusionLM, field: str, values: Sequence[str]):
        """values: those of the field that training texts had."""
        super().__init__(model)
        self.field, self.values = field, values

    def patterns(self, parser: Parser) -> list[Pattern]:
        """The value as it stands: no mark in it means a pattern."""
        value = without_quotes(parser.text)
        return [Pattern(self.phrase(value), value)]

    def phrase(self, value: str) -> Node:
        pattern = Parser(self.kind, escape(detokenize(self.tokenizer.split(value))), self.tokenizer.split).pattern()
        assert pattern is not None
        return pattern.node

    def others(self, value: str) -> dict[str, Node]:
        """The other values of the field that are no part of this one, nor it of them."""
        said = self.fold(value)
        return {other: self.phrase(other) for other in self.values if not overlap(self.fold(other), said)}

    def fold(self, value: str) -> str:
        return f" {' '.join(self.tokenizer.split(value)).casefold()} "

    def compile(self, target: Wanted) -> Automaton:
        (pattern,) = target.patterns
        others = {} if target.avoided else self.others(pattern.text)
        try:
            there = compile_pattern(self.around(pattern.node), self.words)
            if target.avoided:
                return there.complement()
            if not others:
                return there
            elsewhere = compile_pattern(self.around(Choice(tuple(others.values()))), self.words)
            return intersect([there, elsewhere.complement()], MAX_STATES)
        except TooLargeError as error:
            besides = f", and the {len(others)} values that are known are too many to rule out" if others else ""
            raise UsageError(
                f"{self.field}: {shown(pattern.text)} is new{besides} ({error}); ask for it with `words:`"
            ) from None

    def contradiction(self, target: Wanted, other: Classifier, others_target: Any) -> str | None:
        same_field = getattr(other, "name", getattr(other, "field", None)) == self.field
        avoided = target.avoided or getattr(others_target, "avoided", False)
        if same_field and not avoided and target != others_target:
            return f"a text has one {self.field}"
        return super().contradiction(target, other, others_target)

    def verdict(self, words: Sequence[str], target: Wanted) -> Verdict:
        verdict = super().verdict(words, target)
        if target.avoided or not verdict.success:
            return verdict
        found = [other for other, node in self.others(target.patterns[0].text).items() if self.find(words, node)]
        return Verdict(not found, f"reads as {found[0]}" if found else None)


def stand_in(words: Sequence[str], values: Sequence[Sequence[str]]) -> Sequence[str | None]:
    """The words of the known value that a new one stands for: of as many words, most of them the same in place.

    None for each word where no value has as many. Among equals the one that a hash of the new value picks, so that two
    values of a request seldom stand for the same.
    """
    alike = [value for value in values if len(value) == len(words)]
    if not alike:
        return [None] * len(words)
    same = [sum(a == b for a, b in zip(value, words, strict=True)) for value in alike]
    best = [value for value, count in zip(alike, same, strict=True) if count == max(same)]
    return best[zlib.crc32(" ".join(words).encode()) % len(best)]


def overlap(one: str, other: str) -> bool:
    return one in other or other in one
