"""More labelled texts: as many for each label, none that the training texts have, the worst left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctrlgen.controls.language import write_statement
from ctrlgen.data.texts import find_text_column, load_data
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation.cost_models import NgramModel
from ctrlgen.evaluation.novelty import Training
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request

OVERDRAWN = 2  # texts drawn for each one that is kept
AT_ONCE = 25  # texts of a request: what an interruption can lose
SEEDS_OF_A_LABEL = 2**20
NEAR = 0.8  # a text of which so many words in a row stand in one training text is a copy of it


@dataclass(frozen=True)
class Augmented:
    """One new text. cost: nats a word under a 5-gram model of the training texts."""

    text: str
    label: str
    probability: float  # the guide's, that the text has the label
    cost: float


@dataclass(frozen=True)
class Left:
    """How many texts of each label were left out, and why."""

    copies: int  # equal to a training text or to another new one
    near: int
    worse: int


class Augmenter:
    """Draws texts for each label of some data with a model that knows the label, and chooses among them."""

    def __init__(self, generator: Generator, data: str, text_column: str | None, label_column: str):
        """Raises CtrlgenError where the data has no such column, or the model no control of its name."""
        rows, column = load_data(data, text_column)
        find_text_column(rows.column_names, label_column, data)
        self.generator, self.label = generator, label_column
        self.text_column = column
        classifier = generator.controls.classifier(label_column)
        self.values = list(classifier.choices() or ())
        if not self.values:
            raise CtrlgenError(f"the control {label_column!r} has no list of values to write texts for")
        split = generator.model.tokenizer.split
        self.training = Training([split(text) for text in rows[column] if isinstance(text, str) and text.strip()])
        self.costs = NgramModel(generator.model, self.training)
        self.known = {folded(words) for words in self.training.texts}

    def requests(self, per_label: int, seed: int) -> list[Request]:
        """What is asked for: OVERDRAWN times as many texts as are wanted, label after label."""
        found = []
        for number, value in enumerate(self.values):
            control = write_statement(self.label, value)
            for start in range(0, OVERDRAWN * per_label, AT_ONCE):
                n = min(AT_ONCE, OVERDRAWN * per_label - start)
                found.append(self.generator.request([control], n, seed + number * SEEDS_OF_A_LABEL + start, value))
        return found

    def draw(self, request: Request) -> list[dict[str, Any]]:
        """The texts of one request, as they are noted down."""
        return [
            {"text": s.text, "words": s.tokens, "label": request.id, "probability": s.controls[0].score}
            for s in self.generator.generate([request])
        ]

    def choose(self, drawn: Sequence[Mapping[str, Any]], per_label: int) -> tuple[list[Augmented], dict[str, Left]]:
        """The best `per_label` texts of each label, of those that are new, and how many were left out.

        The best have the best sum of two ranks, by the guide's probability and by cost.
        """
        by_label: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in drawn:
            by_label[row["label"]].append(row)
        seen, chosen, left = set(self.known), [], {}
        for value in self.values:
            fresh = list(self.new(by_label[value], seen))
            longest = self.training.longest_shared([row["words"] for row in fresh]) if fresh else []
            apart = [row for row, n in zip(fresh, longest, strict=True) if n < NEAR * len(row["words"])]
            costs = self.costs.costs([row["words"] for row in apart])
            texts = [
                Augmented(row["text"], value, row["probability"], cost) for row, cost in zip(apart, costs, strict=True)
            ]
            best = set(ranked(texts)[:per_label])
            chosen += [text for text in texts if text in best]
            drawn_here = len(by_label[value])
            left[value] = Left(drawn_here - len(fresh), len(fresh) - len(apart), len(texts) - len(best))
        return chosen, left

    def new(self, rows: Sequence[Mapping[str, Any]], seen: set[tuple[str, ...]]) -> Iterator[Mapping[str, Any]]:
        """The rows whose text was not seen before. `seen` grows."""
        for row in rows:
            words = folded(row["words"])
            if words and words not in seen:
                seen.add(words)
                yield row


def folded(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.casefold() for word in words)


def ranked(texts: Sequence[Augmented]) -> list[Augmented]:
    """Best first."""
    rank: Counter[Augmented] = Counter()
    for by in (lambda text: -text.probability, lambda text: text.cost):
        rank.update({text: place for place, text in enumerate(sorted(texts, key=by))})
    return sorted(texts, key=lambda text: (rank[text], text.text))
