"""Words that must, or with `not` must not, occur: patterns over words, at a place of the text or as the whole of it.

    words: cheap, city centre      each of them somewhere, in any order; `not words:` none of them
    starts: Located near           the text begins so
    ends: near the river           the text ends so; one closing mark may follow, for few people write it
    matches: The * is ... pub .    the whole text

Each is a pattern in the language of `patterns/syntax.py`. The guide is no network: an automaton over the denoiser's
word probabilities says how probable it is that a text with these words would pass, and the last words are chosen
within it. The oracle matches the finished text with the pattern. Case never matters, but in expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from random import Random
from typing import Any, ClassVar

from torch import Tensor

from ctrlgen.automata.automaton import MAX_STATES, Automaton, TooLargeError, intersect, product
from ctrlgen.automata.recursion import Automata, stack
from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.controls.template import Blank, word_ids
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.text.joining import detokenize
from ctrlgen_classifiers.patterns.compiling import compile_pattern, leaves
from ctrlgen_classifiers.patterns.matching import ends, spans
from ctrlgen_classifiers.patterns.sampled import pattern_of
from ctrlgen_classifiers.patterns.syntax import GAP, AnyWord, Chain, Choice, Node, Parser, Pattern, Repeat, Word, escape
from ctrlgen_classifiers.patterns.word_sets import Readings, WordSets
from ctrlgen_classifiers.pos import Pos

MOST_DRAWN = 3  # words asked for at once in evaluation
CLOSING = (".", "!", "?")
CLOSED = Repeat(Choice(tuple(map(Word, CLOSING))), 0, 1)
MOST_TOGETHER = 64  # patterns of one control, all of which are asked for
KEPT_AUTOMATA = 1024


@dataclass(frozen=True)
class Wanted:
    """Patterns, all of which are asked for, or none with `avoided`."""

    patterns: tuple[Pattern, ...]
    avoided: bool = False


class Words(Classifier):
    kind = "words"
    summary = "words, phrases or patterns that occur somewhere"
    syntax = 'words: PATTERN, PATTERN, ... (one with a comma in "quotes"; with not: none of them)'
    example = "words: cheap, city centre"
    oracle = "matching"
    trained: ClassVar[bool] = False
    suite: ClassVar[str | None] = "words"

    def __init__(self, model: DiffusionLM):
        self.tokenizer = model.tokenizer
        self.words = WordSets(model.tokenizer, cache(partial(lexicon, model)))
        self.compiled = lru_cache(KEPT_AUTOMATA)(self.compile)

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Words:
        return cls(model)

    def parse(self, value: str) -> Wanted:
        parser = Parser(self.kind, value, self.tokenizer.split)
        wanted = Wanted(tuple(self.patterns(parser)))
        if not wanted.patterns:
            raise UsageError(f"{self.kind}: no word is given; write for example `{self.example}`")
        for test in (test for pattern in wanted.patterns for test in leaves(pattern.node)):
            reason = self.words.refuse(test)
            if reason is not None:
                if isinstance(test, Word | AnyWord):
                    raise UsageError(f"{self.kind}: {reason}")
                raise parser.error(test.at, reason)
        return wanted

    def new_words(self, value: str) -> dict[str, str | None]:
        """Those written as they are; what a pattern may stand for otherwise is in the vocabulary."""
        patterns = self.patterns(Parser(self.kind, value, self.tokenizer.split))
        written = (test for pattern in patterns for test in leaves(pattern.node) if isinstance(test, Word))
        return dict.fromkeys(test.text for test in written if not self.words.of(test).any())

    def for_model(self, model: DiffusionLM) -> Words:
        wider = type(self)(model)
        wider.words.readings = self.words.readings  # the lexicon is that of the trained vocabulary
        return wider

    def patterns(self, parser: Parser) -> list[Pattern]:
        """The patterns of a list."""
        return parser.patterns()

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        return [self.value_of(words, rng) for words in texts]

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """One to three of its words."""
        known = [word for word in dict.fromkeys(words) if word in self.tokenizer and word.isalpha()]
        return ", ".join(rng.sample(known, min(len(known), rng.randint(1, MOST_DRAWN)))) or None

    def negate(self, target: Wanted) -> Wanted:
        return replace(target, avoided=True)

    def asks(self, target: Wanted) -> Asks | None:
        """Phrases of given words; None where a pattern says more."""
        phrases = [literal(pattern.node) for pattern in target.patterns]
        return None if target.avoided or None in phrases else self.asking(tuple(filter(None, phrases)))

    def asking(self, phrases: tuple[tuple[str, ...], ...]) -> Asks | None:
        """Phrases at this kind's place."""
        return Asks(phrases=phrases)

    def parts_of(self, target: Wanted) -> list[Wanted]:
        """Each pattern alone."""
        return [replace(target, patterns=(pattern,)) for pattern in target.patterns]

    def contradiction(self, target: Wanted, other: Classifier, others_target: Any) -> str | None:
        others = other.automaton(others_target)
        if others is None:  # a kind that has none
            return None
        try:
            return "no text obeys both" if product((self.automaton(target), others)).is_empty else None
        except TooLargeError:
            return None

    def around(self, pattern: Node) -> Node:
        """The pattern of the whole texts that have `pattern` at this kind's place."""
        return Chain((GAP, pattern, GAP))

    def automaton(self, target: Wanted) -> Automaton:
        """The automaton of the texts that have the target. Raises UsageError where it would be too large."""
        return self.compiled(target)

    def compile(self, target: Wanted) -> Automaton:
        nodes = list(dict.fromkeys(pattern.node for pattern in target.patterns))
        try:
            if len(nodes) > MOST_TOGETHER and not target.avoided:
                raise TooLargeError(f"more than {MOST_TOGETHER} patterns")
            if target.avoided:
                return compile_pattern(self.around(Choice(tuple(nodes))), self.words).complement()
            return intersect([compile_pattern(self.around(node), self.words) for node in nodes], MAX_STATES)
        except TooLargeError as error:
            advice = "too many words for one control; give the rest to another -c" if len(nodes) > 1 else "too large"
            raise UsageError(f"{self.kind}: {advice} ({error})") from None

    def allows_length(self, target: Wanted, length: int) -> bool:
        return self.automaton(target).accepts_length(length)

    def allows_parts(self, target: Wanted, parts: Sequence[str | Blank]) -> bool:
        automaton = self.automaton(target)
        ids = word_ids([part if isinstance(part, str) else None for part in parts], self.tokenizer)
        reached = automaton.start
        for part, id in zip(parts, ids, strict=True):
            if isinstance(part, str):
                reached = automaton.after_word(reached, id)
                continue
            for _ in range(part.fewest):
                reached = automaton.after_any_word(reached)
            more = automaton.states if part.most is None else min(automaton.states, part.most - part.fewest)
            for _ in range(more):  # after as many words as there are states nothing new is reached
                reached = reached | automaton.after_any_word(reached)
        return bool((reached & automaton.accepting).any())

    def encode(self, targets: Sequence[Wanted], lengths: Sequence[int]) -> Automata:
        return stack([self.automaton(target) for target in targets])

    def log_prob(self, denoised: Denoised, encoded: Automata) -> Tensor:
        _, log_q = read(denoised, encoded)
        return encoded.log_prob(log_q).to(denoised.logits)

    def word_log_prob(self, denoised: Denoised, encoded: Automata) -> Tensor:
        """log p(target | this word here, the other positions as they are). (B, n, V)"""
        log_p, log_q = read(denoised, encoded)
        return encoded.word_log_prob(log_p, log_q)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Wanted]) -> list[Verdict]:
        if self.tokenizer.truecase:  # expressions see a word as it is inside a sentence
            texts = [self.tokenizer.truecased(words) for words in texts]
        return [self.verdict(words, target) for words, target in zip(texts, targets, strict=True)]

    def verdict(self, words: Sequence[str], target: Wanted) -> Verdict:
        found = {pattern.text: self.find(words, pattern.node) for pattern in target.patterns}
        if target.avoided:
            there = {text: spans for text, spans in found.items() if spans}
            failed = {place for spans in there.values() for span in spans for place in span}
            detail = "; ".join(f"{text!r} at position {spans[0].start + 1}" for text, spans in there.items())
            return Verdict(not there, detail or None, tuple(sorted(failed)), 1 - len(there) / len(found))
        missing = [text for text, spans in found.items() if not spans]
        detail = f"missing: {', '.join(map(repr, missing))}"
        return Verdict(not missing, detail if missing else None, correct=1 - len(missing) / len(found))

    def find(self, words: Sequence[str], pattern: Node) -> list[range]:
        """The words that a pattern takes, at this kind's place."""
        return spans(pattern, words, self.words.holds)


class Starts(Words):
    kind = "starts"
    summary = "the words, or the pattern, that the text begins with"
    syntax = "starts: PATTERN"
    example = "starts: Located near"
    suite: ClassVar[str | None] = None

    def patterns(self, parser: Parser) -> list[Pattern]:
        """One pattern, which may stand in quotes."""
        pattern = parser.pattern()
        return [] if pattern is None else [pattern]

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """Its first two words."""
        return escape(detokenize(words[:2])) if all(word in self.tokenizer for word in words[:2]) else None

    def asking(self, phrases: tuple[tuple[str, ...], ...]) -> Asks | None:
        return Asks(begins=phrases[0])

    def around(self, pattern: Node) -> Node:
        return Chain((pattern, GAP))

    def find(self, words: Sequence[str], pattern: Node) -> list[range]:
        return [span for span in spans(pattern, words, self.words.holds) if span.start == 0]


class Ends(Starts):
    kind = "ends"
    summary = "the words, or the pattern, that the text ends with; a closing mark may follow"
    syntax = "ends: PATTERN"
    example = "ends: near the river"

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """Its last two words before a closing mark."""
        closed = bool(words) and words[-1] in CLOSING
        last = words[-2 - closed : len(words) - closed]
        return escape(detokenize(last)) if last and all(word in self.tokenizer for word in last) else None

    def asking(self, phrases: tuple[tuple[str, ...], ...]) -> Asks | None:
        return None

    def around(self, pattern: Node) -> Node:
        return Chain((GAP, pattern, CLOSED))

    def find(self, words: Sequence[str], pattern: Node) -> list[range]:
        closed = bool(words) and words[-1] in CLOSING
        lasts = (len(words), len(words) - closed)
        return [span for span in spans(pattern, words, self.words.holds) if span.stop in lasts]


class Matches(Starts):
    kind = "matches"
    summary = "a pattern of the whole text"
    syntax = "matches: PATTERN (* one word; ... any words; (a|b) (very)* pub{2,3} rain~ <NOUN> /.*ing/)"
    example = "matches: The * is a (cheap|nice) pub ..."

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """Patterns that the texts match, with slots, gaps, alternatives from the other texts, counts and classes."""
        others = [word for words in texts for word in words if word in self.tokenizer]
        return [pattern_of(words, others, self.tokenizer, self.tags_of, rng) for words in texts]

    def tags_of(self, word: str) -> list[str]:
        """The tags that a word may have, none where this model has no lexicon."""
        try:
            return self.words.tags_of(word)
        except CtrlgenError:
            return []

    def asking(self, phrases: tuple[tuple[str, ...], ...]) -> Asks | None:
        return None

    def around(self, pattern: Node) -> Node:
        return pattern

    def find(self, words: Sequence[str], pattern: Node) -> list[range]:
        whole = len(words) in ends(pattern, words, frozenset([0]), self.words.holds)
        return [range(len(words))] if whole else []


def literal(pattern: Node) -> tuple[str, ...] | None:
    """The words of a pattern that is nothing but given words in a row, or None."""
    items = pattern.parts if isinstance(pattern, Chain) else (pattern,)
    words = tuple(item.text for item in items if isinstance(item, Word))
    return words if words and len(words) == len(items) else None


def read(denoised: Denoised, automata: Automata) -> tuple[Tensor, Tensor]:
    """log p of each word (B, n, V) and of each letter (B, n, K) of a batch's automata."""
    log_p = denoised.logits.log_softmax(-1)
    return log_p, automata.letters(log_p, denoised.lengths)


def lexicon(model: DiffusionLM) -> Readings:
    """The words that may have each tag, by the lexicon of this model's `pos`. Raises CtrlgenError where it has none."""
    return Pos.load(model, Pos.kind).readings()
