"""Encoded targets: a tensor, or a tuple or frozen dataclass of tensors, each with a row for every text of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlgen.controls.classifier import Classifier
from ctrlgen.errors import CtrlgenError

Encoded = Any  # Tensor (B, ...), or a tuple or dataclass of them; a part may be None


def encode(
    classifier: Classifier, targets: Sequence[Any], lengths: Sequence[int], device: str | torch.device
) -> Encoded:
    """The targets as `classifier` encodes them, on the device. Raises CtrlgenError where they have other rows."""
    encoded = classifier.encode(targets, lengths)
    try:
        rows = {part.shape[0] if part.dim() else None for part in tensors_of(encoded)}
    except TypeError as error:
        raise CtrlgenError(f"{classifier.kind}: encode() gives {error}") from None
    if rows != {len(targets)}:
        raise CtrlgenError(f"{classifier.kind}: encode() gives {len(targets)} targets a first dimension of {rows}")
    return on_device(encoded, device)


def on_device(encoded: Encoded, device: str | torch.device) -> Encoded:
    return map_tensors(lambda part: part.to(device), encoded)


def take_rows(encoded: Encoded, rows: Tensor | slice) -> Encoded:
    """Some rows of a batch, by their numbers (M,) or as a slice."""
    if isinstance(rows, slice):
        return map_tensors(lambda part: part[rows], encoded)
    return map_tensors(lambda part: part[rows.to(part.device)], encoded)


def map_tensors(function: Callable[[Tensor], Tensor], encoded: Encoded) -> Encoded:
    """Every tensor replaced by what the function makes of it. Raises TypeError for what no encoding may be."""
    if encoded is None:
        return None
    if isinstance(encoded, Tensor):
        return function(encoded)
    if isinstance(encoded, tuple):
        parts = [map_tensors(function, part) for part in encoded]
        return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(encoded) and not isinstance(encoded, type):
        fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
        return dataclasses.replace(encoded, **{name: map_tensors(function, part) for name, part in fields.items()})
    raise TypeError(f"a {type(encoded).__name__}, not a tensor, or a tuple or dataclass of tensors")


def tensors_of(encoded: Encoded) -> list[Tensor]:
    """All tensors of an encoding. Raises TypeError as `map_tensors` does."""
    found: list[Tensor] = []

    def note(part: Tensor) -> Tensor:
        found.append(part)
        return part

    map_tensors(note, encoded)
    return found
