"""Options and helpers that several commands share."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ctrlgen.errors import CtrlgenError, UsageError

if TYPE_CHECKING:
    import torch

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="e2e, english, a directory or a hub id.", show_default=True)
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which only the last would count, or given nothing: an empty path
    would be the current directory.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, given = self.make_parser(ctx).parse_args(list(args))
        empty = [p for p in given if values.get(p.name) == "" and not ctx.resilient_parsing]
        if empty:
            raise UsageError(f"{max(empty[0].opts, key=len)} is given nothing")
        twice = [p for p, times in Counter(given).items() if times > 1 and not getattr(p, "multiple", False)]
        if twice and not ctx.resilient_parsing:
            raise UsageError(f"{max(twice[0].opts, key=len)} is given more than once; it takes one value")
        return super().parse_args(ctx, args)


@contextmanager
def naming_resume() -> Iterator[None]:
    """Says at an interruption how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print("ctrlgen: stopped; the same command with --resume goes on from here", file=sys.stderr)
        raise


def find_device(name: str) -> torch.device:
    """The device called `name`, with torch imported only now."""
    from ctrlgen.diffusion.precision import find_device

    return find_device(name)


def check_place(directory: Path, force: bool, what: str, key: str, option: str) -> None:
    """Refuse, before any work, a place that cannot be written to or that would lose something.

    `what` may be replaced there, known by a `key` of its config.json; `option` chooses another place.
    """
    from ctrlgen.checkpoint import CONFIG, read_config
    from ctrlgen.files import make_directory

    make_directory(directory.parent)
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists():
        if not (directory / CONFIG).is_file() or key not in read_config(directory / CONFIG):
            raise CtrlgenError(f"{directory}: holds something else than a {what}; choose another --out")
        if not force:
            raise CtrlgenError(f"{directory}: already holds a {what}; use --force or choose another {option}")
