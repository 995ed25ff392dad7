"""Any label that the user brings: `sentiment: positive`.

The guide is a head on the denoiser's hidden states of noised text. The oracle is another network, trained apart on the
clean texts of the other half of the data; it never guides. Both know several fields at once, each with values of its
own, of which one text may have any; a label is the case of one field, and `classifiers.field` the case of many.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.controls.language import QUOTES, fold
from ctrlgen.controls.registry import check_name
from ctrlgen.data.labels import label_key, label_text, loose_key, read_labels
from ctrlgen.data.texts import find_text_column
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean, listed, shown
from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData
from ctrlgen_classifiers.label_networks import CleanClassifier, Frequencies, LabelHead, likeliest, train_oracle
from ctrlgen_classifiers.labelled import (
    ABSENT,
    MIN_COUNT,
    MIN_TEXTS,
    OPEN,
    Row,
    Values,
    counterfactuals,
    forget_contradicted,
    halves,
    learnable_values,
    literal_phrases,
    make_examples,
    never_absent,
)
from ctrlgen_classifiers.word_vectors import make_vectors, source_for, with_known_ids

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.training.fit import Progress, TrainingConfig
    from ctrlgen.training.heads import Start

HEAD_SIZE = {"width": 96}
ORACLE_SIZE = {"dim": 64, "width": 128}
LEAST_TELLING, MOST_TELLING = 0.7, 2  # nats by which a word speaks for a value; how many such words are offered
LEAST_READ = math.log(0.5)  # of a value that the guide reads in a text
LEAST_EXPLAINED = 0.05  # of the labels' entropy; a head that knows less cannot steer


@dataclass(frozen=True)
class Target:
    """A value of a field, by their ids."""

    field: int
    value: int


def stripped(data: Dataset, text_column: str) -> list[str]:
    """The text of each row, "" where it has none."""
    return [text.strip() if isinstance(text, str) else "" for text in data[text_column]]


class Label(TrainedClassifier):
    kind = "label"
    summary = "any label that your data has"
    syntax = "NAME: VALUE, after `ctrlgen train-classifier label --label-column COLUMN --name NAME`"
    example = "sentiment: positive"
    oracle = "a classifier trained on other, clean texts"
    weight: ClassVar[float] = 8.0
    composed_weight: ClassVar[float] = 6.0  # one value must hold its own against a tag for every word
    suite: ClassVar[str | None] = "field"
    enumerable: ClassVar[bool] = True
    learns_column: ClassVar[bool] = True
    fewest_texts: ClassVar[int] = MIN_TEXTS
    task: ClassVar[str | None] = "semantic content"
    may_be_absent: ClassVar[bool] = False  # whether not being mentioned is a value of its own

    head: LabelHead
    judge: CleanClassifier

    def __init__(
        self, model: DiffusionLM, name: str, config: Mapping[str, Any], head: LabelHead, judge: CleanClassifier
    ):
        super().__init__(model, name, config, head, judge)
        self.all_values = values_in(config)
        self.answer(name)

    def answer(self, name: str) -> None:
        """Be the classifier of this field."""
        self.name = name
        self.values, self.field = self.all_values[name], list(self.all_values).index(name)

    def sharing(self, name: str) -> Label | None:
        if name not in self.all_values:
            return None
        other = copy.copy(self)
        other.answer(name)
        return other

    @property
    def group(self) -> int:
        """All fields of one training: its head answers for them at once."""
        return id(self.head)

    @classmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> LabelHead:
        sizes, trunk = list(map(len, values_in(config).values())), model.config
        return LabelHead(sizes, len(model.tokenizer), trunk.layers, trunk.width, **config["head"])

    @classmethod
    def make_oracle(cls, model: DiffusionLM, config: Mapping[str, Any]) -> CleanClassifier:
        sizes = list(map(len, values_in(config).values()))
        return CleanClassifier(sizes, make_vectors(model, config["oracle"]), **config["oracle"]["size"])

    @classmethod
    def read_rows(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> list[Row]:
        """What each row of the data has; a field without a value is left out."""
        columns = [column for column in data.column_names if column != text_column]
        if label_column is None:
            raise UsageError(f"{cls.kind}: which column holds the labels? Give --label-column: {', '.join(columns)}")
        find_text_column(data.column_names, label_column, "the data")
        return [{name: value} if value else {} for value in read_labels(data, label_column)]

    @classmethod
    def refuse_labels(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> None:
        cls.values_to_learn(cls.read_rows(name, data, text_column, label_column), stripped(data, text_column))

    @classmethod
    def values_to_learn(cls, rows: Sequence[Row], texts: Sequence[str]) -> Values:
        """The values of each field that are seen often enough. Raises CtrlgenError where there are none."""
        values = learnable_values([row for row, text in zip(rows, texts, strict=True) if text], cls.may_be_absent)
        if not values:
            seen = Counter(value for row in rows for value in row.values()).most_common(3)
            found = ", ".join(f"{shown(value, 40)} {times} times" for value, times in seen) or "nothing"
            raise CtrlgenError(f"{cls.kind}: needs two values seen {MIN_COUNT} times each; the data has {found}")
        return values

    @classmethod
    def examples(cls, model: DiffusionLM, data: TrainingData) -> Lessons:
        rows = cls.read_rows(data.name, data.rows, data.text_column, data.label_column)
        texts = stripped(data.rows, data.text_column)
        if not any(texts):
            raise CtrlgenError(f"the column {data.text_column!r} holds no text")
        values = cls.values_to_learn(rows, texts)
        for field in values:
            check_name(field, cls.kind)
        examples, new_words = make_examples(model, texts, rows, values, cls.may_be_absent)
        if cls.may_be_absent:
            examples = forget_contradicted(examples, values, model.tokenizer)
        guides, oracles = halves(examples, data.seed, model.tokenizer)
        guides = [with_known_ids(example, model.tokenizer) for example in guides]
        frequencies = Frequencies.of(guides, list(map(len, values.values())))
        guessed = dict(zip(values, frequencies.accuracies(), strict=True))
        skipped = len(texts) - len(examples)
        phrases = literal_phrases(guides, values, model.tokenizer)
        return Lessons(
            guides,
            oracles,
            networks={"head": HEAD_SIZE, "oracle": {"size": ORACLE_SIZE, "words": source_for(model)}, "values": values},
            new_words=new_words,
            facts={
                "guessing": {"accuracy": guessed, "validation_loss": frequencies.loss(guides)},
                **({"never_absent": never_absent(examples, values)} if cls.may_be_absent else {}),
                "texts": {"guide": len(guides), "oracle": len(oracles), "skipped": skipped},
            },
            names=list(values),
            notes=[f"{skipped} rows skipped: no text, no usable label, or too long"] if skipped else [],
            augment=partial(counterfactuals, phrases=phrases, seed=data.seed),
        )

    @classmethod
    def train_oracle(
        cls, model: DiffusionLM, oracle: CleanClassifier, lessons: Lessons, config: Mapping[str, Any], seed: int
    ) -> Generator[Progress, None, dict[str, Any]]:
        values = values_in(config)
        phrases = literal_phrases(lessons.oracle, values, model.tokenizer)
        right = yield from train_oracle(oracle.with_words(lessons.new_words), lessons.oracle, phrases, seed)
        return {"accuracy": dict(zip(values, right, strict=True))}

    @classmethod
    def refuse_start(cls, start: Start, config: Mapping[str, Any], training: TrainingConfig) -> None:
        """The oracle that is kept must never have seen the guide's texts: same data, same halves."""
        known = (start.said("values"), start.said("texts"), start.said("training", "seed"))
        if known != (config["values"], config["texts"], training.seed):
            raise CtrlgenError(
                f"{start.directory}: was trained on other texts or with another seed; train without --init"
            )

    @classmethod
    def report(cls, validation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What guessing is worth, and what cannot steer or cannot be trusted."""
        guessing = config["guessing"]
        explained = 1.0 - validation["validation_loss"] / guessing["validation_loss"]
        base = sum(guessing["accuracy"].values()) / len(guessing["accuracy"])
        notes = []
        if explained < LEAST_EXPLAINED:
            notes.append("warning: the head knows no more than how frequent each value is, so it cannot steer")
        for field, right in config["oracle"]["accuracy"].items():
            notes.append(f"oracle of {field}: accuracy {right:.3f}, guessing {guessing['accuracy'][field]:.3f}")
            if not right > guessing["accuracy"][field]:
                notes.append(f"warning: the oracle of {field} is no better than guessing; its verdicts mean little")
        return {"base_rate": base, "explained": explained}, notes

    def parse(self, value: str) -> Target:
        """A value, whatever its case, spaces and hyphens; numbers are the same where they are equal."""
        inner = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in QUOTES else value
        for said, key in itertools.product((inner, value), (label_key, loose_key)):
            same = [known for known in self.values if key(known) and key(known) == key(said)]
            if len(same) == 1:
                return Target(self.field, self.values.index(same[0]))
        hint = did_you_mean(inner, self.values, 3)
        raise UsageError(f"{self.name}: unknown value {shown(inner)}; its values are {listed(self.choices())}.{hint}")

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """From the data's labels."""
        known = {label_key(value) for value in self.values}
        values = [self.value_in(row) for row in rows]
        return [value if value and label_key(value) in known else None for value in values]

    def value_in(self, row: Mapping[str, Any]) -> str | None:
        """From the column that has this control's name."""
        return next(filter(None, (written(row[column]) for column in row if fold(column) == fold(self.name))), None)

    def choices(self) -> Sequence[str]:
        return self.values

    def asks(self, target: Target) -> Asks:
        return Asks(value=self.written(target))

    def contradiction(self, target: Target, other: Classifier, others_target: Any) -> str | None:
        if other.group != self.group or target.field != others_target.field or target == others_target:
            return None
        return f"a text has one {self.name}, {self.values[target.value]} or {self.values[others_target.value]}"

    def encode(self, targets: Sequence[Target], lengths: Sequence[int]) -> Tensor:
        """(B, K), one field asked for in each row."""
        encoded = torch.full((len(targets), len(self.all_values)), OPEN)
        for row, target in enumerate(targets):
            encoded[row, target.field] = target.value
        return encoded

    def aside(self, denoised: Denoised, targets: Sequence[Sequence[Target]]) -> Tensor:
        """The values of the other fields. (B, K)"""
        values = likeliest(self.head(denoised))
        for row, asked in zip(values, targets, strict=True):
            row[[target.field for target in asked]] = OPEN
        return values

    def wordings(self, target: Target) -> list[tuple[str, ...]]:
        """The value itself where one of its words speaks for it, and the words that speak for it most."""
        value = self.written(target)
        if value == ABSENT:
            return []
        itself, speaking = tuple(self.tokenizer.split(value)), self.speaking(target).clone()
        no_words = [self.tokenizer.pad_id, self.tokenizer.unk_id, *self.tokenizer.opening, *self.tokenizer.closing]
        speaking[no_words] = -math.inf
        strongest = speaking.topk(MOST_TELLING).indices.tolist()
        single = [(self.tokenizer.words[id],) for id in strongest]
        return [*([itself] if self.is_said(target) else []), *(word for word in single if word[0] not in itself)]

    def speaking(self, target: Target) -> Tensor:
        """How much each word speaks for a value, in nats. (V,)"""
        return self.head.lexicon[:, sum(self.head.sizes[: target.field]) + target.value].detach()

    def is_said(self, target: Target) -> bool:
        """Whether texts say a value by its own words: one of them speaks for it."""
        words = self.tokenizer.split(self.written(target))
        ids = [id for id in self.tokenizer.ids(words, whole=False) if id != self.tokenizer.unk_id]
        return bool(ids) and float(self.speaking(target)[ids].max()) > LEAST_TELLING

    def reading(self, denoised: Denoised) -> list[str | None]:
        """The likeliest value, unless that is that the text says nothing of the field."""
        found = self.head(denoised)[self.field].max(-1)
        return [
            self.values[id] if log_p > LEAST_READ and self.values[id] != ABSENT else None
            for log_p, id in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Target]) -> list[Verdict]:
        verdicts = []
        judge, ids = self.judge.reading(texts, self.tokenizer)
        for tokens, target in zip(ids, targets, strict=True):
            log_p = judge(torch.tensor([tokens or [self.tokenizer.pad_id]]))
            got = Target(target.field, int(log_p[target.field].argmax()))
            verdicts.append(Verdict(got == target, None if got == target else f"reads as {self.written(got)}"))
        return verdicts

    def written(self, target: Target) -> str:
        return list(self.all_values.values())[target.field][target.value]


def written(value: Any) -> str:
    """A label of a row as text; "" where its type is none that a label can have."""
    try:
        return label_text(value)
    except UsageError:
        return ""


def values_in(config: Mapping[str, Any]) -> Values:
    """Each field's values, as config.json has them."""
    return {field: [str(value) for value in values] for field, values in config["values"].items()}
