"""Tables of figures, made once for the terminal, the page and Markdown alike.

What was not measured is an empty cell, and a column in which nothing was measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.metrics import Estimate
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN
from ctrlgen.evaluation.tradeoff import frontier

NAMES = ("suite", "system", "setting", "also %", "unguided")  # columns of words, set to the left


@dataclass(frozen=True)
class Cell:
    text: str = ""
    aside: str = ""  # smaller, beside it: the interval

    def __str__(self) -> str:
        return f"{self.text} ({self.aside})" if self.text and self.aside else self.text or self.aside


@dataclass(frozen=True)
class Line:
    cells: tuple[Cell, ...]
    quiet: bool = False  # human text, there for comparison

    def named(self, header: Sequence[str]) -> list[tuple[str, Cell]]:
        """Each cell with the name of its column."""
        return list(zip(header, self.cells, strict=True))


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    lines: tuple[Line, ...]


Column = Callable[[Row, Row | None], Cell]  # of a row, and of the human one of its suite


def percent(value: float | None) -> str:
    return f"{100 * value:.1f}" if value is not None and not math.isnan(value) else ""


def number(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value is not None and not math.isnan(value) else ""


def signed(value: float) -> str:
    """With a sign, and never a negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def share(estimate: Estimate | None) -> Cell:
    """A share as percent with its interval: 98.6, 97.1–99.8."""
    if estimate is None:
        return Cell()
    return Cell(percent(estimate.mean), f"{percent(estimate.low)}–{percent(estimate.high)}")


def difference(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    return Cell(signed(estimate.mean), f"{signed(estimate.low)} to {signed(estimate.high)}")


def listed(estimates: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{name} {percent(estimate.mean)}" for name, estimate in estimates.items())


def further(row: Row) -> str:
    """Success by control in compositions, and further published tests."""
    return ", ".join(filter(None, (listed(row.by_control), listed(row.also))))


def of_people(row: Row, human: Row | None) -> Cell:
    if human is None or human.success is None:
        return Cell()
    some_wrong = human.parts is not None and human.parts.mean not in (1.0, human.success.mean)
    parts = f"{PARTS.removesuffix(' %')} {percent(human.parts.mean)}" if human.parts and some_wrong else ""
    return Cell(percent(human.success.mean), ", ".join(filter(None, [parts, further(human)])))


PARTS = "per word / F1 %"
FRONTIER = "Cost against variety: unguided texts by temperature, beside human ones."
NAME_COLUMNS: dict[str, Column] = {
    "suite": lambda row, human: Cell(row.suite),
    "system": lambda row, human: Cell(row.system),
    "setting": lambda row, human: Cell(row.setting),
}
CONTROL_COLUMNS: dict[str, Column] = {
    "success %": lambda row, human: share(row.success),
    "human %": of_people,
    PARTS: lambda row, human: share(row.parts),
    "also %": lambda row, human: Cell(further(row)),
}
SLIP_COLUMNS: dict[str, Column] = {
    "slips %": lambda row, human: share(row.slips),
    "pairs twice %": lambda row, human: share(row.repeats),
}
VARIETY_COLUMNS: dict[str, Column] = {
    "distinct-1": lambda row, human: Cell(number(row.distinct.get("1"))),
    "distinct-2": lambda row, human: Cell(number(row.distinct.get("2"))),
    "distinct-4": lambda row, human: Cell(number(row.distinct.get("4"))),
    "entropy": lambda row, human: Cell(number(row.entropy)),
    "self-BLEU": lambda row, human: Cell(number(row.self_bleu, 1)),
    "copies %": lambda row, human: Cell(percent(row.copies)),
    "shared words": lambda row, human: Cell(number(row.longest_shared, 1)),
    "BLEU": lambda row, human: Cell(number(row.bleu, 1)),
    "ROUGE-L": lambda row, human: Cell(number(row.rouge_l)),
    "s / text": lambda row, human: Cell(number(row.seconds_per_sample)),
    "words / s": lambda row, human: Cell(number(row.tokens_per_second, 0)),
    "calls": lambda row, human: Cell("" if row.evaluations is None else str(row.evaluations)),
}

FULL_ONLY = ("distinct-1", "distinct-2", "entropy", "self-BLEU", "shared words")


def gap_column(name: str) -> Column:
    return lambda row, human: difference(row.gap.get(name))


def cost_column(name: str) -> Column:
    return lambda row, human: Cell(number(row.cost[name].mean)) if name in row.cost else Cell()


def perplexity_column(name: str) -> Column:
    return lambda row, human: Cell(number(row.exp_mean.get(name))) if name in row.cost else Cell()


def control_table(results: Results, full: bool = False) -> Table:
    """Who obeys, beside what human text of the same targets reaches, and at what cost above it."""
    columns = NAME_COLUMNS | CONTROL_COLUMNS
    if not full:
        columns[PARTS] = lambda row, human: Cell(share(row.parts).text)
    gaps = {f"above human, {name}": gap_column(name) for name in results.cost_models}
    return tabulate(results, columns | gaps, with_people=False)


def text_table(results: Results, full: bool = False) -> Table:
    """What the texts are like, human ones too: cost, variety, novelty, speed."""
    columns = NAME_COLUMNS | {f"nats, {name}": cost_column(name) for name in results.cost_models}
    if full:
        columns |= {f"mean exp, {name}": perplexity_column(name) for name in results.cost_models}
    wanted = {name: column for name, column in VARIETY_COLUMNS.items() if full or name not in FULL_ONLY}
    slips = SLIP_COLUMNS if full else {name: shortened(column) for name, column in SLIP_COLUMNS.items()}
    return tabulate(results, columns | slips | wanted, with_people=True)


def shortened(column: Column) -> Column:
    """Without the interval."""
    return lambda row, human: Cell(column(row, human).text)


def beside_people(column: Column) -> Column:
    """With what human text of the same targets has."""

    def both(row: Row, human: Row | None) -> Cell:
        cell, theirs = column(row, human), column(human, None).text if human is not None else ""
        return Cell(cell.text, "; ".join(filter(None, [cell.aside, f"human {theirs}" if theirs else ""])))

    return both


def card_table(results: Results) -> Table:
    """Everything about control that a model card should say."""
    gaps = {f"nats above human, {name}": gap_column(name) for name in results.cost_models}
    targets: dict[str, Column] = {"targets": lambda row, human: Cell(str(row.targets))}
    variety = {name: VARIETY_COLUMNS[name] for name in ("distinct-4", "copies %", "s / text")}
    slips = {name: beside_people(column) for name, column in SLIP_COLUMNS.items()}
    return tabulate(results, NAME_COLUMNS | targets | CONTROL_COLUMNS | gaps | slips | variety, with_people=False)


def frontier_table(results: Results) -> Table | None:
    """Cost against variety of unguided texts, a line a setting, human texts last; None where one setting was tried."""
    lines: dict[str, list[Cell]] = {}
    for cost_model in results.cost_models:
        for of in frontier(results, cost_model):
            names = [Cell(of.name), Cell(number(of.distinct)), Cell(number(of.entropy))]
            lines.setdefault(of.name, names).append(Cell(number(of.cost)))
    if not lines:
        return None
    header = ("unguided", "distinct-4", "entropy", *(f"nats, {name}" for name in results.cost_models))
    return Table(header, tuple(Line(tuple(cells), name == HUMAN) for name, cells in lines.items()))


def tabulate(results: Results, columns: Mapping[str, Column], with_people: bool) -> Table:
    """A line a row, without the columns that are empty throughout."""
    lines = [
        Line(tuple(column(row, results.row(row.suite, HUMAN)) for column in columns.values()), row.system == HUMAN)
        for row in results.rows
        if with_people or row.system != HUMAN
    ]
    used = [number for number in range(len(columns)) if any(str(line.cells[number]) for line in lines)]
    names = list(columns)
    return Table(
        tuple(names[number] for number in used),
        tuple(Line(tuple(line.cells[number] for number in used), line.quiet) for line in lines),
    )


def markdown_table(table: Table) -> str:
    rows = [list(table.header), ["---" if name in NAMES else "---:" for name in table.header]]
    rows += [[str(cell).replace("|", "\\|") for cell in line.cells] for line in table.lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def notes(results: Results) -> list[str]:
    """What is missing and why, each reason once."""
    suites: dict[str, list[str]] = {}
    for record in results.records:
        for verdict in record.verdicts:
            if verdict.success is None and record.suite not in suites.setdefault(verdict.detail or "not checked", []):
                suites[verdict.detail or "not checked"].append(record.suite)
    remarks = results.notes + [f"{', '.join(names)}: {reason}" for reason, names in suites.items()]
    if results.rows and not results.cost_models:
        remarks.append("No cost model was there: what texts cost is left empty (ctrlgen train-lm makes one).")
    if results.rows and all(row.copies is None for row in results.rows):
        remarks.append(
            "What is copied from training texts, and slips, were not looked for: --training-data names them."
        )
    if any(row.self_bleu is None and row.samples > 1 for row in results.rows):
        remarks.append("BLEU and self-BLEU are left empty, sacrebleu is missing: pip install sacrebleu")
    return remarks


def legend(results: Results) -> str:
    """How to read the tables."""
    parts = [
        "Intervals: 95% over targets, Wilson's of shares, bootstrap of costs. human: human texts of the same targets "
        "under the same oracle."
    ]
    if any(row.parts for row in results.rows):
        parts.append("per word / F1: words of a pattern, brackets of a tree, spans, phrases that are right.")
    if results.cost_models:
        parts.append(
            "above human: nats a token more than human texts of the same targets cost; below 0 means more predictable, "
            "not better."
        )
    if any(row.slips for row in results.rows):
        parts.append("slips: texts with a word costlier under the 5-grams than the worst of 95% of human texts.")
    if any(row.repeats for row in results.rows):
        parts.append("pairs twice: texts in which two neighbouring words stand twice.")
    return " ".join(parts)
