"""Which words a part of a pattern stands for: the one place where a word as written meets the vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ctrlgen.automata.automaton import Booleans
from ctrlgen.automata.positions import Special
from ctrlgen.errors import CtrlgenError, did_you_mean
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen_classifiers.patterns.syntax import AnyWord, Inflected, Spelled, Tagged, Test, Word

LONGEST_EXPRESSION = 200  # characters
MOST_MEMORY = 1 << 20  # bytes of a compiled expression
GUESSED_TAGS = ("NOUN", "VERB", "ADJ")  # how a word that no dictionary has may be inflected

Readings = Mapping[str, Booleans]  # the words (V,) that may have each tag


class WordSets:
    """The words of one vocabulary that pass the tests of patterns. `readings` loads the lexicon when it is needed."""

    def __init__(self, tokenizer: WordTokenizer, readings: Callable[[], Readings]):
        self.tokenizer, self.readings = tokenizer, readings
        nothing = {tokenizer.pad_id, *tokenizer.opening, *tokenizer.closing}
        self.special = Special(tuple(sorted(nothing)), tokenizer.unk_id)
        self.ids: dict[str, list[int]] = {}  # by the word in lower case
        for id, word in enumerate(tokenizer.words):
            self.ids.setdefault(word.casefold(), []).append(id)
        self._known: dict[Test, Booleans] = {}

    def of(self, test: Test) -> Booleans:
        """The words that pass. bool (V,); of special tokens nothing is said but that they are some word."""
        if test not in self._known:
            self._known[test] = self._of(test)
        return self._known[test]

    def _of(self, test: Test) -> Booleans:
        words = self.tokenizer.words
        match test:
            case Word() | Inflected():
                passing = np.zeros(len(words), dtype=bool)
                passing[[id for form in forms_of(test) for id in self.ids.get(form, [])]] = True
            case Tagged(tag=tag):
                passing = self.reading(tag)
            case AnyWord():
                return np.ones(len(words), dtype=bool)
            case _:
                passing = np.fromiter((self.holds(test, word) for word in words), bool, len(words))
        passing[[*self.special.nothing, self.special.unknown]] = False
        return passing

    def holds(self, test: Test, word: str) -> bool:
        """Whether a word, in the vocabulary or not, passes."""
        match test:
            case AnyWord():
                return True
            case Word() | Inflected():
                return word.casefold() in forms_of(test)
            case Spelled(expression=expression):
                return compiled(expression).fullmatch(word) is not None
            case Tagged(tag=tag):
                return any(self.reading(tag)[id] for id in self.ids.get(word.casefold(), []))

    def reading(self, tag: str) -> Booleans:
        """The words (V,) that may have a tag. A word that the lexicon lacks, for it came later, may have none."""
        known = self.readings()
        may_be = known[tag if tag in known else tag.upper()]
        return np.pad(may_be, (0, len(self.tokenizer.words) - len(may_be)))

    def tags_of(self, word: str) -> list[str]:
        """The tags that a word of the vocabulary may have. Raises CtrlgenError where the lexicon is missing."""
        ids = self.ids.get(word.casefold(), [])
        return [tag for tag in self.readings() if self.reading(tag)[ids].any()]

    def refuse(self, test: Test) -> str | None:
        """Why no text can have a word that passes, or None. Raises CtrlgenError where the lexicon is missing."""
        match test:
            case Spelled(expression=expression):
                if len(expression) > LONGEST_EXPRESSION:
                    return f"an expression of more than {LONGEST_EXPRESSION} characters"
                try:
                    compiled(expression)
                except ValueError as error:
                    return f"not a regular expression: {error}"
            case Tagged(tag=tag):
                known = self.readings()
                if tag not in known and tag.upper() not in known:
                    hint = did_you_mean(tag.upper(), list(known)) or f" Known are {' '.join(known)}."
                    return f"unknown tag {tag!r}.{hint}"
        if self.of(test).any():
            return None
        match test:
            case Word(text=text):
                hint = did_you_mean(text, self.tokenizer.words, count=3)
                return f"the word {text!r} is not in this model's vocabulary.{hint}"
            case Spelled():
                return f"no word of this model's vocabulary matches {test} as a whole; .* stands for any characters"
            case _:
                return f"this model's vocabulary has no word for {test}"


def forms_of(test: Word | Inflected) -> frozenset[str]:
    """The words that a written one stands for, in lower case."""
    written = unicodedata.normalize("NFC", test.text).casefold()
    return frozenset([written]) if isinstance(test, Word) else inflections(written)


@lru_cache(maxsize=4096)
def inflections(word: str) -> frozenset[str]:
    """The word and its inflected forms, in lower case, by lemminflect's dictionary, else by its rules."""
    try:
        from lemminflect import getAllInflections, getAllInflectionsOOV, getAllLemmas
    except ImportError as error:
        raise CtrlgenError("inflections such as rain~ need lemminflect: pip install lemminflect") from error
    forms = {word}
    lemmas = getAllLemmas(word)
    for tag, found in lemmas.items():
        for lemma in found:
            for inflected in getAllInflections(lemma, tag).values():
                forms.update((lemma, *inflected))
    if not lemmas:
        for tag in GUESSED_TAGS:
            for inflected in getAllInflectionsOOV(word, tag).values():
                forms.update(inflected)
    return frozenset(form.casefold() for form in forms)


@lru_cache(maxsize=256)
def compiled(expression: str) -> Any:
    """A compiled expression, matched in time linear in the word by RE2. Raises ValueError."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MOST_MEMORY
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        said = error.args[0]
        raise ValueError(said.decode() if isinstance(said, bytes) else said) from None
