"""Infilling: a template's words are kept, its blanks are written.

The Vaults ___ near Café Adriatic .       any number of words
The Vaults is a ___{1-3} pub ___{4} .     one to three words; exactly four
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ctrlgen.diffusion.seeds import seeded
from ctrlgen.errors import UsageError, is_unicode, shown
from ctrlgen.text.joining import Given, Leaning
from ctrlgen.text.tokenizer import WordTokenizer

BLANK = re.compile(r"_{3,}(?:\{([^{}]*)\})?")
MOST_CHARACTERS = 10_000
SIZE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")
NO_WORD = -1  # id where a blank is


@dataclass(frozen=True)
class Blank:
    """How many words may fill it; `most` None is any number."""

    fewest: int = 1
    most: int | None = None


@dataclass(frozen=True)
class Template:
    """Words and blanks in order."""

    text: str
    parts: tuple[str | Blank, ...]
    ids: tuple[int, ...] = field(default=(), compare=False)  # of its words in order, as `word_ids` finds them
    given: tuple[Given, ...] = field(default=(), compare=False)  # its words, as they were typed

    @property
    def blanks(self) -> list[Blank]:
        return [part for part in self.parts if isinstance(part, Blank)]

    def lengths(self, longest: int) -> range:
        """How many words the whole text may have. Raises UsageError where even the fewest are beyond `longest`."""
        kept = len(self.parts) - len(self.blanks)
        fewest = kept + sum(blank.fewest for blank in self.blanks)
        most = kept + sum(longest if blank.most is None else blank.most for blank in self.blanks)
        if fewest > longest:
            raise UsageError(f"{self.text!r} takes {fewest} words or more; this model writes at most {longest}")
        return range(max(1, fewest), min(most, longest) + 1)

    def matches(self, words: Sequence[str]) -> bool:
        """Whether a text has the template's words in place, with blanks of the sizes allowed between them."""
        ends = {0}  # how many words the parts so far may have taken
        for part in self.parts:
            if isinstance(part, Blank):
                most = len(words) if part.most is None else part.most
                ends = {end + n for end in ends for n in range(part.fewest, most + 1) if end + n <= len(words)}
            else:
                ends = {end + 1 for end in ends if end < len(words) and words[end] == part}
        return len(words) in ends

    def fill(self, length: int, seed: int) -> tuple[str | None, ...]:
        """The kept words, and None for each word to be written, `length` in all. Depends on the seed alone.

        Blanks without bounds split the words between them in every way alike (Pólya's urn): each further word goes
        to a blank with probability proportional to one more than it has drawn already.
        """
        rng = seeded(seed)
        sizes = [blank.fewest for blank in self.blanks]
        for _ in range(length - len(self.parts) + len(self.blanks) - sum(sizes)):
            weights = [
                0.0 if size == blank.most else 1.0 + size - blank.fewest
                for size, blank in zip(sizes, self.blanks, strict=True)
            ]
            sizes[int(torch.multinomial(torch.tensor(weights), 1, generator=rng))] += 1
        words: list[str | None] = []
        for part in self.parts:
            words += [None] * sizes.pop(0) if isinstance(part, Blank) else [part]
        return tuple(words)

    def typed(self, words: Sequence[str | None]) -> tuple[Given | None, ...]:
        """How the kept words of a filled template were typed, None for each that was written."""
        given = iter(self.given)
        return tuple(None if word is None else next(given) for word in words)


def parse_template(text: str, tokenizer: WordTokenizer) -> Template:
    """A template's words, split as the model's, and its blanks. Raises UsageError naming what is wrong."""
    if not is_unicode(text):
        raise UsageError(f"{shown(text)}: not Unicode text")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{shown(text)}: a template has at most {MOST_CHARACTERS:,} characters")
    parts: list[str | Blank] = []
    given: list[Given] = []
    end = 0
    blanks = list(BLANK.finditer(text))
    if not blanks:
        raise UsageError(
            f"{shown(text)} has no blank to fill; write ___ where words are missing, or ___{{2-5}} for 2 to 5"
        )
    for found in blanks:
        words = given_words(text, end, found.start(), tokenizer)
        parts += [*(word.text for word in words), parse_blank(found)]
        given += words
        end = found.end()
    words = given_words(text, end, len(text), tokenizer)
    parts += [word.text for word in words]
    ids = word_ids([part if isinstance(part, str) else None for part in parts], tokenizer)
    return Template(text, tuple(parts), tuple(id for id in ids if id != NO_WORD), (*given, *words))


def new_words(text: str, tokenizer: WordTokenizer) -> list[str]:
    """The words of a template that the vocabulary lacks in any case."""
    words = [part for part in parse_template(text, tokenizer).parts if isinstance(part, str)]
    return [word for word, id in zip(words, word_ids(words, tokenizer), strict=True) if id == tokenizer.unk_id]


def given_words(text: str, start: int, end: int, tokenizer: WordTokenizer) -> list[Given]:
    """The words of a template from `start` to `end`, between which it has no blank."""
    pieces = tokenizer.pieces(text[start:end])
    words = []
    for number, piece in enumerate(pieces):
        first, last = number == 0, number == len(pieces) - 1
        words.append(
            Given(
                piece.text,
                text[start + piece.start : start + piece.end],
                None if first else text[start + pieces[number - 1].end : start + piece.start],
                Leaning(first and piece.start == 0 < start, last and start + piece.end == end < len(text)),
            )
        )
    return words


def parse_blank(found: re.Match[str]) -> Blank:
    if found[1] is None:
        return Blank()
    size = SIZE.fullmatch(found[1])
    if not size:
        raise UsageError(
            f"{shown(found[0])}: write the number of words, such as ___{{4}}, or a range, such as ___{{3-6}}"
        )
    fewest = int(size[1])
    most = int(size[2] or fewest)
    if not fewest <= most or most == 0:
        raise UsageError(f"{shown(found[0])}: the range must rise, to at least 1")
    return Blank(fewest, most)


def word_ids(words: Sequence[str | None], tokenizer: WordTokenizer) -> list[int]:
    """The ids of given words, of the same word in another case where only that is known; NO_WORD for None."""
    ids = []
    for word, id in zip(words, tokenizer.ids([word or "" for word in words]), strict=True):
        other = tokenizer.folded.get(word.casefold(), id) if word is not None else NO_WORD
        ids.append(id if word is not None and id != tokenizer.unk_id else other)
    return ids
