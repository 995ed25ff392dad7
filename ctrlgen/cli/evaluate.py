"""`ctrlgen eval`: fluency, control success, diversity and speed, beside human text."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, find_device
from ctrlgen.errors import UsageError
from ctrlgen.settings import GuidanceMethod, SamplerName, Selection

MAX_SEED = 2**32  # each stands for a million of the samples' own

if TYPE_CHECKING:
    from ctrlgen.evaluation.figures import Judge
    from ctrlgen.evaluation.metrics import Training
    from ctrlgen.evaluation.run import Results
    from ctrlgen.generation.generator import Generator


def evaluate(
    model: ModelOption = "e2e",
    suite: Annotated[
        list[str] | None,
        typer.Option(help="pos, tree, span, length, words, field, compose, infill, unguided, all; joined by +."),
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
    limit: Annotated[int, typer.Option(min=1, help="Targets of each suite.")] = 50,
    samples_per_target: Annotated[int, typer.Option("--samples-per-target", "-n", min=1, help="Texts a target.")] = 1,
    seeds: Annotated[str, typer.Option(help="Sampling seeds, such as 0,1,2.")] = "0",
    lm: Annotated[
        list[str] | None, typer.Option(help="Also judge fluency by this causal LM: a hub id or path.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Peers in the same run: rejection, fudge, finetuned.")
    ] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="KEY=VALUE,VALUE,… such as strength=0,2,4,8.")] = None,
    report: Annotated[Path | None, typer.Option(help="Directory for the report; an interrupted run continues.")] = None,
    update_card: Annotated[bool, typer.Option(help="Write the figures into the model's card.")] = False,
    comparison: Annotated[
        Path | None, typer.Option("--results", help="Write a Markdown page with published figures beside these.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Fit the classifiers' `score` to the verdicts; not on test texts.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    sampler: Annotated[SamplerName | None, typer.Option(help="How x_t walks to x_0.")] = None,
    guidance: Annotated[GuidanceMethod | None, typer.Option(help="How to steer.")] = None,
    strength: Annotated[float | None, typer.Option(min=0.0, help="How hard controls pull.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Below 1: likelier words.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Draw this many, keep the model's best.")] = None,
    select: Annotated[Selection | None, typer.Option(help="How to choose among candidates.")] = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines, one row of figures each.")] = False,
) -> None:
    """Measure a model: control success by oracles that guided nothing, and fluency, always beside human text.

    Example: ctrlgen eval --model e2e --suite pos --data e2e/test.jsonl --limit 50
    """
    changes = {
        "steps": steps, "sampler": sampler, "guidance": guidance, "strength": strength, "temperature": temperature,
        "candidates": candidates, "select": select,
    }  # fmt: skip
    swept = tuple(parse_sweep(text) for text in sweep or ())
    numbers = parse_seeds(seeds)
    if targets is not None and (suite or data):
        raise UsageError("--targets brings what is asked for; leave out --suite and --data")
    if samples is not None and (swept or baseline or len(numbers) > 1):
        raise UsageError("--samples are evaluated as they are; leave out --sweep, --baseline and further --seeds")

    from ctrlgen.cli.display import evaluation_progress
    from ctrlgen.evaluation.report.card import card_path, refuse_to_forget
    from ctrlgen.evaluation.report.page import show_results, write_card, write_comparison, write_report
    from ctrlgen.evaluation.run import Plan, evaluate, read_training, vary
    from ctrlgen.evaluation.targets import expand_suites
    from ctrlgen.files import make_directory, to_json
    from ctrlgen.generation.generator import Generator, Settings

    plan = Plan(
        suites=tuple(suite or ["all"]),
        data=tuple(data or ()),
        training_data=training_data,
        targets=targets,
        samples=samples,
        systems=parse_systems(system or []),
        limit=limit,
        samples_per_target=samples_per_target,
        seeds=numbers,
        settings=vary(Settings(), {key: str(value) for key, value in changes.items() if value is not None}),
        sweep=swept,
        baselines=tuple(baseline or ()),
    )
    plan.variants()  # a sweep that cannot be read is refused before anything is loaded
    generator = Generator(model, find_device(device))
    if update_card:  # what cannot be written, or should not be, is refused before anything is evaluated
        card_path(generator.model)
        asked = [targets.name] if targets is not None else expand_suites(plan.suites, generator)
        refuse_to_forget(generator.model, asked, plan.limit)
    if comparison is not None:
        make_directory(comparison.parent)
    with evaluation_progress() as watch:
        training = read_training(generator, plan)
        judges, peers = find_judges(generator, lm or [], training), find_peers(generator, plan)
        command = shlex.join(["ctrlgen", *sys.argv[1:]])
        results = evaluate(generator, plan, judges, peers, training, report, watch, command)
    if as_json:
        for row in results.as_json()["rows"]:
            typer.echo(to_json(row, sys.stdout))
    else:
        show_results(results)
    if report is not None:
        write_report(results, report)
        typer.echo(f"report written to {report / 'report.html'}", err=True)
    if calibrate:
        recalibrate(results, generator)
    if update_card:
        write_card(results, generator.model)
        typer.echo(f"figures written to {card_path(generator.model)}", err=True)
    if comparison is not None:
        write_comparison(results, comparison)


def find_judges(generator: Generator, names: list[str], training: Training | None) -> list[Judge]:
    """The model's own autoregressive LM where it has one, n-grams of the training texts if given, and LMs named."""
    from ctrlgen.errors import CtrlgenError
    from ctrlgen.evaluation.judges import DomainJudge, NamedJudge, NgramJudge

    judges: list[Judge] = []
    try:
        judges.append(DomainJudge(generator.model))
    except CtrlgenError as error:
        typer.echo(f"fluency under the domain's LM is left empty: {error}", err=True)
    if training is not None:
        judges.append(NgramJudge(generator.model, training))
    return judges + [NamedJudge(name) for name in names]


def recalibrate(results: Results, generator: Generator) -> None:
    """Write the classifiers' temperatures and say what changed."""
    from ctrlgen.evaluation.calibration import fit_temperatures, write_temperatures

    fitted = fit_temperatures(results, generator)
    write_temperatures(fitted)
    for directory, found in fitted.items():
        typer.echo(
            f"{directory.name}: scores at temperature {found.temperature:.2f}, calibration error {found.error:.3f} "
            f"before and {found.error_after:.3f} after{'' if found.error_after < found.error else ': left as it was'}",
            err=True,
        )
    if not fitted:
        typer.echo("nothing was calibrated: too few texts with a verdict", err=True)


def find_peers(generator: Generator, plan: Any) -> list[Any]:
    if not plan.baselines:
        return []
    from ctrlgen.evaluation.baselines import make_peers

    return make_peers(generator, plan.baselines, plan.training_data)


def parse_systems(given: list[str]) -> tuple[tuple[str, Path], ...]:
    """NAME=FILE, each name once and none that another method has."""
    from ctrlgen.evaluation.baselines import PEERS
    from ctrlgen.evaluation.records import HUMAN
    from ctrlgen.evaluation.systems import GIVEN, OURS

    systems: dict[str, Path] = {}
    for text in given:
        name, equals, file = (part.strip() for part in text.partition("="))
        if not (name and equals and file):
            raise UsageError(f"--system {text!r}: write NAME=FILE, the name of a system and the file of its texts")
        if name in (OURS, HUMAN, GIVEN, *PEERS) or name in systems:
            raise UsageError(f"--system {text!r}: another method is called {name!r}; choose another name")
        systems[name] = Path(file)
    return tuple(systems.items())


def parse_sweep(text: str) -> tuple[str, tuple[str, ...]]:
    key, equals, values = text.partition("=")
    listed = tuple(value.strip() for value in values.split(",") if value.strip())
    if not equals or not listed:
        raise UsageError(f"--sweep {text!r}: write KEY=VALUE,VALUE,… such as strength=0,2,4,8")
    return key.strip(), listed


def parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UsageError(f"--seeds {text!r}: write whole numbers, such as 0,1,2") from None
    if any(abs(seed) > MAX_SEED for seed in seeds):
        raise UsageError(f"--seeds {text!r}: a seed must be at most {MAX_SEED} in size")
    return seeds
