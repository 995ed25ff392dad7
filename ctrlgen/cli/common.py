"""Options and helpers that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ctrlgen.errors import UsageError

if TYPE_CHECKING:
    import torch

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A bundled model, a directory or a hub id.", show_default=True)
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def find_device(name: str) -> torch.device:
    """The device called `name`; auto takes the best there is."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not to be had here: use auto or cpu") from error
    return device
