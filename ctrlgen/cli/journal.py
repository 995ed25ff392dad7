"""Answers written as they are finished: a job that was stopped goes on where it was, nothing lost, doubled or torn.

They grow in `NAME.partial`, whose first line says what they answer, and take their name when the last is there. Samples
that are left out have a line there as well, so that every request has as many as it asks for; they are not taken over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedRandom
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.files import CAN_LOCK, atomic_file, from_json, lock, make_directory, to_json


@dataclass
class Journal:
    """done: how many requests are answered. kept: their answers, from the run before."""

    file: BufferedRandom
    name: Path
    done: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Append the answers to one or more requests, all of them in one piece."""
        try:
            self.file.write("".join(to_json(answer) + "\n" for answer in answers).encode())
            self.file.flush()
        except OSError as error:
            raise CtrlgenError(f"{self.name}: cannot be written: {error.strerror}") from error


@contextmanager
def journal(path: Path, job: Mapping[str, str], sizes: Sequence[int]) -> Iterator[Journal]:
    """A file of answers, one JSON object a line, that takes the name `path` if the block succeeds.

    job: what tells this job from others, by what people call it; what is there of another job is refused (UsageError).
    sizes: how many answers each request has, in order.
    Raises CtrlgenError where the file cannot be written or another run is writing it.
    """
    if path.exists() and not path.is_file():
        raise CtrlgenError(f"{path}: cannot be written: {'is a directory' if path.is_dir() else 'not a regular file'}")
    if not path.parent.is_dir():
        raise CtrlgenError(f"{path}: cannot be written: No such file or directory")
    make_directory(path.parent)
    partial = path.with_name(f"{path.name}.partial")
    partial.touch()
    with partial.open("r+b") as file:
        if CAN_LOCK and not lock(file.fileno()):
            raise CtrlgenError(f"{path}: another run is writing it")
        if is_finished(file, path):  # a run was killed between giving the name and removing this
            file.truncate(0)
        file.seek(0)
        found = recover(file, partial, job, sizes)
        try:
            yield found
        except BaseException:
            if file.tell() == header_size(job):
                partial.unlink()
            raise
        with atomic_file(path) as whole, whole.open("wb") as out:
            file.seek(header_size(job))
            out.writelines(line for line in file if not is_left_out(line))
        partial.unlink()


def is_finished(file: BufferedRandom, path: Path) -> bool:
    """Whether the answers that grew here are those that bear the final name."""
    if not file.readline() or not path.is_file():
        return False
    with path.open("rb") as whole:
        return all(line == theirs for line, theirs in zip_longest((a for a in file if not is_left_out(a)), whole))


def is_left_out(line: bytes) -> bool:
    """Whether a line is of a sample that says why it is left out."""
    return b'"rejected": ' in line and line.endswith(b"\n") and "rejected" in json.loads(line)


def recover(file: BufferedRandom, partial: Path, job: Mapping[str, str], sizes: Sequence[int]) -> Journal:
    """What an earlier run has answered; the file's position is then behind the last whole request."""
    first = file.readline()
    if not first.endswith(b"\n"):
        file.seek(0)
        file.truncate()
        file.write(header(job))
        file.flush()
        return Journal(file, partial)
    refuse_another(first, partial, job)
    kept: list[dict[str, Any]] = []
    done, end = 0, file.tell()
    for size in sizes:
        lines = [file.readline() for _ in range(size)]
        if not all(line.endswith(b"\n") for line in lines):
            break
        try:
            kept += [from_json(line) for line in lines]
        except ValueError:  # what a machine that lost its power may leave
            break
        done, end = done + 1, file.tell()
    file.seek(end)
    file.truncate()
    return Journal(file, partial, done, kept)


def header(job: Mapping[str, str]) -> bytes:
    return (json.dumps({"job": dict(job)}, sort_keys=True) + "\n").encode()


def header_size(job: Mapping[str, str]) -> int:
    return len(header(job))


def refuse_another(first: bytes, partial: Path, job: Mapping[str, str]) -> None:
    try:
        theirs = from_json(first)["job"]
        other = [key for key in job if theirs.get(key) != job[key]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CtrlgenError(f"{partial}: holds no answers of ctrlgen; remove it or give another --out") from None
    if other:
        raise UsageError(f"{partial}: answers other {' and '.join(other)}; remove it or give another --out")
