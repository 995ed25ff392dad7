"""Meaning: `food: Japanese`, `area: riverside`, `family friendly: no`.

One classifier answers for all fields of a data set. They come from a meaning representation
(`food[Japanese], area[riverside]`, as in E2E) or from label columns. A field that a text does not mention has the value
`absent`, which the head learns like any other. A value that no training text had is asked for in words (`unseen.py`)
where texts say the field's values by their own words.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.controls.language import fold
from ctrlgen.data.labels import read_labels
from ctrlgen.data.texts import find_columns
from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.text.joining import detokenize
from ctrlgen_classifiers.label import Label, Target
from ctrlgen_classifiers.labelled import ABSENT, Row, log
from ctrlgen_classifiers.patterns.syntax import without_quotes
from ctrlgen_classifiers.unseen import UnseenValue, stand_in

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.checkpoint import DiffusionLM

SLOT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")  # food[Japanese]


class Field(Label):
    """`success` is the oracle's verdict; where Diffusion-LM's literal test says otherwise, `detail` tells."""

    kind = "field"
    summary = "what the text says of each field of your data"
    syntax = "FIELD: VALUE, or FIELD: absent"
    example = "food: Japanese"
    weight: ClassVar[float] = 3.0  # its values stand in single words, which need less of a push than a tone does
    may_be_absent: ClassVar[bool] = True
    nothing: ClassVar[str | None] = ABSENT
    learns_column: ClassVar[bool] = False  # nor what a text does not mention
    wider: DiffusionLM | None = None  # the model with the words of a value that is new

    @classmethod
    def read_rows(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> list[Row]:
        """Fields of the columns named, separated by commas, or of all columns but the text that can hold labels."""
        columns = [column for column in data.column_names if column != text_column]
        if label_column is not None:
            columns = find_columns(data.column_names, label_column, "the data")
        rows: list[Row] = [{} for _ in range(len(data))]
        for column in columns:
            try:
                values = read_labels(data, column)
            except UsageError as error:
                if label_column is not None:
                    raise
                log.info("the data: left out: %s", error)
                continue
            is_meaning = any(values) and not any(SLOT.sub("", value).strip(", ") for value in values)
            for row, value in zip(rows, values, strict=True):
                row.update(read_meaning(value) if is_meaning else {column: value})
        return [{field: value for field, value in row.items() if value} for row in rows]

    def choices(self) -> Sequence[str]:
        return [value for value in self.values if value != ABSENT or not self.is_never_absent]

    @property
    def is_never_absent(self) -> bool:
        return self.name in self.config.get("never_absent", ())

    def parse(self, value: str) -> Target:
        target = super().parse(value)
        if self.written(target) == ABSENT and self.is_never_absent:
            raise UsageError(f"{self.name}: every training text has one, so a text without it cannot be asked for")
        return target

    def for_value(self, value: str) -> Classifier:
        """Itself for the values that it has learned; another is asked for in words, unless it resembles one of them."""
        if not self.is_unseen(value):
            return self
        known = [value for value in self.values if value != ABSENT]
        return UnseenValue(self.wider or self.model, self.name, known)

    def is_unseen(self, value: str) -> bool:
        try:
            self.parse(value)
        except UsageError:
            inner = without_quotes(value)
            words = self.tokenizer.split(inner)
            if not 0 < len(words) < self.model.config.max_length:
                return False
            resembles = inner == value and bool(did_you_mean(inner, self.values))
            can_be_written = self.model.opens or all(word in self.tokenizer for word in words)
            return not resembles and can_be_written and self.are_said()
        return False

    def are_said(self) -> bool:
        """Whether most texts say the field's values by their own words, as they do names, and do not moods."""
        said = [self.is_said(Target(self.field, id)) for id, value in enumerate(self.values) if value != ABSENT]
        return 2 * sum(said) > len(said)

    def new_words(self, value: str) -> dict[str, str | None]:
        """Each is like the word in its place of a value that has been learned (`stand_in`)."""
        if not self.is_unseen(value):
            return {}
        words = self.tokenizer.split(without_quotes(value))
        known = [self.tokenizer.split(value) for value in self.values if value != ABSENT]
        like = stand_in(words, [other for other in known if all(word in self.tokenizer for word in other)])
        return {word: other for word, other in zip(words, like, strict=True) if word not in self.tokenizer}

    def for_model(self, model: DiffusionLM) -> Field:
        """What has been learned stays with the trained vocabulary."""
        other = copy.copy(self)
        other.wider = model
        return other

    def value_in(self, row: Mapping[str, Any]) -> str | None:
        """From a column of that name, or from a meaning representation."""
        columns = [text for text in row.values() if isinstance(text, str) and SLOT.search(text)]
        fields = {fold(name): value for text in columns for name, value in read_meaning(text).items()}
        return fields.get(fold(self.name)) or super().value_in(row)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Target]) -> list[Verdict]:
        verdicts = super().check(texts, targets)
        return [
            self.compared_with_literal(verdict, words, self.written(target))
            for verdict, words, target in zip(verdicts, texts, targets, strict=True)
        ]

    def compared_with_literal(self, verdict: Verdict, words: Sequence[str], value: str) -> Verdict:
        if value == ABSENT:
            return verdict
        literal = is_literal(self.tokenizer.split(value), words)
        verdict = replace(verdict, also={"literal": literal})
        if verdict.success or not literal:  # a value need not be written: no question has the word "question"
            return verdict
        return replace(verdict, detail=f"{verdict.detail}, though {value!r} is written")


def read_meaning(text: str) -> Row:
    """`name[The Vaults], eatType[pub]` by field."""
    return {field.strip(): value.strip() for field, value in SLOT.findall(text)}


def is_literal(value: Sequence[str], words: Sequence[str]) -> bool:
    """Diffusion-LM's test of meaning: the value is a substring of the text, here whatever its case."""
    return detokenize(value).casefold() in detokenize(words).casefold()
