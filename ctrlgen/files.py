"""Writing files so that nothing half-written ever bears a final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctrlgen.errors import CtrlgenError


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
