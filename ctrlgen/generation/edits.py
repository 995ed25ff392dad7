"""What an edit is: a source with what is asked of it, the ways it may be changed, what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import Control, Statement
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.request import Request, Sample
from ctrlgen.text.alignment import Change, changes, common_words
from ctrlgen.text.splitting import Piece

LEAST_LIKELY = -7.0  # log p of a word, given all others, in a text that reads well
LEAST_BESIDE = -2.5  # log p of what else the source says, in a text that says it

Words = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A text to be edited. Places of words that stay: of `kept` in any case, of `unknown` if they do no harm."""

    text: str
    pieces: tuple[Piece, ...]
    request: Request
    kept: frozenset[int]
    unknown: frozenset[int]  # words that the model does not know, and names that they are part of
    lengths: frozenset[int]  # numbers of words that the controls allow
    nearness: Classifier  # which says how near texts are to it

    @property
    def words(self) -> Words:
        return tuple(piece.text for piece in self.pieces)


@dataclass(frozen=True, eq=False)
class Task:
    """One text to be made of a source."""

    source: Source
    given: Job  # the source as it stands
    obeys: bool  # already
    blamed: tuple[float, ...]  # how much each word speaks against the controls, 0 where it does not
    beside: tuple[Tensor | None, ...]  # what else each group of classifiers reads in the source, encoded

    @property
    def fixed(self) -> frozenset[int]:
        """Places of words that stay."""
        return self.source.kept | {place for place in self.source.unknown if not self.blamed[place]}

    @property
    def pivot(self) -> int:
        """Where words may best be added: behind the word most to blame, or at the end, before a closing mark."""
        if any(self.blamed):
            return self.blamed.index(max(self.blamed)) + 1
        return self.end

    @property
    def end(self) -> int:
        """Behind the last word, before a closing mark."""
        words = self.source.words
        return len(words) - (not words[-1].isalnum())

    def job(self, words: Sequence[str | None], candidate: int = 0, more: Sequence[Control] = ()) -> Job:
        """A text of these words, None for one to be written, under what was asked for and `more` controls."""
        request = self.given.request
        if more:
            request = replace(request, controls=(*request.controls, *more))
        return replace(self.given, request=request, candidate=candidate, length=len(words), kept=tuple(words))


def near(nearness: Classifier, words: Sequence[str | None], weight: float = 1.0) -> Control:
    """The control that asks for nearness to these words; any word may stand for None."""
    value = nearness.value_near(words)
    assert value is not None
    statement = Statement(f"{nearness.kind}: {value}", nearness.kind, value, weight)
    return Control(statement, nearness, nearness.parse(value))


@dataclass(frozen=True)
class Version:
    """A way to change a source."""

    words: Words
    obeys: bool
    score: float  # log p(text) + log p(source | text) + log p(controls | text), weighted
    worst: float  # log p of the least likely word at a change, given all others
    beside: float  # log p of what else the source says

    @property
    def settled(self) -> bool:
        """Whether nothing better need be looked for."""
        return self.obeys and self.worst > LEAST_LIKELY and self.beside > LEAST_BESIDE


@dataclass(frozen=True)
class Edited:
    """What became of a text. The sample has the new text and its verdicts."""

    source: Source
    sample: Sample

    @property
    def changes(self) -> list[Change]:
        """What was changed, in order."""
        return changes(self.source.words, self.sample.tokens)

    @property
    def kept(self) -> float:
        """The share of the source's words that are in the text, in order."""
        return len(common_words(self.source.words, self.sample.tokens)) / len(self.source.pieces)

    @property
    def new(self) -> set[int]:
        """Places of the words that the source does not have."""
        same = {j for _, j in common_words(self.source.words, self.sample.tokens)}
        return set(range(len(self.sample.tokens))) - same

    def as_json(self) -> dict[str, Any]:
        """The answer's documented JSON form."""
        words = self.source.words
        made = [{"at": c.start, "from": words[c.start : c.end], "to": c.words} for c in self.changes]
        return self.sample.as_json() | {"source": self.source.text, "kept": self.kept, "changes": made}
