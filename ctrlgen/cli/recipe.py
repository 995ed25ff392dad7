"""`ctrlgen recipe`: a recipe to copy out and edit."""

from __future__ import annotations

from typing import Annotated

import typer


def recipe(name: Annotated[str, typer.Argument(help="small, base, further, english, e2e, …")] = "small") -> None:
    """Print a recipe for training, to edit.

    It says what every key is for.

    Example: ctrlgen recipe small > mine.toml
    """
    from ctrlgen.training.shipped import commented

    typer.echo(commented(name), nl=False)
