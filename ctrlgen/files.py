"""Writing files so that nothing half-written ever bears a final name."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from ctrlgen.errors import CtrlgenError

BYTE_ORDER_MARK = "\ufeff"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only if the block succeeds.

    Raises CtrlgenError at once where the directory cannot be written to.
    """
    if path.is_dir():
        raise CtrlgenError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise CtrlgenError(f"{path}: cannot be written: not a regular file")
    try:
        path = Path(os.path.realpath(path))  # a link stays one
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, temporary)
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(source: Path | TextIO) -> list[str]:
    """The lines of a text file, cut at newlines alone, for JSON may hold other separators as they are.

    A byte order mark in front, as Windows writes it, is no part of them.
    """
    with source.open(encoding="utf-8") if isinstance(source, Path) else nullcontext(source) as file:
        lines = [line.removesuffix("\n") for line in file]
    return [line.removeprefix(BYTE_ORDER_MARK) for line in lines[:1]] + lines[1:]


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_directory(path: Path) -> None:
    """Create a directory that will be written to. Raises CtrlgenError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written to: {error.strerror}") from error
