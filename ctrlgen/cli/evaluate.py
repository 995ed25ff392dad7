"""`ctrlgen eval`: fluency, control success, diversity and speed, beside human text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption
from ctrlgen.cli.options import with_settings
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.plan import Plan
from ctrlgen.files import to_json
from ctrlgen.settings import Settings


@with_settings(lambda one: one.measured)
def evaluate(
    settings: Settings,
    model: ModelOption = "e2e",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="A control, field, compose, infill, unguided, edit, paraphrase, transfer, write, all; joined by +."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Held-out texts that targets are taken from: a path or hub id. Repeat to join rows."),
    ] = None,
    training_data: Annotated[str | None, typer.Option(help="Training texts, to find what is copied.")] = None,
    targets: Annotated[Path | None, typer.Option(help="A file of targets, ours or Diffusion-LM's.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Evaluate these texts, in the order of the targets.")] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: texts of another system, in the order of the targets, beside ctrlgen's."),
    ] = None,
    oracle: Annotated[
        list[str] | None,
        typer.Option(
            help="CONTROL=ORACLE: another oracle judges this control, such as tree=DIR or tree=MODULE:FUNCTION."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Targets of each suite, and human texts.")] = 50,
    samples_per_target: Annotated[int, typer.Option("--samples-per-target", "-n", min=1, help="Texts a target.")] = 1,
    seeds: Annotated[str, typer.Option(help="Sampling seeds, such as 0,1,2.")] = "0",
    lm: Annotated[
        list[str] | None, typer.Option(help="Also say what texts cost under this causal LM: a hub id or path.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Other methods in the same run: rejection, fudge, finetuned.")
    ] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="KEY=VALUE,VALUE,… such as strength=0,2,4,8.")] = None,
    frontier: Annotated[
        str | None,
        typer.Option(help="Temperatures of further unguided texts, such as 0.8,1,1.2: cost against variety."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Directory for the report; an interrupted run continues.")] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the figures into the model's card.")
    ] = False,
    comparison: Annotated[
        Path | None, typer.Option("--results", help="Write a Markdown page with published figures beside these.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit the classifiers' `score` to the verdicts; not on test texts.")
    ] = False,
    learn_confidence: Annotated[
        bool,
        typer.Option(
            "--learn-confidence",
            help="Keep what `generate --confidence` learns from: 500 targets a suite, neither training nor test texts.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines, one row of figures each.")] = False,
) -> None:
    """Measure control success and fluency.

    Oracles that guided nothing judge the texts; human texts of the same targets stand beside them.

    Example: ctrlgen eval --model e2e --suite pos --data e2e/test.jsonl --limit 50
    """
    swept = tuple(parse_sweep(text) for text in sweep or ())
    numbers = parse_seeds(seeds)
    systems = parse_pairs("--system", system or (), "NAME=FILE, the name of a system and the file of its texts")
    oracles = parse_pairs("--oracle", oracle or (), "CONTROL=ORACLE, such as tree=DIR")

    plan = Plan(
        model=model,
        device=device,
        suites=tuple(suite or ()),
        data=tuple(data or ()),
        training_data=training_data,
        targets=targets,
        samples=samples,
        systems=tuple((name, Path(file)) for name, file in systems),
        oracles=tuple(oracles),
        limit=limit,
        samples_per_target=samples_per_target,
        seeds=numbers,
        settings=settings,
        sweep=swept,
        frontier=parse_numbers("--frontier", frontier) if frontier else (),
        baselines=tuple(baseline or ()),
        language_models=tuple(lm or ()),
        report=report,
        comparison=comparison,
        update_card=update_card,
        calibrate=calibrate,
        learn_confidence=learn_confidence,
    )

    from ctrlgen.cli.display import evaluation_progress, follow_training
    from ctrlgen.cli.figures import show_results
    from ctrlgen.evaluation.evaluation import Evaluation

    with evaluation_progress() as watch:
        evaluation = Evaluation(plan, follow=follow_training)
        results = evaluation.run(watch, shlex.join(["ctrlgen", *sys.argv[1:]]))
    if as_json:
        for row in results.as_json()["rows"]:
            typer.echo(to_json(row, sys.stdout))
        for note in results.notes:
            typer.echo(note, err=True)
    else:
        show_results(results)
    for line in results.done:
        typer.echo(line, err=True)


def parse_pairs(option: str, given: Sequence[str], form: str) -> list[tuple[str, str]]:
    """What stands before and behind the = of each. `form`: how one is written."""
    pairs = []
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"{option} {text!r}: write {form}")
        pairs.append((name, value))
    return pairs


def parse_sweep(text: str) -> tuple[str, tuple[str, ...]]:
    key, equals, values = text.partition("=")
    listed = tuple(value.strip() for value in values.split(",") if value.strip())
    if not equals or not listed:
        raise UsageError(f"--sweep {text!r}: write KEY=VALUE,VALUE,… such as strength=0,2,4,8")
    return key.strip(), listed


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(number) for number in text.split(",")))
    except ValueError:
        raise UsageError(f"{option} {text!r}: write numbers, such as 0.8,1,1.2") from None


def parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UsageError(f"--seeds {text!r}: write whole numbers, such as 0,1,2") from None
