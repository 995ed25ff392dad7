"""`ctrlgen train`: train a denoiser from a recipe or from options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.common import DeviceOption, find_device, naming_resume
from ctrlgen.cli.telling import duration, waiting
from ctrlgen.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from ctrlgen.domain.sizing import Sized
    from ctrlgen.training.denoising import Recipe


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML recipe; `ctrlgen recipe` prints one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the new model.")] = None,
    data: Annotated[str | None, typer.Option(help="Training texts: csv, tsv, jsonl, txt, parquet or a hub id.")] = None,
    validation: Annotated[str | None, typer.Option(help="Held-out texts; else a share of the data.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    label_column: Annotated[
        list[str] | None, typer.Option(help="A column of labels that becomes a control; repeatable.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, max=100_000, help="How long everything may take; sets the steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the recipe's, or by the data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and noise.")] = None,
    init: Annotated[str | None, typer.Option(help="Start from this model's weights and words.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    log_with: Annotated[str | None, typer.Option(help="A tracker that accelerate knows, e.g. tensorboard.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a language model on your texts.

    It is a Diffusion-LM. Without a recipe its sizes and steps follow from your data, or from --minutes;
    OUT/recipe.toml keeps them.

    Example: ctrlgen train --data mine.csv --text-column text --label-column sentiment --minutes 20 --out mine
    """
    if recipe is None and data is None:
        raise UsageError("give --data, your texts, or a recipe (`ctrlgen recipe` prints one)")
    if out is None:
        raise UsageError("give --out, the directory of the new model")
    if minutes is not None and steps is not None:
        raise UsageError("--minutes sets the steps: leave out --steps, or --minutes")
    if minutes is not None and recipe is not None:
        raise UsageError("--minutes makes a recipe of its own: leave out the recipe, or --minutes")
    check_tracker(log_with)
    from ctrlgen.cli.display import follow_training
    from ctrlgen.domain.making import make
    from ctrlgen.generation.generator import sample_texts

    given = {
        "data.train": data,
        "data.validation": validation,
        "data.text_column": text_column,
        "data.labels": label_column,
        "training.steps": steps,
        "training.seed": seed,
        "training.init": init,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    on = find_device(device)
    plan = planned(recipe, overrides, out, minutes, resume, on)
    with naming_resume():
        for part in make(plan, out, resume=resume, log_with=log_with, show=sample_texts, device=on):
            if part.name != "model":
                print(f"ctrlgen: the control {part.name!r}", file=sys.stderr)
            follow_training(part.events, resumable=part.resumable)
    typer.echo(f"model written to {out}", err=True)
    if plan.heads.judged and (plan.data.labels or plan.data.held_out):
        from ctrlgen.domain.verdict import judge

        with waiting("judging"):
            verdict = judge(plan, out, on)
        for line in verdict.lines():
            typer.echo(line)


def planned(
    recipe: Path | None, given: dict[str, Any], out: Path, minutes: float | None, resume: bool, device: torch.device
) -> Recipe:
    """The recipe that is named, that an earlier run has kept, or that is made for the data and kept.

    Raises UsageError where its columns of labels cannot become controls.
    """
    from ctrlgen.directories import claimed
    from ctrlgen.domain.making import RECIPE, check_labels, keep_recipe, kept_recipe
    from ctrlgen.domain.sizing import size
    from ctrlgen.training.fit import prepare_directory
    from ctrlgen.training.recipe import make_recipe, read_recipe

    if recipe is not None:
        plan = read_recipe(recipe, given)
    elif resume and (out / RECIPE).exists():
        plan = kept_recipe(out, given)
    elif resume and minutes is None:  # of a run before there were kept recipes
        plan = make_recipe({}, "options", given)
    else:
        with claimed(out):
            prepare_directory(out, resume)
            check_labels(make_recipe({}, "options", given).data)
            sized = size(given, minutes, len(given.get("data.labels", ())), device=device)
            keep_recipe(sized.recipe, out)
        tell(sized, out, minutes)
        return sized.recipe
    check_labels(plan.data)
    return plan


def tell(sized: Sized, out: Path, minutes: float | None) -> None:
    """What is about to be done, and what it will take."""
    training, extent = sized.recipe.training, sized.extent
    about = f"about {minutes:g} min in all" if minutes else f"about {duration(sized.seconds)} here"
    print(
        f"ctrlgen: {extent.texts:,} texts of {extent.words:,} words: recipe `{sized.name}`, "
        f"{training.steps:,} steps of "
        f"about {sized.pace.words:,.0f}, {about}; {out}/recipe.toml says everything"
        + ("" if minutes else "; --minutes or --steps changes that"),
        file=sys.stderr,
    )


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that accelerate would not find, before the data is read."""
    if name is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in [str(tracker) for tracker in get_available_trackers()]:
        known, hint = ", ".join(LOGGER_TYPE_TO_CLASS), did_you_mean(name, LOGGER_TYPE_TO_CLASS)
        raise UsageError(f"--log-with {name!r}: not installed, or none of {known}.{hint}")
