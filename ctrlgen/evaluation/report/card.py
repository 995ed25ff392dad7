"""The figures in a model's card: a block of its README.md that an evaluation writes, and nobody by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrlgen.checkpoint import MEASURED, DiffusionLM, is_hub_copy, read_config
from ctrlgen.controls.registry import fingerprint, trained_classifiers, weights_fingerprint
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.report.tables import FRONTIER, card_table, frontier_table, legend, markdown_table, notes
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN, OURS
from ctrlgen.files import atomic_file, make_directory, write_text

START, END = "<!-- figures: written by ctrlgen eval, not by hand -->", "<!-- end of figures -->"


def write_card(results: Results, model: DiffusionLM) -> None:
    """Replace the block of figures in the model's README.md, or add it; everything else stays byte for byte.

    What `ctrlgen controls` shows of them goes into measured.json beside it. Raises CtrlgenError where the card cannot
    be read or written, or its block has no end.
    """
    path = card_path(model)
    try:
        card = path.read_bytes().decode("utf-8") if path.exists() else f"# {path.parent.name}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise CtrlgenError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(with_block(card, figures(results), str(path)).encode("utf-8"))
    write_text(path.with_name(MEASURED), json.dumps(measured(results, model), indent=2) + "\n")


def measured_success(model: DiffusionLM) -> dict[str, dict[str, Any]]:
    """What evaluation found for each control of these very weights, the denoiser's and the classifiers'."""
    if model.directory is None or not (model.directory / MEASURED).is_file():
        return {}
    found = read_config(model.directory / MEASURED)
    suites: dict[str, dict[str, Any]] = found.get("suites", {})
    trained = trained_classifiers(model)
    is_same = found.get("weights") == weights_fingerprint(model) and all(
        name in trained and fingerprint(trained[name]) == measured
        for name, measured in found.get("classifiers", {}).items()
    )
    return suites if is_same else {}


def refuse_to_forget(model: DiffusionLM, suites: Sequence[str], limit: int) -> None:
    """Raises UsageError where figures of more suites or targets would be replaced."""
    known = measured_success(model)
    lost = [suite for suite, of in known.items() if suite not in suites or of.get("targets", 0) > limit]
    if lost:
        raise UsageError(
            f"--update-card would replace figures of more suites or targets ({', '.join(lost)}); evaluate as much, "
            f"or remove {card_path(model).with_name(MEASURED)}"
        )


def measured(results: Results, model: DiffusionLM) -> dict[str, Any]:
    """Success by suite, human text's beside it, and the weights and classifiers that it is true of."""
    suites = {}
    for suite in results.asked:
        ours, human = results.row(suite, OURS), results.row(suite, HUMAN)
        if ours is not None and ours.success is not None:
            suites[suite] = {
                "targets": ours.targets,
                "success": round(ours.success.mean, 4),
                "parts": round(ours.parts.mean, 4) if ours.parts is not None else None,
                "human": round(human.success.mean, 4) if human is not None and human.success is not None else None,
            }
    networks = {name: fingerprint(directory) for name, directory in trained_classifiers(model).items()}
    return {"weights": results.configuration["model"]["weights"], "classifiers": networks, "suites": suites}


def card_path(model: DiffusionLM) -> Path:
    """Where the model's card is. Raises CtrlgenError where it cannot be written, before anything is begun in vain."""
    if model.directory is None:
        raise CtrlgenError("this model has no directory, so it has no card to update")
    if not model.directory.is_dir():
        raise CtrlgenError(f"{model.directory}: there is no such model directory")
    if is_hub_copy(model.directory):
        raise CtrlgenError(f"{model.directory}: is the hub's copy; download the model to a directory of your own first")
    make_directory(model.directory)
    return model.directory / "README.md"


def with_block(card: str, block: str, name: str) -> str:
    """A card with its block replaced, or added at the end. Raises CtrlgenError for a block without an end."""
    if START not in card:
        return f"{card.rstrip()}\n\n{START}\n{block}{END}\n" if card.strip() else f"{START}\n{block}{END}\n"
    before, _, rest = card.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise CtrlgenError(f"{name}: the block of figures does not end: add a line {END}")
    return f"{before}{START}\n{block}{END}{after}"


def figures(results: Results) -> str:
    """The block's Markdown: a table, how to read it, and what it was measured with."""
    configuration = results.configuration
    variety = frontier_table(results)
    parts = [markdown_table(card_table(results)), legend(results) + "\n"]
    parts += [f"{FRONTIER}\n", markdown_table(variety)] if variety is not None else []
    parts += [f"{note}\n" for note in notes(results)]
    parts.append(provenance(results))
    if configuration.get("command"):
        parts.append(f"    {configuration['command']}\n")
    return "\n" + "\n".join(parts) + "\n"


def provenance(results: Results) -> str:
    """Weights, versions and machine in one sentence."""
    configuration = results.configuration
    versions, hardware = configuration.get("versions", {}), configuration.get("hardware", {})
    weights = configuration.get("model", {}).get("weights")
    parts = [
        f"Weights {weights}" if weights else "",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{hardware['processor']}, {hardware['device']}, threads: {hardware['threads']}" if hardware else "",
    ]
    return "; ".join(filter(None, parts)) + ".\n"
