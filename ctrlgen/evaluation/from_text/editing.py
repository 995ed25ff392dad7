"""Edits: one value of a held-out text is changed, added or taken away, and the rest is to stay.

What the other controls say of a text is what their oracles read in it, before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import write_statement
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.from_text.task import Figures
from ctrlgen.evaluation.metrics import mean
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.systems import OURS, Draft, System
from ctrlgen.evaluation.targets import Asked, Example, Target, Words, kinds
from ctrlgen.generation.editing import Editor
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings
from ctrlgen.text.alignment import common_words
from ctrlgen.text.joining import detokenize

Values = dict[str, str | None]  # by control; None where a text has none
MOST_ASKED = 2_000  # texts that are looked through


class Changing:
    """One value becomes another."""

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> Iterator[Target]:
        examples = examples[:MOST_ASKED]
        rows = values_of(generator, examples, rng)
        lacked = lacking(rows)
        for example, values in zip(examples, rows, strict=True):
            control = self.asked(generator, values, lacked, rng)
            if control is not None:
                yield Target((write_statement(*control),), (example.words,), source=example.words)

    def asked(
        self, generator: Generator, values: Values, lacking: Sequence[str], rng: Random
    ) -> tuple[str, str] | None:
        """The control and the value that are asked of a text which has these.

        lacking: the controls that some texts have no value of.
        """
        return drawn([(name, other_values(generator, name, value)) for name, value in values.items() if value], rng)

    def system(self, generator: Generator, settings: Settings, asked: Asked) -> Edits:
        return Edits(generator, settings, asked)

    def measured(self, generator: Generator, asked: Asked, texts: Sequence[Record]) -> list[Figures]:
        """The share of the other controls that read as in the source, whether all do, the share of its words that are
        kept in order, and whether it is the source."""
        changed = [asked.requests[text.target].controls[0].statement.name for text in texts]
        others = [[name for name in enumerable(generator) if name != one] for one in changed]
        found = []
        for text, kept in zip(texts, others_kept(generator, asked, texts, others), strict=True):
            source = source_of(asked, text)
            words = len(common_words(source, text.tokens)) / len(source)
            found.append(kept | {"words kept": words, "unchanged": float(tuple(text.tokens) == source)})
        return found

    def others(self, generator: Generator, asked: Asked, examples: Sequence[Example]) -> list[System]:
        return []


class Adding(Changing):
    """A value of what the text says nothing of."""

    def asked(
        self, generator: Generator, values: Values, lacking: Sequence[str], rng: Random
    ) -> tuple[str, str] | None:
        return drawn([(name, other_values(generator, name, None)) for name in lacking if not values[name]], rng)


class Removing(Changing):
    """The text is to say nothing any more of what it has a value of, and other texts have none."""

    def asked(
        self, generator: Generator, values: Values, lacking: Sequence[str], rng: Random
    ) -> tuple[str, str] | None:
        present = [(name, nothing) for name in lacking if values[name] and (nothing := kinds(generator)[name].nothing)]
        return rng.choice(present) if present else None


class Nothing(Changing):
    """The value that the text has, where its oracle reads it: there is nothing to change."""

    def asked(
        self, generator: Generator, values: Values, lacking: Sequence[str], rng: Random
    ) -> tuple[str, str] | None:
        present = [(name, value) for name, value in values.items() if value]
        return rng.choice(present) if present else None

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> Iterator[Target]:
        return (target for target in super().targets(generator, examples, rng) if is_already(generator, target))


class Edits:
    """The model as an editor."""

    name = OURS

    def __init__(self, generator: Generator, settings: Settings, asked: Asked):
        self.editor, self.settings, self.asked = Editor(generator), settings, asked
        self.notes: list[str] = []

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        sources = []
        for place, request in enumerate(requests):
            target = self.asked.targets[request.id]
            text = detokenize(target.source or ())
            sources.append(self.editor.source(text, target.controls, (), request.n, request.seed, place))
        samples = [edited.sample for edited in self.editor.edit(sources, self.settings)]
        return [Draft.of(sample.id, sample.index, [sample]) for sample in samples]


def enumerable(generator: Generator) -> list[str]:
    """The controls whose values are few. Raises UsageError where the model has none."""
    names = [name for name, kind in kinds(generator).items() if kind.enumerable]
    if not names:
        raise UsageError("edits change the values of fields and labels, and this model has no such control")
    return names


def values_of(generator: Generator, examples: Sequence[Example], rng: Random) -> list[Values]:
    """What each text says by the data."""
    texts, rows = [e.words for e in examples], [e.row for e in examples]
    names = enumerable(generator)
    columns = [generator.controls.classifier(name).values_of(texts, rows, rng) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def lacking(rows: Sequence[Values]) -> list[str]:
    """The controls that some texts have a value of, and some have none."""
    return [name for name in (rows[0] if rows else ()) if 0 < sum(bool(row[name]) for row in rows) < len(rows)]


def other_values(generator: Generator, name: str, value: str | None) -> list[str]:
    """What a text may say instead."""
    classifier = generator.controls.classifier(name)
    return [other for other in classifier.choices() if other not in (value, classifier.nothing)]


def drawn(of_controls: Sequence[tuple[str, Sequence[str]]], rng: Random) -> tuple[str, str] | None:
    """One of these controls, and one of its values."""
    present = [(name, values) for name, values in of_controls if values]
    if not present:
        return None
    name, values = rng.choice(present)
    return name, rng.choice(values)


def source_of(asked: Asked, record: Record) -> Words:
    source = asked.targets[record.target].source
    assert source is not None
    return source


def others_kept(
    generator: Generator, asked: Asked, texts: Sequence[Record], names: Sequence[Sequence[str]]
) -> list[Figures]:
    """The share of these controls that the oracles read in each text as in its source, and whether they read all so."""
    sources = list(dict.fromkeys(source_of(asked, text) for text in texts))
    oracles = {name: generator.controls.classifier(name) for name in enumerable(generator)}
    of_sources = {name: dict(zip(sources, values_read(of, sources), strict=True)) for name, of in oracles.items()}
    found: list[Figures] = []
    for text, of_text in zip(texts, names, strict=True):
        values = {name: of_sources[name][source_of(asked, text)] for name in of_text}
        kept = [says(oracles[name], text.tokens, value) for name, value in values.items() if value]
        found.append({"others kept": mean(kept), "all others kept": float(all(kept))} if kept else {})
    return found


def values_read(classifier: Classifier, texts: Sequence[Words]) -> list[str | None]:
    """The value that the oracle reads in each text."""
    found: list[str | None] = [None] * len(texts)
    for value in classifier.choices():
        open_ones = [place for place, known in enumerate(found) if known is None]
        target = classifier.parse(value)
        verdicts = classifier.check([texts[place] for place in open_ones], [target] * len(open_ones))
        for place, verdict in zip(open_ones, verdicts, strict=True):
            if verdict.success:
                found[place] = value
    return found


def says(classifier: Classifier, words: Sequence[str], value: str) -> bool:
    """Whether the oracle reads a value in a text."""
    (verdict,) = classifier.check([words], [classifier.parse(value)])
    return bool(verdict.success)


def is_already(generator: Generator, target: Target) -> bool:
    """Whether a source has what is asked of it, by the oracles."""
    controls = generator.controls.parse(target.controls)
    return all(c.classifier.check([target.source or ()], [c.target])[0].success for c in controls)
