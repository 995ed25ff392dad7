"""Directories that one run writes at a time, and that are replaced as a whole."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctrlgen.errors import CtrlgenError
from ctrlgen.files import CAN_LOCK, lock, make_directory, sync_directory

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
held: set[Path] = set()  # by this process


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make a directory and keep other processes from claiming it. Raises CtrlgenError where one has.

    The first process of a distributed run claims it for all of them.
    """
    is_new = not directory.exists()
    make_directory(directory)
    directory = directory.resolve()
    if directory in held or not CAN_LOCK or os.environ.get("RANK", "0") != "0":
        yield
        return
    file = os.open(directory, os.O_RDONLY)
    try:
        if not lock(file):
            raise CtrlgenError(f"{directory}: another run is writing to it")
        held.add(directory)
        yield
    finally:
        held.discard(directory)
        os.close(file)
        if is_new:
            with suppress(OSError):  # where nothing came of it
                directory.rmdir()


@contextmanager
def replacing(directory: Path, *, resume: bool = False, keep: str | None = None) -> Iterator[Path]:
    """A directory beside `directory` that takes its place if the block succeeds; until then the old one stands.

    resume: go on in what an earlier run left there, instead of an empty one.
    keep: the file that another run can go on from. Where the block fails and it is there, the work is left as it is;
        it has no place in the finished directory.
    Raises CtrlgenError where another run is at it.
    """
    make_directory(directory.parent)
    working = directory.with_name(f".{directory.name}.partial")
    if resume and not working.exists():
        raise CtrlgenError(f"{directory}: nothing to resume: no run of it was interrupted")
    with claimed(working):
        if not resume:
            empty(working)
        try:
            yield working
        except BaseException:
            if not resume and not (keep and (working / keep).exists()):
                shutil.rmtree(working, ignore_errors=True)
            raise
        take_place(working, directory)
    if keep:
        (directory / keep).unlink(missing_ok=True)


def empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def take_place(new: Path, old: Path) -> None:
    """Give `new` the name of `old`, which is removed. At no moment is there neither, where the system can exchange."""
    for file in new.rglob("*"):
        if file.is_dir():
            sync_directory(file)
    sync_directory(new)
    if not old.exists():
        new.rename(old)
    elif exchange(new, old):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = old.with_name(f".{old.name}.{secrets.token_hex(4)}.old")
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(old.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step. False where the system has no such call."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
