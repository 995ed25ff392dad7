"""Trees that rows of data bring."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.data.texts import find_text_column
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.training.heads import Example
from ctrlgen_classifiers.brackets import Bracketing, Constituent, read_tree
from ctrlgen_classifiers.word_vectors import training_ids

if TYPE_CHECKING:
    from datasets import Dataset

TREE_COLUMNS = ("tree", "trees", "parse")
PRETERMINAL = re.compile(r"\([^\s()]+\s+(?:[^\s()]+|\\n)\s*\)")
NEWLINE = re.compile(r"\([^\s()]+\s*\\?n?\s*\)")


def tree_of(row: Mapping[str, Any], words: Sequence[str]) -> tuple[Constituent, ...] | None:
    """The constituents of the tree that a row of data brings, if it has a leaf for each of these words."""
    text = next((row[name] for name in TREE_COLUMNS if row.get(name)), None)
    if not isinstance(text, str):
        return None
    tree = read_tree(text)
    return tree.constituents if len(tree.leaves) == len(words) else None


def training_examples(
    model: DiffusionLM, data: Dataset, column: str | None
) -> tuple[list[Example[Bracketing]], list[str]]:
    """The trees of a column as texts with their constituents; those longer than the model's texts are left out.

    The words are the trees' own leaves. Those that the vocabulary lacks are returned as well; their ids follow its own
    where the model can make vectors of them (`DiffusionLM.opens`). Raises CtrlgenError where a tree cannot be read.
    """
    column = column or next((name for name in TREE_COLUMNS if name in data.column_names), TREE_COLUMNS[0])
    find_text_column(data.column_names, column, "the data")
    trees = trees_in(data, column)
    leaves = [[leaf.word for leaf in tree.leaves] for tree in trees]
    encoded, new_words = training_ids(leaves, model, f"the data, trees of column {column!r}")
    examples = [Example(ids, tree) for ids, tree in zip(encoded, trees, strict=True)]
    return [example for example in examples if len(example.tokens) <= model.config.max_length], new_words


def trees_in(data: Dataset, column: str) -> list[Bracketing]:
    """The trees of a column; rows without one are left out. Raises CtrlgenError, with its row, for a wrong one."""
    trees = []
    for number, text in enumerate(data[column], start=1):
        if isinstance(text, str) and text.strip():
            try:
                trees.append(read_tree(text))
            except UsageError as error:
                raise CtrlgenError(f"row {number}, column {column!r}: {error}") from error
    return trees


def open_leaves(tree: str) -> str:
    """A tree of Diffusion-LM's files with its leaves open, without that of the newline at the end."""
    return PRETERMINAL.sub("*", NEWLINE.sub("", tree))
