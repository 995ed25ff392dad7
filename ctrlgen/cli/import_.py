"""`ctrlgen import`: a checkpoint of the original Diffusion-LM as a model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import check_place


def import_(
    directory: Annotated[Path, typer.Argument(help="A folder as the original Diffusion-LM writes it.")],
    out: Annotated[Path, typer.Option(help="Directory of the new model.")],
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; the hidden size / 64 if not given.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="One of the folder's weight files; the last step's EMA if not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in --out.")] = False,
) -> None:
    """Read a published Diffusion-LM checkpoint.

    It becomes a model that every other command takes.

    Example: ctrlgen import diffusion_models/diff_e2e --out original
    """
    out = out.resolve()
    check_place(out, force, "model", "denoiser", "--out")
    from ctrlgen.directories import replacing
    from ctrlgen.importing import import_checkpoint, save_imported

    model, card = import_checkpoint(directory, heads, weights)
    with replacing(out) as working:
        save_imported(model, card, working)
    typer.echo(f"model written to {out}", err=True)
