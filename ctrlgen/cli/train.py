"""`ctrlgen train`: train a denoiser from a recipe or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import naming_resume
from ctrlgen.errors import UsageError, did_you_mean


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML recipe; see examples/recipes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the new model.")] = None,
    data: Annotated[str | None, typer.Option(help="Training texts: csv, tsv, jsonl, txt, parquet or a hub id.")] = None,
    validation: Annotated[str | None, typer.Option(help="Held-out texts.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the recipe's, or 20,000.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and noise.")] = None,
    init: Annotated[str | None, typer.Option(help="Start from this model's weights and words.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out.")] = False,
    log_with: Annotated[str | None, typer.Option(help="A tracker that accelerate knows, e.g. tensorboard.")] = None,
) -> None:
    """Train a diffusion language model on your texts.

    Example: ctrlgen train examples/recipes/e2e.toml --data e2e/train.jsonl --out my-model
    """
    if recipe is None and data is None:
        raise UsageError("give a recipe (see examples/recipes) or --data")
    if out is None:
        raise UsageError("give --out, the directory of the new model")
    check_tracker(log_with)
    from ctrlgen.cli.display import follow_training
    from ctrlgen.generation.generator import sample_texts
    from ctrlgen.training.denoising import train as run
    from ctrlgen.training.recipe import make_recipe, read_recipe

    given = {
        "data.train": data,
        "data.validation": validation,
        "data.text_column": text_column,
        "training.steps": steps,
        "training.seed": seed,
        "training.init": init,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    plan = read_recipe(recipe, overrides) if recipe else make_recipe({}, "options", overrides)
    with naming_resume():
        training = run(plan, out, resume=resume, log_with=log_with, show=sample_texts)
        follow_training(training, resumable=True)
    typer.echo(f"model written to {out}", err=True)


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that accelerate would not find, before the data is read."""
    if name is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in [str(tracker) for tracker in get_available_trackers()]:
        known, hint = ", ".join(LOGGER_TYPE_TO_CLASS), did_you_mean(name, LOGGER_TYPE_TO_CLASS)
        raise UsageError(f"--log-with {name!r}: not installed, or none of {known}.{hint}")
