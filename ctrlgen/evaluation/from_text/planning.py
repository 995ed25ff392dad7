"""Texts of several sentences: a plan asks each for one value that a held-out text has, and carries another on.

Whether sentences belong together is what the domain's language model says: each should cost less after those that
stand before it than after others of the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from statistics import mean

from ctrlgen.controls.classifier import Verdict
from ctrlgen.controls.language import write_statement
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.from_text.editing import Values, values_of
from ctrlgen.evaluation.from_text.task import Figures
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.systems import OURS, Draft, System
from ctrlgen.evaluation.targets import Asked, Example, Target, Words
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.plans import PlannedSentence, TextPlan
from ctrlgen.generation.request import Request
from ctrlgen.generation.small_lm import SmallLM, find_lm
from ctrlgen.generation.writing import Writer
from ctrlgen.settings import Settings

SENTENCES = 5  # of a text
ENDS = (".", "!", "?")


class Planning:
    """A sentence for each of five values of a text's fields, and one value in all of them."""

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> list[Target]:
        rows = values_of(generator, examples, rng)
        carried = carried_control(generator, rows)
        return [
            Target((), (example.words,), sentences=sentences)
            for example, values in zip(examples, rows, strict=True)
            if (sentences := planned(values, carried, rng))
        ]

    def system(self, generator: Generator, settings: Settings, asked: Asked) -> Plans:
        return Plans(generator, settings, asked)

    def others(self, generator: Generator, asked: Asked, examples: Sequence[Example]) -> list[System]:
        return []

    def measured(self, generator: Generator, asked: Asked, texts: Sequence[Record]) -> list[Figures]:
        """The share of sentences with all that is asked of them, whether all have what is carried on, and the share
        that cost less after the sentence before than after another, where a language model can say so."""
        try:
            lm = SmallLM(find_lm(generator.model), generator.model.tokenizer, generator.model.device)
        except CtrlgenError:
            lm = None
        found = []
        for text in texts:
            figures = obeyed(text.verdicts)
            in_order = [] if lm is None else list(costs_less_in_order(lm, sentences_of(text.tokens)))
            found.append(figures | ({"cheaper in order": mean(in_order)} if in_order else {}))
        return found


class Plans:
    """The model as a writer to plans."""

    name = OURS

    def __init__(self, generator: Generator, settings: Settings, asked: Asked):
        self.generator, self.settings, self.asked = generator, settings, asked
        self.notes: list[str] = []

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        drafts: list[Draft] = []
        for place, request in enumerate(requests):
            plan = plan_of(self.asked.targets[request.id])
            texts = Writer(self.generator, plan).write(request.n, request.seed, self.settings)
            drafts += [Draft.of(place, text.index, text.sentences) for text in texts]
        return drafts


def carried_control(generator: Generator, rows: Sequence[Values]) -> str:
    """Of the controls that most texts have a value of the one with most values: the name, where there are names."""
    names = [name for name in rows[0] if 2 * sum(bool(row[name]) for row in rows) > len(rows)] if rows else []
    if not names:
        raise UsageError("plans are made of texts that have values of several fields, and this data has none")
    return max(names, key=lambda name: len(generator.controls.classifier(name).choices()))


def planned(values: Values, carried: str, rng: Random) -> tuple[tuple[str, ...], ...]:
    """What is asked of each sentence, for a text with these values; nothing where they are too few."""
    others = [name for name, value in values.items() if value and name != carried]
    if not values[carried] or len(others) < SENTENCES:
        return ()
    chosen = rng.sample(others, SENTENCES)
    first, *rest = [(write_statement(name, str(values[name])),) for name in chosen]
    return ((write_statement(carried, str(values[carried])), *first), *rest)


def plan_of(target: Target) -> TextPlan:
    """The first sentence's first control is carried on."""
    carried = target.sentences[0][0].partition(":")[0]
    sentences = [PlannedSentence(f"sentence {k}", asked) for k, asked in enumerate(target.sentences, 1)]
    return TextPlan(tuple(sentences), (carried,))


def obeyed(verdicts: Sequence[Verdict]) -> Figures:
    """Each sentence has two verdicts: of what is carried on, and of its own value."""
    pairs = list(zip(verdicts[::2], verdicts[1::2], strict=True))
    if not pairs:
        return {}
    return {
        "sentences": mean(float(all(verdict.success for verdict in pair)) for pair in pairs),
        "carried throughout": float(all(carried.success for carried, _ in pairs)),
    }


def sentences_of(words: Sequence[str]) -> list[Words]:
    found: list[list[str]] = [[]]
    for word in words:
        found[-1].append(word)
        if word in ENDS:
            found.append([])
    return [tuple(sentence) for sentence in found if sentence]


def costs_less_in_order(lm: SmallLM, sentences: Sequence[Words]) -> Iterator[float]:
    """Of each sentence but the first the share of the others after which it costs more than after the one before it.

    Pairs that are too long for the language model are left out.
    """
    end = lm.tokenizer.end_id
    ids = [lm.tokenizer.ids(words) for words in sentences]
    for place in range(1, len(ids)):
        fitting = [k for k in range(len(ids)) if k != place and len(ids[k]) + len(ids[place]) < lm.longest]
        costs = {k: cost_after(lm, [end, *ids[k]], ids[place]) for k in fitting}
        own = costs.pop(place - 1, None)
        if own is not None and costs:
            yield mean(float(own < other) for other in costs.values())


def cost_after(lm: SmallLM, before: Sequence[int], words: Sequence[int]) -> float:
    """Nats of these words after others."""
    return sum(lm.nats([*before, *words])[len(before) - 1 :])
