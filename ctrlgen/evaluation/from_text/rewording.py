"""The same said otherwise: a paraphrase has the structure of another text that says the same, a transfer another label.

Both ask for what a text says by the control that compares texts by codes (`Classifier.codes`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import write_statement
from ctrlgen.controls.similar import nearest
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.from_text.editing import (
    enumerable,
    other_values,
    others_kept,
    source_of,
    values_of,
    values_read,
)
from ctrlgen.evaluation.from_text.task import Figures
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.systems import Draft, Ours, System
from ctrlgen.evaluation.targets import Asked, Example, Target, Words, controls_of, kinds
from ctrlgen.generation.editing import Editor
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings
from ctrlgen.text.alignment import common_words
from ctrlgen.text.joining import detokenize

AT_A_TIME = 16  # texts whose structure is read together

Values = tuple[str | None, ...]  # that the oracles read in a text, one a field or label


class Rewording:
    """What a text says, in the structure of another that says the same by the data and by the oracles."""

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> Iterator[Target]:
        coding, structures = coding_name(generator), structural(generator)
        groups: dict[tuple[str | None, ...], list[Example]] = defaultdict(list)
        for example, values in zip(examples, values_of(generator, examples, rng), strict=True):
            groups[tuple(values.values())].append(example)
        sources = [(example, same) for same in groups.values() if len(same) > 1 for example in same]
        rng.shuffle(sources)
        read: dict[Words, Values] = {}
        for start in range(0, len(sources), AT_A_TIME):
            pairs = said_twice(generator, sources[start : start + AT_A_TIME], rng, read)
            columns = [controls_of(generator, name, [other for _, other in pairs], rng) for name in structures]
            for (example, other), asked in zip(pairs, zip(*columns, strict=True), strict=True):
                present = [control for control in asked if control is not None]
                if present:
                    says = write_statement(coding, detokenize(example.words))
                    yield Target((says, rng.choice(present)), (other.words,), source=example.words)

    def system(self, generator: Generator, settings: Settings, asked: Asked) -> System:
        return Ours(generator, settings)

    def others(self, generator: Generator, asked: Asked, examples: Sequence[Example]) -> list[System]:
        return []

    def measured(self, generator: Generator, asked: Asked, texts: Sequence[Record]) -> list[Figures]:
        """What the oracles of all fields read as in the source, how near the text is, and the words in place."""
        names = enumerable(generator)
        kept = others_kept(generator, asked, texts, [names] * len(texts))
        return [
            {name.replace("others", "fields"): share for name, share in of_text.items()} | nearness(asked, text)
            for of_text, text in zip(kept, texts, strict=True)
        ]


def said_twice(
    generator: Generator,
    sources: Sequence[tuple[Example, Sequence[Example]]],
    rng: Random,
    read: dict[Words, Values],
) -> list[tuple[Example, Example]]:
    """Texts, each with one of those beside it in which the oracles read the same values, where there is such a text.

    read: the values of texts, to which those of others are added.
    """
    texts = list({other.words: None for _, others in sources for other in others if other.words not in read})
    columns = [values_read(generator.controls.classifier(name), texts) for name in enumerable(generator)]
    read.update(zip(texts, zip(*columns, strict=True), strict=True))
    pairs = []
    for example, others in sources:
        same = [e for e in others if e.words != example.words and read[e.words] == read[example.words]]
        if same:
            pairs.append((example, rng.choice(same)))
    return pairs


class Transfer:
    """What a text says, with another value of a label."""

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> Iterator[Target]:
        coding = coding_name(generator)
        rows = values_of(generator, examples, rng)
        having: dict[tuple[str, str], list[Words]] = defaultdict(list)
        for example, values in zip(examples, rows, strict=True):
            for name, value in values.items():
                if value:
                    having[name, value].append(example.words)
        for example, values in zip(examples, rows, strict=True):
            asked = [
                (name, other)
                for name, value in values.items()
                if value
                for other in other_values(generator, name, value)
                if (name, other) in having
            ]
            if asked:
                control = rng.choice(asked)
                says = write_statement(coding, detokenize(example.words))
                yield Target((says, write_statement(*control)), (rng.choice(having[control]),), source=example.words)

    def system(self, generator: Generator, settings: Settings, asked: Asked) -> System:
        return Ours(generator, settings)

    def others(self, generator: Generator, asked: Asked, examples: Sequence[Example]) -> list[System]:
        return [Retrieval(generator, asked, examples), Deletion(generator, asked)]

    def measured(self, generator: Generator, asked: Asked, texts: Sequence[Record]) -> list[Figures]:
        """How near a text is to its source, and the words in place."""
        return [nearness(asked, text) for text in texts]


class Retrieval:
    """The held-out text that says most nearly the same, of those with the label that is asked for."""

    name = "retrieval"

    def __init__(self, generator: Generator, asked: Asked, examples: Sequence[Example]):
        self.generator, self.asked, self.notes = generator, asked, list[str]()
        rows = values_of(generator, examples, Random(0))
        self.having: dict[str, list[Words]] = defaultdict(list)
        for example, values in zip(examples, rows, strict=True):
            for name, value in values.items():
                if value:
                    self.having[write_statement(name, value)].append(example.words)

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        coding = self.generator.controls.classifier(coding_name(self.generator))
        asked: dict[str, list[tuple[int, Words]]] = defaultdict(list)  # places and sources, by the value asked for
        for place, request in enumerate(requests):
            target = self.asked.targets[request.id]
            asked[target.controls[1]].append((place, target.source or ()))
        drafts = []
        for control, of_control in asked.items():
            texts = self.having[control]
            found = nearest(coding, [source for _, source in of_control], texts, 1)
            for (place, _), (best, *_) in zip(of_control, found, strict=True):
                drafts += [Draft(place, index, texts[best.place]) for index in range(requests[place].n)]
        return sorted(drafts, key=lambda draft: (draft.request, draft.index))


class Deletion:
    """The source without the words that speak most against what is asked for."""

    name = "deletion"

    def __init__(self, generator: Generator, asked: Asked):
        self.editor, self.asked, self.notes = Editor(generator), asked, list[str]()

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        sources = []
        for request in requests:
            target = self.asked.targets[request.id]
            sources.append(self.editor.source(detokenize(target.source or ()), target.controls[1:], seed=request.seed))
        shorter = self.editor.shortened(sources)
        return [
            Draft(place, index, words)
            for place, (request, words) in enumerate(zip(requests, shorter, strict=True))
            for index in range(request.n)
        ]


def coding_name(generator: Generator) -> str:
    """The control that asks for what a text says. Raises UsageError where the model has none."""
    found = [name for name, kind in kinds(generator).items() if kind.codes is not Classifier.codes]
    if not found:
        raise UsageError("what a text says is asked for by a control with codes, and this model has none: train one")
    return found[0]


def structural(generator: Generator) -> list[str]:
    """The controls of a text's structure: those that evaluation joins with fields."""
    found = [name for name, kind in kinds(generator).items() if kind.composed_with and kind.suite == name]
    if not found:
        raise UsageError("a paraphrase has another structure, and this model has no control of structure")
    return found


def nearness(asked: Asked, text: Record) -> Figures:
    """The similarity that the oracle of what is said finds, where it could be asked, and the words in place."""
    source = source_of(asked, text)
    near = text.verdicts[0].correct
    in_place = {"words in place": len(common_words(source, text.tokens)) / len(source)}
    return in_place if near is None else in_place | {"similarity": near}
