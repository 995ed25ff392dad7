"""Writing files so that nothing half-written ever bears a final name, whatever ends the program."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from ctrlgen.errors import CtrlgenError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BYTE_ORDER_MARK = "\ufeff"
CAN_LOCK = fcntl is not None
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only if the block succeeds, and is on disk then.

    The temporary files of runs that were killed are removed. Raises CtrlgenError at once where the directory cannot be
    written to, and where the disk is full.
    """
    if path.is_dir():
        raise CtrlgenError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise CtrlgenError(f"{path}: cannot be written: not a regular file")
    try:
        path = Path(os.path.realpath(path))  # a link stays one
        sweep(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, temporary)
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with temporary.open("rb") as held:  # says to others that it is in use
            lock(held.fileno())
            yield temporary
            os.fsync(held.fileno())
            os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise CtrlgenError(f"{path}: cannot be written: {error.strerror}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove the temporary files of `path` that no living process holds."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        with suppress(OSError), leftover.open("rb") as file:
            if lock(file.fileno()):
                leftover.unlink()


def lock(file: int) -> bool:
    """Hold an open file or directory until it is closed. False where another process holds it, or none can."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync_directory(directory: Path) -> None:
    """Have a directory's names on disk, where the system can do that."""
    with suppress(OSError):
        file = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def refuse_device(path: Path) -> None:
    """Raises CtrlgenError for what may never end, /dev/zero say. Pipes and standard input are no such devices."""
    if str(path) != "/dev/stdin" and (path.is_char_device() or path.is_block_device()):
        raise CtrlgenError(f"{path}: is a device, not a file")


def is_path(name: str) -> bool:
    """Whether the name of nothing that is here can only be meant as a path: no hub id, for which one would wait."""
    directory = Path(name).parent
    return name.startswith((".", "/", "~")) or (directory != Path() and directory.is_dir())


def read_lines(source: Path | TextIO) -> list[str]:
    """The lines of a text file, cut at newlines alone, for JSON may hold other separators as they are.

    A byte order mark in front, as Windows writes it, is no part of them. Raises CtrlgenError for a device.
    """
    if isinstance(source, Path):
        refuse_device(source)
    with source.open(encoding="utf-8") if isinstance(source, Path) else nullcontext(source) as file:
        lines = [line.removesuffix("\n") for line in file]
    return [line.removeprefix(BYTE_ORDER_MARK) for line in lines[:1]] + lines[1:]


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written: {error.strerror}") from error


def to_json(value: Any, file: TextIO | None = None) -> str:
    """One line of JSON. What is no finite number is null; a `file` that cannot hold every character gets escapes."""
    wide = file is None or (file.encoding or "utf-8").lower().replace("-", "").startswith(("utf8", "utf16", "utf32"))
    return json.dumps(finite(value), ensure_ascii=not wide, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, in one line, where it is none, loses a key or holds NaN or 1e999."""
    try:
        return json.loads(
            text, parse_float=finite_number, parse_constant=finite_number, object_pairs_hook=pairs_to_object
        )
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def finite_number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number")
    return number


def pairs_to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def make_directory(path: Path) -> None:
    """Create a directory that will be written to. Raises CtrlgenError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be written to: {error.strerror}") from error
