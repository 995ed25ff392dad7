"""Texts and their labels from local files (see `ctrlgen.data.tables`) and data sets of the hub; batches of one length.

Nothing is lost without a word: what was read, used and left out goes to the log, which the command line prints on
standard error.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from ctrlgen.data.labels import label_key, read_labels
from ctrlgen.data.tables import COMPRESSIONS, STANDARD_INPUT, kind_of, read_table
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean, listed
from ctrlgen.files import is_path

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_COLUMNS = ("text", "human_reference", "sentence", "content")  # tried in this order
SENTENCES_COLUMNS = ("sentences", "turns", "lines")  # of longer texts: lists of strings
WORTH_A_WARNING = 0.1  # share of the texts left out, or of the words unknown
ALMOST_NOTHING = 0.1  # share of the texts that is too little to go on with
MOSTLY_UNKNOWN = 0.5  # share of the words
OTHER_FILES = (".xlsx", ".xls", ".ods", ".docx", ".doc", ".pdf", ".md", ".html", ".xml", ".log", ".zip", ".db")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w\[\]:%.+-]+)?")

log = logging.getLogger(__name__)


def load_data(source: str, text_column: str | None = None) -> tuple[Dataset, str]:
    """A dataset and the name of its text column. Every other column is kept as it is; classes have their names.

    source: a file by path, `-` for standard input, or a hub id; a part of the latter is chosen by `id:split`.
    Raises CtrlgenError where it cannot be read, UsageError where the column is missing.
    """
    data = load_rows(source)
    return data, find_text_column(data.column_names, text_column, source)


def load_rows(source: str) -> Dataset:
    """All rows and columns of a source."""
    import datasets

    path = find_file(source)
    data = datasets.Dataset(read_table(path)) if path is not None else load_from_hub(source)
    if len(data) == 0:
        raise CtrlgenError(f"{source}: holds no rows")
    return with_class_names(data)


def find_file(source: str) -> Path | None:
    """The file of this name, taken literally; None for what can only be a hub id."""
    path = Path(source)
    if source == STANDARD_INPUT:
        return path
    try:
        if not path.exists() and source.startswith("~"):
            path = path.expanduser()
        if path.is_dir():
            files = sorted(file.name for file in path.iterdir() if kind_of(file) is not None)
            held = f"one of its files ({listed(files)})" if files else "a file; it holds none that can be read"
            raise CtrlgenError(f"{source}: is a directory; give {held}")
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a zero byte, no such user
        raise CtrlgenError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    names = readable_beside(path)
    meant = [name for name in names if name.startswith(f"{path.name}.")]
    hint = f". Did you mean {listed(str(path.parent / name) for name in meant)}?" if meant else nearly(path, names)
    if not HUB_ID.fullmatch(source) or source.startswith(".") or has_file_ending(path) or meant:
        raise CtrlgenError(f"{source}: no such file{hint}")
    if ":" not in source and is_path(source):
        raise CtrlgenError(f"{source}: no such file{hint or f'; a data set of the hub is written {source}:train'}")
    return None  # only here one waits for the hub


def readable_beside(path: Path) -> list[str]:
    """The names of the files in the same directory that can be read as data."""
    try:
        return sorted(file.name for file in path.parent.iterdir() if kind_of(file) is not None)
    except OSError:
        return []


def nearly(path: Path, names: Sequence[str]) -> str:
    hint = did_you_mean(path.name, names)
    return hint and f".{hint}"


def has_file_ending(path: Path) -> bool:
    """Whether this is the name of a file: of one that can be read here, or of one of `letters.letters` without a
    directory, as no data set of the hub is called; those of people (`user/data.v2`) may have any name.
    """
    if kind_of(path) is not None or path.suffix.lower() in (*COMPRESSIONS, *OTHER_FILES):
        return True
    return path.parent == Path() and re.fullmatch(r"\.[A-Za-z]{2,5}", path.suffix) is not None


def load_from_hub(source: str) -> Dataset:
    import datasets

    datasets.disable_progress_bars()
    hub_id, _, part = source.partition(":")
    log.warning("%s: no file here; the Hugging Face hub is asked", source)
    try:
        return datasets.load_dataset(hub_id, split=part or "train")
    except Exception as error:  # datasets raises whatever its readers raise
        hint = nearly(Path(source), readable_beside(Path(source)))
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise CtrlgenError(f"{source}: no file here, and not to be had from the hub: {reason[0]}{hint}") from error


def with_class_names(data: Dataset) -> Dataset:
    """Columns of numbered classes, as the hub has them, as text."""
    for column, feature in dict(data.features).items():
        names = getattr(feature, "names", None)
        if names:
            written = [str(names[id]) if id is not None and 0 <= id < len(names) else None for id in data[column]]
            unused = "_".join([*data.column_names, "names"])
            data = data.add_column(unused, written).remove_columns(column).rename_column(unused, column)
    return data


def remaining(data: Dataset, leave_out: Mapping[str, Sequence[str]] | None) -> Dataset:
    """The rows that have no value of `leave_out` in its column; values are compared as labels are.

    Raises UsageError where there is no such column, or it holds no labels.
    """
    for column, values in (leave_out or {}).items():
        if column not in data.column_names:
            raise UsageError(f"leave_out: the data has no column {column!r}; columns: {listed(data.column_names)}")
        named = {label_key(value) for value in values}
        data = data.select([i for i, value in enumerate(read_labels(data, column)) if label_key(value) not in named])
    return data


def find_text_column(columns: Sequence[str], wanted: str | None, source: str) -> str:
    """The column called `wanted`, or the first that has a usual name of texts. Raises UsageError without one."""
    if wanted is None:
        return find_usual_column(columns, TEXT_COLUMNS, "text", source)
    if wanted not in columns:
        raise UsageError(f"{source}: no column {wanted!r}; columns: {listed(columns)}.{did_you_mean(wanted, columns)}")
    return wanted


def find_usual_column(columns: Sequence[str], usual: Sequence[str], what: str, source: str) -> str:
    """By its exact name, else whatever its case."""
    for name in usual:
        found = [column for column in columns if column == name] or [c for c in columns if c.casefold() == name]
        if len(found) == 1:
            return found[0]
    raise UsageError(f"{source}: which column holds the {what}? Columns: {listed(columns)}")


def find_columns(columns: Sequence[str], wanted: str, source: str) -> list[str]:
    """The columns that a list separated by commas names; a name that holds a comma may stand in quotes, or alone."""
    if wanted in columns:
        return [wanted]
    names = next(csv.reader([wanted], skipinitialspace=True), [])
    return [find_text_column(columns, name.strip(), source) for name in names]


def read_texts(
    source: str,
    text_column: str | None = None,
    leave_out: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The non-empty texts of a source, in order, without rows whose column has a value that `leave_out` lists."""
    data, column = load_data(source, text_column)
    data = remaining(data, leave_out)
    texts = [text.strip() for text in data[column] if isinstance(text, str)]
    texts = [text for text in texts if text]
    if not texts:
        raise CtrlgenError(f"{source}: column {column!r} holds no text")
    report(f"{source}, column {column!r}", len(data), {"empty": len(data) - len(texts)})
    return texts


def read_sentences(
    source: str,
    column: str | None = None,
    leave_out: Mapping[str, Sequence[str]] | None = None,
) -> list[list[str]]:
    """Longer texts as ordered lists of sentences or turns, from a column of lists of strings; empty ones are left out.

    Rows whose column has a value that `leave_out` lists are left out as well.
    Raises CtrlgenError where the column holds something else.
    """
    data = remaining(load_rows(source), leave_out)
    names = data.column_names
    found = find_usual_column(names, SENTENCES_COLUMNS, "sentences", source) if column is None else column
    find_text_column(names, found, source)
    texts = []
    for number, sentences in enumerate(data[found], 1):
        if sentences is None:
            continue
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise CtrlgenError(f"{source}, row {number}: column {found!r} holds no list of strings")
        texts.append([sentence.strip() for sentence in sentences if sentence.strip()])
    texts = [text for text in texts if text]
    if not texts:
        raise CtrlgenError(f"{source}: column {found!r} holds no text")
    report(f"{source}, column {found!r}", len(data), {"empty": len(data) - len(texts)})
    return texts


def is_held_out(text: str, share: float) -> bool:
    """Whether a text is among those held out: by what it says alone, so that equal texts are on one side.

    Case and spaces do not count. `share`: of all texts.
    """
    content = " ".join(text.casefold().split())
    number = int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8])
    return number < share * 2**64


def read_split(
    train: str,
    validation: str | None,
    share: float,
    text_column: str | None = None,
    leave_out: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[str], list[str]]:
    """The texts to learn from and those held out: of `validation`, or without one a share of the former."""
    texts = read_texts(train, text_column, leave_out=leave_out)
    if validation:
        return texts, read_texts(validation, text_column, leave_out=leave_out)
    apart = [is_held_out(text, share) for text in texts]
    if all(apart):
        raise CtrlgenError(f"{train}: nothing is left to learn from, once a share of {share:g} is held out")
    return [t for t, out in zip(texts, apart, strict=True) if not out], list(compress(texts, apart))


def fitting(encoded: Sequence[list[int]], least: int, most: int, unknown_id: int, source: str) -> list[list[int]]:
    """The texts of `least` to `most` words. How many were left out, and why, goes to the log.

    Raises CtrlgenError where almost nothing is left, or most words are unknown.
    """
    kept = [ids for ids in encoded if least <= len(ids) <= most]
    short = sum(len(ids) < least for ids in encoded)
    too_short = f"shorter than {least} words" if least > 1 else "empty"
    left_out = {too_short: short, f"longer than {most} words": len(encoded) - len(kept) - short}
    unknown = sum(ids.count(unknown_id) for ids in kept) / max(1, sum(map(len, kept)))
    report(source, len(encoded), left_out, unknown)
    return kept


def report(source: str, read: int, left_out: Mapping[str, int], unknown: float = 0.0) -> None:
    """Log what became of texts in one line, as a warning where more than a tenth was left out or is unknown.

    unknown: share of unknown words in the texts used.
    Raises CtrlgenError where almost nothing is left, or most words are unknown.
    """
    used = read - sum(left_out.values())
    parts = [f"{read:,} texts read, {used:,} used", *(f"{n:,} {why}" for why, n in left_out.items() if n)]
    line = f"{source}: {', '.join(parts)}" + (f"; {unknown:.1%} of the words are unknown" if unknown else "")
    if used < ALMOST_NOTHING * read or used == 0:
        raise CtrlgenError(f"{line}: too little is left")
    if unknown > MOSTLY_UNKNOWN:
        raise CtrlgenError(f"{line}: too many to learn or to judge from")
    if read - used > WORTH_A_WARNING * read or unknown > WORTH_A_WARNING:
        log.warning("warning: %s", line)
    else:
        log.info("%s", line)


def texts_fingerprint(encoded: Iterable[Sequence[int]], words: Sequence[str]) -> str:
    """Identifies texts by their token ids and the words that these stand for."""
    digest = hashlib.sha256("\n".join(words).encode())
    for ids in encoded:
        digest.update(array("i", [len(ids), *ids]).tobytes())
    return digest.hexdigest()[:16]
