"""Files of rows, read without loss or guess: csv, tsv, JSON Lines, JSON, plain text and parquet, compressed or not.

* Every field of a csv or tsv file is text. Only the empty field is missing: `NA` and `None` are texts.
* A row has as many fields as the header, or the file is refused with the number of the line.
* A csv field that holds the separator, a quote or a line break stands in quotes, and a quote in it is doubled (RFC
  4180). In a tsv file a quote is a character like any other.
* JSON keeps its types; a column that mixes them becomes text.
* Text is UTF-8, with or without a byte order mark, or UTF-16 with one.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import logging
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ctrlgen.errors import CtrlgenError, UsageError, listed
from ctrlgen.files import pairs_to_object, refuse_device

if TYPE_CHECKING:
    import pyarrow

Peekable = io.BufferedReader  # or what else has `peek`, as decompressing files have
STANDARD_INPUT = "-"
COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
WIDE_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
SIGNATURES = {
    b"\x1f\x8b": "gzip, which is named .gz", b"BZh": "bzip2, which is named .bz2",
    b"\xfd7zXZ": "xz, which is named .xz", b"PAR1": "parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet", b"\xd0\xcf\x11\xe0": "a spreadsheet",
}  # fmt: skip
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of csv files, in the order tried
LONG_ROW = 20  # lines; a longer one looks like a missing quote

csv.field_size_limit(2**31 - 1)
log = logging.getLogger(__name__)


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read, without that of its compression; None for an unknown kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_table(path: Path) -> pyarrow.Table:
    """The rows of a file. Of what has no name, standard input (`-`) or a pipe, JSON Lines are expected.

    Raises CtrlgenError with the line where the file is damaged, UsageError where its kind is unknown.
    """
    is_input = str(path) == STANDARD_INPUT
    name = "standard input" if is_input else str(path)
    if is_input and sys.stdin is None:
        raise CtrlgenError("standard input is closed")
    if not is_input:
        refuse_device(path)
    kind = None if is_input else kind_of(path)
    if kind is None and not is_input and path.is_file():
        raise UsageError(f"{name}: unknown kind of file; use {', '.join(READERS)}, also with {', '.join(COMPRESSIONS)}")
    decompress: Any = None if is_input else COMPRESSIONS.get(path.suffix.lower())
    try:
        with nullcontext(cast(Peekable, sys.stdin.buffer)) if is_input else path.open("rb") as file:
            table = READERS[kind or ".jsonl"](decompress(file) if decompress else file, name)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise CtrlgenError(f"{name}: damaged, or not compressed as its name says: {error}") from error
    except OSError as error:
        raise CtrlgenError(f"{name}: cannot be read as data: {error.strerror or error}") from error
    twice = [column for column, times in Counter(table.column_names).items() if times > 1]
    if twice:
        raise CtrlgenError(f"{name}: more than one column is called {listed(twice)}")
    return table


def read_csv(file: Peekable, name: str) -> pyarrow.Table:
    lines = decoded_lines(file, name)
    first = next(lines, "")
    fields = {mark: len(next(csv.reader([first], delimiter=mark), [])) for mark in SEPARATORS}
    separator = next((mark for mark, count in fields.items() if count > 1), ",")
    if separator != ",":
        log.info("%s: its fields are separated by %s", name, SEPARATORS[separator])
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    hint = f"; a field that holds {separator!r} must stand in quotes"
    return text_table(csv_rows(reader, name), name, hint)


def csv_rows(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows of a csv reader, each with the line at which it begins."""
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            reason = f"{unclosed}; a field in quotes has its own quotes doubled"
            raise CtrlgenError(f"{name}, line {start}: cannot be read as data: {reason}") from error
        if reader.line_num - start >= LONG_ROW:
            lines = reader.line_num - start + 1
            log.warning("warning: %s, line %d: one row of %d lines; is a quote missing?", name, start, lines)
        yield start, row


def read_tsv(file: Peekable, name: str) -> pyarrow.Table:
    lines = (line.rstrip("\r\n") for line in decoded_lines(file, name))
    rows = ((number, line.split("\t") if line else []) for number, line in enumerate(lines, 1))
    return text_table(rows, name, "; a field cannot hold a tab")


def text_table(rows: Iterator[tuple[int, list[str]]], name: str, hint: str) -> pyarrow.Table:
    """Columns of text from rows with their lines, the header first. Rows without any field are left out."""
    import pyarrow

    filled = ((number, row) for number, row in rows if row)
    _, header = next(filled, (1, []))
    names = [written.strip() or f"column {place}" for place, written in enumerate(header, 1)]
    columns: list[list[str | None]] = [[] for _ in names]
    for number, row in filled:
        if len(row) != len(names):
            raise CtrlgenError(f"{name}, line {number}: {len(row)} fields, but the header has {len(names)}{hint}")
        for column, value in zip(columns, row, strict=True):
            column.append(value or None)
    return pyarrow.table([pyarrow.array(column, pyarrow.string()) for column in columns], names=names)


def read_json_lines(file: Peekable, name: str) -> pyarrow.Table:
    lines = enumerate(decoded_lines(file, name), 1)
    return json_table([json_object(line, f"{name}, line {number}") for number, line in lines if line.strip()])


def json_object(line: str, where: str) -> dict[str, Any]:
    """One row. Raises CtrlgenError where a line is no JSON object, or would lose something."""
    try:
        row = json.loads(line, object_pairs_hook=pairs_to_object)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise CtrlgenError(f"{where}: cannot be read as data: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CtrlgenError(f'{where}: cannot be read as data: a row is a JSON object such as {{"text": "…"}}')
    return row


def read_json(file: Peekable, name: str) -> pyarrow.Table:
    """A list of objects, an object of lists of one length, or JSON Lines under the name of .json."""
    text = "".join(decoded_lines(file, name))
    if not text.strip():
        return json_table([])
    try:
        rows = json.loads(text, object_pairs_hook=pairs_to_object)
        json.dumps(rows, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return read_json_lines(io.BufferedReader(io.BytesIO(text.encode())), name)
        raise CtrlgenError(f"{name}: cannot be read as data: not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CtrlgenError(f"{name}: cannot be read as data: not JSON: {error}") from error
    if isinstance(rows, dict):
        columns = list(rows.values())
        if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            rows = [dict(zip(rows, values, strict=True)) for values in zip(*columns, strict=True)]
        else:
            rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CtrlgenError(f"{name}: cannot be read as data: its list must hold JSON objects only")
    return json_table(rows)


def json_table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return pyarrow.table({name: json_column([row.get(name) for row in rows]) for name in names})


def json_column(values: list[Any]) -> pyarrow.Array:
    """A column of one type, or of text where the rows do not agree on one."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        return pyarrow.array([None if value is None else as_text(value) for value in values], pyarrow.string())


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_text_lines(file: Peekable, name: str) -> pyarrow.Table:
    """One text a line; blank lines are left out."""
    import pyarrow

    lines = (line.rstrip("\r\n") for line in decoded_lines(file, name))
    return pyarrow.table({"text": pyarrow.array([line for line in lines if line.strip()], pyarrow.string())})


def read_parquet(file: Peekable, name: str) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet

    if not file.peek(1):
        return pyarrow.table({})
    try:
        return pyarrow.parquet.read_table(file if file.seekable() else io.BytesIO(file.read()))
    except pyarrow.ArrowException as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise CtrlgenError(f"{name}: cannot be read as data: {reason}") from error


def decoded_lines(file: Peekable, name: str) -> Iterator[str]:
    """The lines of a text, each with its end: a line feed, a carriage return or both.

    Raises CtrlgenError with the line that is not in the encoding.
    """
    start = file.peek(8)[:8]
    signature = next((meant for mark, meant in SIGNATURES.items() if start.startswith(mark)), None)
    if signature is not None:
        raise CtrlgenError(f"{name}: cannot be read as data: it is {signature}")
    wide = next((encoding for mark, encoding in WIDE_ENCODINGS.items() if start.startswith(mark)), None)
    if wide is not None:
        try:
            whole = file.read().decode(wide)
        except UnicodeDecodeError as error:
            raise CtrlgenError(f"{name}: cannot be read as data: not {wide}, though it begins so") from error
        yield from io.StringIO(whole, newline="")
        return
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    number = 0
    for raw in file:
        for line in raw.splitlines(keepends=True) if b"\r" in raw else [raw]:
            number += 1
            yield decoded(line, f"{name}, line {number}")


def decoded(line: bytes, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        cure = "convert it first, for example with `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW` if it is Latin-1"
        byte = line[error.start]
        raise CtrlgenError(f"{where}: cannot be read as data: byte 0x{byte:02x} is not UTF-8; {cure}") from error
    if "\0" in text:
        raise CtrlgenError(f"{where}: cannot be read as data: a zero byte; if it is UTF-16, convert it to UTF-8 first")
    return text


READERS = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".txt": read_text_lines,
    ".parquet": read_parquet,
}
