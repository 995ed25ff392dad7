"""What people see of an evaluation: tables on a terminal, and one page that holds everything.

The page needs no network and no scripts: its plots are drawn into it, and every text in it is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

from ctrlgen.cli.display import console, html_mark, html_text
from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.records import HUMAN, Record
from ctrlgen.evaluation.report.card import write_card
from ctrlgen.evaluation.report.published import write_comparison
from ctrlgen.evaluation.report.tables import (
    control_table,
    html_table,
    judges,
    legend,
    notes,
    number,
    rich_table,
    text_table,
)
from ctrlgen.evaluation.run import Results
from ctrlgen.evaluation.tradeoff import KNEE, curves, knee
from ctrlgen.files import make_directory, write_text
from ctrlgen.joining import write

__all__ = ["show_results", "write_card", "write_comparison", "write_report"]

REPORT = "report.html"
SHOWN = 30  # samples of each suite, method and setting
INSTALL_PLOTS = "pip install matplotlib"


def show_results(results: Results, file: TextIO | None = None) -> None:
    """Two tables, how well controls are obeyed and what the texts are like, and what is missing."""
    out = console(file or sys.stdout)
    out.print(rich_table(control_table(results)))
    out.print()
    out.print(rich_table(text_table(results)))
    out.print()
    out.print(Text(legend(results), "dim"))
    for line in [*knees(results), *notes(results)]:
        out.print(Text(line), soft_wrap=True)


def knees(results: Results) -> list[str]:
    """The knee of every sweep, in words."""
    found = {suite: knee(points) for suite, points in curves(results).items()}
    return [f"{suite}: the knee of the sweep is {point.setting}" for suite, point in found.items() if point is not None]


def write_report(results: Results, directory: Path) -> None:
    """report.html, and a PNG file of every sweep. Raises CtrlgenError where the directory cannot be written to."""
    make_directory(directory)
    try:
        drawn = draw(results, directory)
    except ImportError as error:
        print(f"plots are left out of the report, {error.name} is missing: {INSTALL_PLOTS}", file=sys.stderr)
        drawn = Drawings()
    write_text(directory / REPORT, page(results, drawn))


class Drawings:
    """The plots of a report as SVG, by suite."""

    def __init__(self) -> None:
        self.trade_offs: dict[str, str] = {}
        self.reliabilities: list[tuple[Row, str]] = []


def draw(results: Results, directory: Path) -> Drawings:
    from ctrlgen.evaluation.report import plots

    drawings = Drawings()
    for suite, points in curves(results).items():
        human = results.row(suite, HUMAN)
        ceiling = human.success.mean if human and human.success else None
        figure = plots.trade_off_plot(points, judges(results)[0], ceiling)
        drawings.trade_offs[suite] = plots.svg(figure)
        plots.save_png(figure, directory / f"sweep-{suite.replace('/', '-')}.png")
    for row in results.rows:
        if row.calibration is not None:
            drawings.reliabilities.append((row, plots.svg(plots.reliability_plot(row))))
    return drawings


def page(results: Results, drawings: Drawings) -> str:
    """The whole report."""
    model = results.configuration.get("model", {})
    name = str(model.get("name") or "a model")
    sections = [
        section("Control", html_table(control_table(results, full=True)), paragraph(legend(results))),
        section("Texts", html_table(text_table(results, full=True))),
        missing_section(notes(results)),
        sweep_section(results, drawings),
        calibration_section(drawings),
        section("Samples", *sample_groups(results)),
        section("Configuration", details("Everything that was set", settings_table(results.configuration))),
        command_section(results.configuration.get("command")),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}: evaluation</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(name)}</h1>
{paragraph(summary_line(results))}
</header>
{"".join(filter(None, sections))}</main>
</body>
</html>
"""


def summary_line(results: Results) -> str:
    """What was measured with what, in one line."""
    configuration = results.configuration
    suites = list(dict.fromkeys(row.suite for row in results.rows))
    parts = [
        f"{len(suites)} suite{'s' if len(suites) != 1 else ''}",
        f"{sum(record.method != HUMAN for record in results.records)} texts",
        f"weights {configuration['model']['weights']}" if configuration.get("model", {}).get("weights") else "",
        str(configuration.get("hardware", {}).get("processor", "")),
        f"judged by {', '.join(judges(results))}" if judges(results) else "",
    ]
    return " · ".join(filter(None, parts))


def section(title: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(content)}\n</section>\n"


def paragraph(text: str) -> str:
    return f"<p class=aside>{escape(text)}</p>\n"


def details(title: str, content: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>\n{content}</details>\n"


def missing_section(told: Sequence[str]) -> str:
    return (
        section("What is missing", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in told)}</ul>") if told else ""
    )


def sweep_section(results: Results, drawings: Drawings) -> str:
    """Fluency against control."""
    found = curves(results)
    if not found:
        return ""
    figures = []
    for suite, points in found.items():
        at = knee(points)
        caption = f"{suite}: the knee is {at.setting}" if at else suite
        figures.append(drawing(drawings.trade_offs.get(suite, ""), caption))
    return section("Fluency against control", *figures, paragraph(KNEE))


def calibration_section(drawings: Drawings) -> str:
    """The guide's probability against the oracle's verdict."""
    if not drawings.reliabilities:
        return ""
    figures = []
    for row, plot in drawings.reliabilities:
        assert row.calibration is not None
        title = f"{row.suite} {row.setting}".strip()
        figures.append(
            drawing(
                plot,
                f"{title}: expected calibration error {number(row.calibration.error)}; at temperature "
                f"{number(row.calibration.temperature)} {number(row.calibration.error_after)}",
            )
        )
    note = "The temperature is fitted on every other text, the error is that of the rest. Large points hold many texts."
    return section("Calibration", f"<div class=grid>{''.join(figures)}</div>", paragraph(note))


def drawing(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


def sample_groups(results: Results) -> Iterator[str]:
    """The first texts of every suite, method and setting, not chosen, each beside a human text of its target."""
    yield paragraph(f"The first {SHOWN} of each, not chosen. Words that failed a control are red.")
    opened = True
    human = {(r.suite, r.target): r for r in reversed(results.records) if r.method == HUMAN}
    for row in results.rows:
        if row.method != HUMAN:
            group = (row.suite, row.method, row.setting)
            records = [record for record in results.records if record.group == group]
            records.sort(key=lambda record: (record.seed, record.index, record.target))
            shown = "".join(sample(r, results, human.get((r.suite, r.target))) for r in records[:SHOWN])
            yield details(" · ".join(filter(None, group)), f"<ol class=samples>\n{shown}</ol>", opened)
            opened = False


def sample(record: Record, results: Results, human: Record | None) -> str:
    """One text with a mark for each control."""
    asked = results.asked[record.suite]
    request, target = asked.requests[record.target], asked.targets[record.target]
    texts = [control.text for control in request.controls]
    if target.template is not None:
        texts.append(target.template)
    controls = "".join(
        f"<li>{html_mark(verdict.success)} <code>{escape(text)}</code>"
        + (f" <small>{escape(verdict.detail)}</small>" if verdict.detail else "")
        + "</li>"
        for text, verdict in zip(texts, record.verdicts, strict=False)
    )
    reference = ""
    if human is not None:
        ticks = "".join(html_mark(verdict.success) for verdict in human.verdicts)
        reference = f"<p class=reference><b>human</b> {marked(human)} {ticks}</p>"
    return f"<li><p>{marked(record)}</p><ul>{controls}</ul>{reference}</li>\n"


def marked(record: Record) -> str:
    """A text as people write it, the words that failed marked."""
    return html_text(write(record.tokens), {position for verdict in record.verdicts for position in verdict.failed})


def settings_table(configuration: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>\n"
        for key, value in flat(configuration)
        if key != "command"
    )
    return f"<table class=settings><tbody>\n{rows}</tbody></table>\n"


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as one list: plan.settings.steps, 24."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "" if value is None else str(value)


def command_section(command: str | None) -> str:
    return section("Run it again", f"<pre>{escape(command)}</pre>") if command else ""


STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --quiet: #666d78; --line: #e2e5ea; --page: #fff; --soft: #f6f7f9;
  --pass: #1a7f4b; --fail: #c62f2f; --failed: #fde3e1; --open: #9a6b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --quiet: #979faa; --line: #30353d; --page: #15181c;
  --soft: #1d2126; --pass: #56c98a; --fail: #ff8078; --failed: #4b2222; --open: #dcae4c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.02em; }
h2 { margin: 3rem 0 0.8rem; font-size: 1.15rem; }
.aside, small, figcaption, .quiet, .reference { color: var(--quiet); }
.aside, figcaption, .reference { font-size: 0.88rem; }
small { font-size: 0.78em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; }
thead th { color: var(--quiet); font-size: 0.8rem; white-space: nowrap; }
th.figure { white-space: normal; }
.figure { text-align: right; }
td.figure { white-space: nowrap; }
.settings th { font-weight: 400; color: var(--quiet); white-space: nowrap; }
.settings td { overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; max-width: 44rem; }
figure svg { width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; }
details { border-top: 1px solid var(--line); padding: 0.6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.samples { padding-left: 2rem; }
.samples > li { padding: 0.5rem 0; }
.samples > li::marker { color: var(--quiet); font-size: 0.8rem; }
.samples p { margin: 0; max-width: 60rem; }
.samples ul { list-style: none; margin: 0.15rem 0; padding: 0; font-size: 0.85rem; }
code, pre { font: 0.92em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: 1rem; border-radius: 6px; white-space: pre-wrap; }
mark { background: var(--failed); color: var(--fail); border-radius: 3px; padding: 0 0.15em; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .open { color: var(--open); }
@media print { details > * { display: block; } }
"""
