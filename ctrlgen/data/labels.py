"""Labels as text: one way for training, evaluation and the command line."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from ctrlgen.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_TYPES = "labels are text, whole or decimal numbers, or true and false"
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


def label_text(value: Any) -> str:
    """A label as text, the same in training, in evaluation and on the command line; "" for a missing one.

    Raises UsageError for what cannot be a label, naming its type.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):  # how a column of whole numbers with gaps is stored
        return f"{value:.0f}" if value.is_integer() and abs(value) < 2**53 else repr(value)
    raise UsageError(f"holds values of type {type(value).__name__}, which are no labels; {LABEL_TYPES}")


def label_key(label: str) -> str:
    """What two spellings of one label share: `Italian` and `italian`, `1` and `1.0`, but not `1.0` and `10`."""
    label = unicodedata.normalize("NFC", label.strip()).casefold()
    if NUMBER.fullmatch(label):
        whole, _, decimals = label.partition(".")
        decimals = decimals.rstrip("0")
        number = f"{whole}.{decimals}" if decimals else whole
        return "0" if number == "-0" else number
    return label


def loose_key(label: str) -> str:
    """The same whatever the spaces and hyphens: `family-friendly` and `family friendly`, but not `1-5` and `15`."""
    key = label_key(label)
    if NUMBER.fullmatch(key):
        return key
    joined = re.sub(r"\s*([-_])\s*", r"\1", key)
    return re.sub(r"(?<!\d)[\s_-]|[\s_-](?!\d)", "", joined)


def read_labels(data: Dataset, column: str) -> list[str]:
    """A column of labels as text, "" where a row has none. Raises UsageError for a type that cannot be a label."""
    try:
        return [label_text(value) for value in data[column]]
    except UsageError as error:
        raise UsageError(f"column {column!r} {error}") from None
