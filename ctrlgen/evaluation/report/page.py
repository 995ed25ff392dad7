"""One page that holds everything of an evaluation: `templates/report.html`, filled.

The page needs no network and no scripts: its plots are drawn into it, and every text in it is escaped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ctrlgen.controls.classifier import Verdict
from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.report.tables import (
    FRONTIER,
    NAMES,
    control_table,
    frontier_table,
    legend,
    notes,
    number,
    text_table,
)
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN
from ctrlgen.evaluation.tradeoff import KNEE, curves, frontier, knee
from ctrlgen.files import make_directory, write_text

REPORT = "report.html"
SHOWN = 30  # samples of each suite, system and setting
INSTALL_PLOTS = "pip install matplotlib"

Sample = tuple[Record, list[tuple[str, Verdict]], Record | None]  # with its controls, and a human text of its target


@dataclass(frozen=True)
class Drawings:
    """The plots of a report as SVG."""

    frontiers: list[tuple[Markup, str]] = field(default_factory=list)  # with captions
    sweeps: dict[str, Markup] = field(default_factory=dict)  # by suite
    calibrations: list[tuple[Markup, str]] = field(default_factory=list)  # with captions


def write_report(results: Results, directory: Path) -> None:
    """report.html, and a PNG file of every sweep. Raises CtrlgenError where the directory cannot be written to."""
    make_directory(directory)
    try:
        drawings = draw(results, directory)
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "plots are left out of the report, %s is missing: %s", error.name, INSTALL_PLOTS
        )
        drawings = Drawings()
    write_text(directory / REPORT, page(results, drawings))


def draw(results: Results, directory: Path) -> Drawings:
    """Raises ImportError where matplotlib is missing."""
    from ctrlgen.evaluation.report import plots

    drawings = Drawings()
    for suite, points in curves(results).items():
        human = results.row(suite, HUMAN)
        ceiling = human.success.mean if human and human.success else None
        figure = plots.trade_off_plot(points, results.cost_models[0], ceiling)
        drawings.sweeps[suite] = Markup(plots.svg(figure))
        plots.save_png(figure, directory / f"sweep-{suite.replace('/', '-')}.png")
    for name in results.cost_models:
        if of := frontier(results, name):
            drawings.frontiers.append((Markup(plots.svg(plots.frontier_plot(of, name))), f"cost by {name}"))
    for row in results.rows:
        if row.calibration is not None:
            svg = Markup(plots.svg(plots.reliability_plot(row)))
            drawings.calibrations.append((svg, calibration_caption(row)))
    return drawings


def sweep_captions(results: Results) -> dict[str, str]:
    """By suite."""
    knees = {suite: knee(points) for suite, points in curves(results).items()}
    return {suite: f"{suite}: the knee is {at.setting}" if at else suite for suite, at in knees.items()}


def calibration_caption(row: Row) -> str:
    assert row.calibration is not None
    return (
        f"{row.suite} {row.setting}".strip() + f": expected calibration error {number(row.calibration.error)}; "
        f"at temperature {number(row.calibration.temperature)} {number(row.calibration.error_after)}"
    )


def page(results: Results, drawings: Drawings) -> str:
    """The whole report."""
    configuration = results.configuration
    environment = Environment(
        loader=PackageLoader("ctrlgen.evaluation.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(REPORT).render(
        name=str(configuration.get("model", {}).get("name") or "a model"),
        summary=summary(results),
        name_columns=NAMES,
        control=control_table(results, full=True),
        texts=text_table(results, full=True),
        legend=legend(results),
        variety=frontier_table(results),
        frontier=FRONTIER,
        frontiers=drawings.frontiers,
        notes=notes(results),
        sweeps=[(drawings.sweeps.get(suite, ""), caption) for suite, caption in sweep_captions(results).items()],
        knee=KNEE,
        calibrations=drawings.calibrations,
        shown=SHOWN,
        groups=list(sample_groups(results)),
        configuration=[(key, value) for key, value in flat(configuration) if key != "command"],
        command=configuration.get("command"),
    )


def summary(results: Results) -> str:
    """What was measured with what, in one line."""
    configuration = results.configuration
    suites = list(dict.fromkeys(row.suite for row in results.rows))
    parts = [
        f"{len(suites)} suite{'s' if len(suites) != 1 else ''}",
        f"{sum(record.system != HUMAN for record in results.records)} texts",
        f"weights {configuration['model']['weights']}" if configuration.get("model", {}).get("weights") else "",
        str(configuration.get("hardware", {}).get("processor", "")),
        f"cost by {', '.join(results.cost_models)}" if results.cost_models else "",
    ]
    return " · ".join(filter(None, parts))


def sample_groups(results: Results) -> Iterator[tuple[str, list[Sample]]]:
    """The first texts of every suite, system and setting, not chosen, each beside a human text of its target."""
    human = {(r.suite, r.target): r for r in reversed(results.records) if r.system == HUMAN}
    for row in results.rows:
        if row.system != HUMAN:
            group = (row.suite, row.system, row.setting)
            records = [record for record in results.records if record.group == group]
            records.sort(key=lambda record: (record.seed, record.index, record.target))
            samples = [(r, controls_of(r, results), human.get((r.suite, r.target))) for r in records[:SHOWN]]
            yield " · ".join(filter(None, group)), samples


def controls_of(record: Record, results: Results) -> list[tuple[str, Verdict]]:
    """What a text was asked to have, template included, with the verdicts."""
    asked = results.asked[record.suite]
    texts = [control.text for control in asked.requests[record.target].controls]
    template = asked.targets[record.target].template
    return list(zip([*texts, *filter(None, [template])], record.verdicts, strict=False))


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as one list: plan.settings.steps, 24."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "" if value is None else str(value)
