"""Makes `score` mean what it says: a temperature for each trained classifier, fitted to its oracle's verdicts."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

from ctrlgen.checkpoint import CONFIG, DiffusionLM, directories_of, read_config
from ctrlgen.controls.registry import SCORE_TEMPERATURE, trained_classifiers
from ctrlgen.directories import replacing
from ctrlgen.evaluation.metrics import Calibration, calibrate
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import OURS
from ctrlgen.files import write_text
from ctrlgen.generation.confidence import FEWEST, Confidence, Scored, kind_of, score
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings

FEWEST_OF_EITHER = 5  # verdicts of success and of failure


def fit_temperatures(results: Results, generator: Generator) -> dict[Path, Calibration]:
    """For each trained classifier with enough texts, how far its scores are from the verdicts, by its directory.

    Texts under several controls are left out: there each control disturbs the others. So are classifiers that hardly
    ever failed or hardly ever succeeded: any score near that end would fit.
    """
    directory_of = {
        id(generator.controls.classifier(name)): directory
        for name, directory in trained_classifiers(generator.model).items()
    }
    seen: dict[Path, list[tuple[float, bool]]] = defaultdict(list)
    for record in results.records:
        controls = results.asked[record.suite].requests[record.target].controls
        if record.system != OURS or record.setting or len(controls) != 1 or not record.scores:
            continue
        directory = directory_of.get(id(controls[0].classifier))
        if directory is not None and record.verdicts[0].success is not None:
            seen[directory].append((record.scores[0], record.verdicts[0].success))
    fitted = {
        directory: calibrate(*map(list, zip(*pairs, strict=True)))
        for directory, pairs in seen.items()
        if FEWEST_OF_EITHER <= sum(success for _, success in pairs) <= len(pairs) - FEWEST_OF_EITHER
    }
    return {directory: found for directory, found in fitted.items() if found is not None}


def write_temperatures(fitted: dict[Path, Calibration], model: DiffusionLM) -> None:
    """Keep the temperatures in the classifiers' config.json, on top of those they had when they were measured.

    One that does not help on the texts it was not fitted to is not written. A classifier of a model that is not ours to
    write to is copied to the user's directory.
    """
    for directory, found in fitted.items():
        if found.error_after >= found.error:
            continue
        config = read_config(directory / CONFIG)
        config[SCORE_TEMPERATURE] = round(config.get(SCORE_TEMPERATURE, 1.0) * found.temperature, 3)
        text = json.dumps(config, indent=2) + "\n"
        own = directories_of(model, "classifiers")[0] / directory.name
        if own == directory:
            write_text(own / CONFIG, text)
            continue
        with replacing(own) as copy:
            shutil.copytree(directory, copy, dirs_exist_ok=True)
            write_text(copy / CONFIG, text)


def learn_confidence(results: Results, generator: Generator, settings: Settings) -> list[str]:
    """Keep scores and verdicts of each kind of request that has targets enough; what was learned, a line a kind.

    Raises CtrlgenError for a model that was not saved.
    """
    found = scores_and_verdicts(results)
    enough = {kind: scored for kind, scored in found.items() if len(scored.scores) >= FEWEST}
    said = [
        f"{kind}: nothing is learned of {len(scored.scores)} targets; --confidence needs {FEWEST}"
        for kind, scored in found.items()
        if kind not in enough
    ]
    if enough:
        path = Confidence(generator.model).keep(enough, settings)
        said += [f"{kind}: scores and verdicts of {len(of.scores)} targets in {path}" for kind, of in enough.items()]
    return said or ["nothing was learned for --confidence: no text has both a score and a verdict"]


def scores_and_verdicts(results: Results) -> dict[str, Scored]:
    """Score and verdict of one text a target, the first of the first seed, by the kind of request."""
    seed = results.configuration["plan"]["seeds"][0]
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for record in results.records:
        if (record.system, record.setting, record.seed, record.index) != (OURS, "", seed, 0):
            continue
        request = results.asked[record.suite].requests[record.target]
        if record.scores and record.checked and request.template is None:
            scored = score(request.controls, record.scores), record.success is True
            found[kind_of(request.controls)].append(scored)
    return {kind: Scored(*map(tuple, zip(*pairs, strict=True))) for kind, pairs in found.items()}


def recalibrate(results: Results, generator: Generator) -> list[str]:
    """Fit and keep the temperatures; what changed, a line a classifier."""
    fitted = fit_temperatures(results, generator)
    write_temperatures(fitted, generator.model)
    return [
        f"{directory.name}: scores at temperature {found.temperature:.2f}, calibration error {found.error:.3f} "
        f"before and {found.error_after:.3f} after{'' if found.error_after < found.error else ': left as it was'}"
        for directory, found in fitted.items()
    ] or ["nothing was calibrated: too few texts with a verdict"]
