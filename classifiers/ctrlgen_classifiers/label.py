"""Any label that the user brings: `sentiment: positive`.

The guide is a head on the denoiser's hidden states of noised text. The oracle is another network, trained apart on the
clean texts of the other half of the data; it never guides. Both know several fields at once, each with values of its
own, of which one text may have any; a label is the case of one field, and `classifiers.field` the case of many.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import CONFIG, DiffusionLM, write_weights
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.controls.language import QUOTES
from ctrlgen.controls.registry import check_name, find_trained, fold, weights_fingerprint
from ctrlgen.data import find_text_column
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean, listed, shown
from ctrlgen.labels import label_key, label_text, loose_key, read_labels
from ctrlgen.training.heads import load_head, starting_point, train_head
from ctrlgen_classifiers.label_networks import CleanClassifier, Frequencies, LabelHead, likeliest, train_oracle
from ctrlgen_classifiers.labelled import (
    MIN_COUNT,
    OPEN,
    Row,
    Values,
    counterfactuals,
    forget_contradicted,
    halves,
    learnable_values,
    literal_phrases,
    make_examples,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.training.fit import Progress, TrainingConfig
    from ctrlgen.training.heads import Start

HEAD_SIZE = {"width": 96}
ORACLE = "oracle.safetensors"
ORACLE_SIZE = {"dim": 32, "width": 128}
LEAST_EXPLAINED = 0.05  # of the labels' entropy; a head that knows less cannot steer


@dataclass(frozen=True)
class Target:
    """A value of a field, by their ids."""

    field: int
    value: int


class Label(Classifier):
    kind = "label"
    summary = "any label that your data has"
    syntax = "NAME: VALUE, after `ctrlgen train-classifier label --label-column COLUMN --name NAME`"
    example = "sentiment: positive"
    oracle = "a classifier trained on other, clean texts"
    weight: ClassVar[float] = 8.0
    weight_in_company: ClassVar[float] = 6.0  # one value must hold its own against a tag for every word
    suite: ClassVar[str | None] = "field"
    enumerable: ClassVar[bool] = True
    task: ClassVar[str | None] = "semantic content"
    may_be_absent: ClassVar[bool] = False  # whether not being mentioned is a value of its own

    def __init__(self, model: DiffusionLM, name: str, values: Values, head: LabelHead, judge: CleanClassifier):
        self.tokenizer = model.tokenizer
        self.all_values = values
        self.head, self.judge = head, judge
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
    def load(cls, model: DiffusionLM, name: str) -> Label:
        directory, config = find_trained(model, name)
        try:
            values = {field: [str(value) for value in values] for field, values in config["values"].items()}
            head, judge = cls.networks(model, values, config["head"], config["oracle"]["size"])
            classifier = cls(model, name, values, head, judge)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CtrlgenError(f"{directory / CONFIG}: not the settings of a {cls.kind} classifier") from error
        load_head(head, directory).to(model.device)
        load_head(judge, directory, ORACLE)
        return classifier

    @staticmethod
    def networks(
        model: DiffusionLM, values: Values, head: dict[str, int], oracle: dict[str, int]
    ) -> tuple[LabelHead, CleanClassifier]:
        """Guide and oracle, untrained."""
        sizes, trunk = [len(of_field) for of_field in values.values()], model.config
        guide = LabelHead(sizes, len(model.tokenizer), trunk.layers, trunk.width, **head)
        return guide, CleanClassifier(sizes, len(model.tokenizer), **oracle)

    @classmethod
    def read_rows(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> list[Row]:
        """What each row of the data has; a field without a value is left out."""
        columns = [column for column in data.column_names if column != text_column]
        if label_column is None:
            raise UsageError(f"{cls.kind}: which column holds the labels? Give --label-column: {', '.join(columns)}")
        find_text_column(data.column_names, label_column, "the data")
        return [{name: value} if value else {} for value in read_labels(data, label_column)]

    @classmethod
    def train(
        cls,
        model: DiffusionLM,
        name: str,
        data: Dataset,
        text_column: str,
        label_column: str | None,
        config: TrainingConfig,
        directory: Path,
    ) -> Iterator[Progress]:
        torch.manual_seed(config.seed)
        rows = cls.read_rows(name, data, text_column, label_column)
        texts = [text.strip() if isinstance(text, str) else "" for text in data[text_column]]
        if not any(texts):
            raise CtrlgenError(f"the column {text_column!r} holds no text")
        values = learnable_values([row for row, text in zip(rows, texts, strict=True) if text], cls.may_be_absent)
        if not values:
            seen = Counter(value for row in rows for value in row.values()).most_common(3)
            found = ", ".join(f"{shown(value, 40)} {times} times" for value, times in seen) or "nothing"
            raise CtrlgenError(f"{cls.kind}: needs two values seen {MIN_COUNT} times each; the data has {found}")
        for field in values:
            check_name(field, cls.kind)
        examples = make_examples(model, texts, rows, values, cls.may_be_absent)
        if cls.may_be_absent:
            examples = forget_contradicted(examples, values, model.tokenizer)
        guides, oracles = halves(examples, config.seed)
        head, judge = cls.networks(model, values, HEAD_SIZE, ORACLE_SIZE)
        frequencies = Frequencies.of(guides, head.sizes)
        guessed = dict(zip(values, frequencies.accuracies(), strict=True))
        counts = {"guide": len(guides), "oracle": len(oracles), "skipped": len(texts) - len(examples)}
        start = starting_point(config, cls.kind)
        exchanged = partial(counterfactuals, phrases=literal_phrases(guides, values, model.tokenizer), seed=config.seed)
        if start is None:
            head.count([*guides, *exchanged(guides)])
            phrases = literal_phrases(oracles, values, model.tokenizer)
            right = dict(zip(values, train_oracle(judge, oracles, phrases, config.seed), strict=True))
        else:  # its oracle reads clean texts, whatever the denoiser
            refuse_other_texts(start, values, counts, config.seed)
            load_head(judge, start.directory, ORACLE)
            right = start.said("oracle", "accuracy")
        description = {
            "kind": cls.kind,
            "names": list(values),
            "head": HEAD_SIZE,
            "oracle": {"size": ORACLE_SIZE, "accuracy": right},
            "guessing": {"accuracy": guessed, "validation_loss": frequencies.loss(guides)},
            "texts": counts,
            "trained_on": weights_fingerprint(model),
            "values": values,
        }
        for progress in train_head(model, head, guides, config, directory, description, exchanged):
            yield compared_with_guessing(progress, description) if progress.validation else progress
        write_weights(directory / ORACLE, judge.state_dict())

    def parse(self, value: str) -> Target:
        """A value, whatever its case, spaces and hyphens; numbers are the same where they are equal."""
        inner = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in QUOTES else value
        for said, key in itertools.product((inner, value), (label_key, loose_key)):
            same = [known for known in self.values if key(known) and key(known) == key(said)]
            if len(same) == 1:
                return Target(self.field, self.values.index(same[0]))
        hint = did_you_mean(inner, self.values, 3)
        raise UsageError(f"{self.name}: unknown value {shown(inner)}; its values are {listed(self.values)}.{hint}")

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
        return encoded.to(self.head.frequency.device)

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return self.head.log_prob(denoised, encoded)

    def aside(self, denoised: Denoised, targets: Sequence[Sequence[Target]]) -> Tensor:
        """The values of the other fields. (B, K)"""
        values = likeliest(self.head(denoised))
        for row, asked in zip(values, targets, strict=True):
            row[[target.field for target in asked]] = OPEN
        return values

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Target]) -> list[Verdict]:
        verdicts = []
        for words, target in zip(texts, targets, strict=True):
            ids = self.tokenizer.ids(words) or [self.tokenizer.pad_id]
            got = Target(target.field, int(self.judge(torch.tensor([ids]))[target.field].argmax()))
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


def refuse_other_texts(start: Start, values: Values, counts: dict[str, int], seed: int) -> None:
    """The oracle that is kept must never have seen the guide's texts: same data, same halves."""
    if (start.said("values"), start.said("texts"), start.said("training", "seed")) != (values, counts, seed):
        raise CtrlgenError(f"{start.directory}: was trained on other texts or with another seed; train without --init")


def compared_with_guessing(progress: Progress, description: dict[str, Any]) -> Progress:
    """Add what guessing is worth to a validation, and in words at the end what cannot steer or cannot be trusted."""
    measured, guessing = progress.validation or {}, description["guessing"]
    explained = 1.0 - measured["validation_loss"] / guessing["validation_loss"]
    base = sum(guessing["accuracy"].values()) / len(guessing["accuracy"])
    notes = []
    if progress.step == progress.steps:
        if description["texts"]["skipped"]:
            notes.append(f"{description['texts']['skipped']} rows skipped: no text, no usable label, or too long")
        if explained < LEAST_EXPLAINED:
            notes.append("warning: the head knows no more than how frequent each value is, so it cannot steer")
        for field, right in description["oracle"]["accuracy"].items():
            notes.append(f"oracle of {field}: accuracy {right:.3f}, guessing {guessing['accuracy'][field]:.3f}")
            if not right > guessing["accuracy"][field]:
                notes.append(f"warning: the oracle of {field} is no better than guessing; its verdicts mean little")
    return replace(progress, validation=measured | {"base_rate": base, "explained": explained, "notes": notes})
