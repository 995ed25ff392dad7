"""Texts and their labels from hub ids or local files (csv, tsv, jsonl, txt, parquet), through `datasets`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

LOADERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
    ".parquet": "parquet",
}
TEXT_COLUMNS = ("text", "human_reference", "sentence", "content")  # tried in this order


def load_data(source: str, text_column: str | None = None, split: str = "train") -> tuple[Dataset, str]:
    """A dataset and the name of its text column. Every other column is kept as it is.

    source: a file by path, or a hub id; a part of the latter is chosen by `id:split`.
    Raises CtrlgenError where it cannot be read, UsageError where the column is missing.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    try:
        if path.is_file():
            if suffix not in LOADERS:
                raise UsageError(f"{source}: unknown kind of file; use {', '.join(LOADERS)}")
            if path.stat().st_size == 0:
                raise CtrlgenError(f"{source}: holds no rows")
            options = {"sep": "\t"} if suffix == ".tsv" else {}
            data = datasets.load_dataset(LOADERS[suffix], data_files=str(path), split="train", **options)
        elif suffix in LOADERS or path.is_absolute():
            raise CtrlgenError(f"{source}: no such file")
        else:
            hub_id, _, part = source.partition(":")
            data = datasets.load_dataset(hub_id, split=part or split)
    except CtrlgenError:
        raise
    except Exception as error:  # datasets raises whatever its readers raise
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        if "corresponds to no data" in reason[0]:  # how `datasets` puts a header without rows
            raise CtrlgenError(f"{source}: holds no rows") from error
        raise CtrlgenError(f"{source}: cannot be read as data: {reason[0]}") from error
    if len(data) == 0:
        raise CtrlgenError(f"{source}: holds no rows")
    return data, find_text_column(data.column_names, text_column, source)


def find_text_column(columns: Sequence[str], wanted: str | None, source: str) -> str:
    if wanted is None:
        for name in TEXT_COLUMNS:
            if name in columns:
                return name
        raise UsageError(f"{source}: which column holds the text? Columns: {', '.join(columns)}")
    if wanted not in columns:
        hint = did_you_mean(wanted, columns)
        raise UsageError(f"{source}: no column {wanted!r}; columns: {', '.join(columns)}.{hint}")
    return wanted


def read_texts(source: str, text_column: str | None = None, split: str = "train") -> list[str]:
    """The non-empty texts of a source, in order."""
    data, column = load_data(source, text_column, split)
    texts = [text.strip() for text in data[column] if isinstance(text, str)]
    texts = [text for text in texts if text]
    if not texts:
        raise CtrlgenError(f"{source}: column {column!r} holds no text")
    return texts


class LengthBatches:
    """Batches of sentences of one length, so that nothing is padded.

    A batch holds about `tokens_per_batch` tokens. The order of an epoch depends on the seed and the epoch alone.
    """

    def __init__(self, sentences: Sequence[Sequence[int]], tokens_per_batch: int, seed: int):
        self.sentences = sentences
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.by_length: dict[int, list[int]] = defaultdict(list)
        for index, sentence in enumerate(sentences):
            self.by_length[len(sentence)].append(index)

    def epoch(self, number: int) -> list[list[int]]:
        """Indices of the sentences of each batch."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        batches = []
        for length, indices in sorted(self.by_length.items()):
            shuffled = [indices[i] for i in torch.randperm(len(indices), generator=rng)]
            size = max(1, self.tokens_per_batch // length)
            batches += [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng)]

    def tokens(self, indices: Sequence[int]) -> torch.Tensor:
        """(B, n)"""
        return torch.tensor([self.sentences[i] for i in indices])
