"""Other oracles of trees (`ctrlgen eval --oracle tree=...`): the second parser, or any function that parses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ctrlgen.controls.oracles import load_function
from ctrlgen.errors import CtrlgenError
from ctrlgen_classifiers.brackets import Constituent, read_tree
from ctrlgen_classifiers.second_parser import SecondParser

Parses = Callable[[Sequence[Sequence[str]]], list[tuple[Constituent, ...]]]


def load_parser(oracle: str) -> Parses:
    """DIR, where `ctrlgen_classifiers.second_parser` has written, or MODULE:FUNCTION, from texts (lists of words) to
    bracketed trees. Raises UsageError or CtrlgenError.
    """
    if ":" not in oracle or Path(oracle).is_dir():
        return SecondParser.load(Path(oracle)).parse
    parse = load_function("--oracle", oracle)

    def parses(texts: Sequence[Sequence[str]]) -> list[tuple[Constituent, ...]]:
        trees = [read_tree(str(tree)) for tree in parse([list(words) for words in texts])]
        if [len(tree.leaves) for tree in trees] != list(map(len, texts)):
            raise CtrlgenError(f"--oracle {oracle!r}: its trees do not have a leaf for each word of the texts")
        return [tree.constituents for tree in trees]

    return parses
