"""What is evaluated: anything that writes texts for requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ctrlgen.controls.classifier import Verdict
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.targets import FRAME, Asked, Words
from ctrlgen.files import from_json, read_lines
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample
from ctrlgen.settings import Settings

OURS, GIVEN, HUMAN = "ctrlgen", "given", "human"  # names of systems


@dataclass(frozen=True)
class Draft:
    """A text that a system wrote for a request. Verdicts and scores as far as it knows them."""

    request: int
    index: int
    words: Words
    verdicts: tuple[Verdict, ...] | None = None
    scores: tuple[float, ...] | None = None

    @classmethod
    def of(cls, request: int, index: int, sentences: Sequence[Sample]) -> Draft:
        """A text of ctrlgen's, one sample or several after one another."""
        results = [result for sample in sentences for result in sample.controls]
        return cls(
            request,
            index,
            tuple(word for sample in sentences for word in sample.tokens),
            tuple(result.verdict for result in results),
            tuple(result.score for result in results),
        )


class System(Protocol):
    """Whoever writes texts: ctrlgen, a baseline, or a file of texts."""

    name: str
    notes: list[str]  # what it could not be asked

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        """n texts for each request, in order. `seconds`: what ctrlgen took for the same requests, if it was asked."""
        ...


class Ours:
    """The diffusion model under guidance."""

    name = OURS

    def __init__(self, generator: Generator, settings: Settings):
        self.generator, self.settings = generator, settings
        self.notes: list[str] = []

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        numbered = [replace(request, id=number) for number, request in enumerate(requests)]
        samples = self.generator.generate(numbered, self.settings)
        return [Draft.of(sample.id, sample.index, [sample]) for sample in samples]


class Given:
    """Texts of another system, in the order of the targets.

    A file of plain lines, or of JSON Lines with `text` or `tokens`, or with a list of one text, as Diffusion-LM writes
    them. A blank line is an empty text. Diffusion-LM's START, END and PAD are taken off.
    """

    def __init__(self, path: Path, generator: Generator, name: str = GIVEN):
        self.path, self.name = path, name
        try:
            lines = read_lines(path)
        except (OSError, UnicodeDecodeError) as error:
            raise CtrlgenError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self.texts = [self.words(line, generator) for line in lines]
        self.taken = 0
        self.notes: list[str] = []

    def words(self, line: str, generator: Generator) -> Words:
        try:
            read = from_json(line)
        except ValueError:
            read = line
        if isinstance(read, dict) and isinstance(read.get("tokens"), list):
            return tuple(map(str, read["tokens"]))
        text = read.get("text") if isinstance(read, dict) else line
        if isinstance(read, list) and len(read) == 1:
            text = read[0]
        if not isinstance(text, str):
            raise UsageError(f"{self.path}: a line has neither `text` nor `tokens`: {line[:60]}")
        return tuple(generator.model.tokenizer.split(unframed(text)))

    def leave_out(self, asked: Iterable[Asked], n: int) -> None:
        """Drop the texts of targets that the model does not understand, if the file has a text for every target."""
        understood = [kept for of_suite in asked for kept in of_suite.understood for _ in range(n)]
        if len(self.texts) == len(understood):
            self.texts = [text for text, kept in zip(self.texts, understood, strict=True) if kept]

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        places = [(number, index) for number, request in enumerate(requests) for index in range(request.n)]
        texts = self.texts[self.taken : self.taken + len(places)]
        if len(texts) < len(places):
            raise CtrlgenError(f"{self.path}: holds {len(self.texts)} texts, but the targets need more")
        self.taken += len(places)
        return [Draft(*place, words) for place, words in zip(places, texts, strict=True)]

    def refuse_leftovers(self) -> None:
        """Raises CtrlgenError where there are more texts than targets: they would not belong together."""
        if self.taken != len(self.texts):
            raise CtrlgenError(
                f"{self.path}: holds {len(self.texts)} texts, but the targets need {self.taken}: see --limit and -n"
            )


def unframed(text: str) -> str:
    """A text as Diffusion-LM writes it, `START The pub . END PAD PAD`, without its frame; another one as it is."""
    start, end = FRAME
    words = text.split()
    if words[:1] != [start]:
        return text
    words = words[1:]
    return " ".join(word for word in (words[: words.index(end)] if end in words else words) if word != "PAD")
