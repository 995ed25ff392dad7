"""An evaluation's tables on a terminal."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.table import Table as RichTable
from rich.text import Text

from ctrlgen.cli.display import console
from ctrlgen.evaluation.report.tables import (
    FRONTIER,
    NAMES,
    Cell,
    Table,
    control_table,
    frontier_table,
    legend,
    notes,
    text_table,
)
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.tradeoff import knees


def show_results(results: Results, file: TextIO | None = None) -> None:
    """How well controls are obeyed, what the texts are like, and what is missing."""
    out = console(file or sys.stdout)
    out.print(rich_table(control_table(results)))
    out.print()
    out.print(rich_table(text_table(results)))
    out.print()
    variety = frontier_table(results)
    if variety is not None:
        out.print(Text(FRONTIER))
        out.print(rich_table(variety))
        out.print()
    out.print(Text(legend(results), "dim"))
    for line in [*knees(results), *notes(results)]:
        out.print(Text(line), soft_wrap=True)


def rich_table(table: Table) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in table.header:
        drawn.add_column(name, justify="left" if name in NAMES else "right", vertical="top", overflow="fold")
    for line in table.lines:
        drawn.add_row(*map(rich_cell, line.cells), style="dim" if line.quiet else "")
    return drawn


def rich_cell(cell: Cell) -> Text:
    return Text(" ").join(part for part in (Text(cell.text), Text(cell.aside, "dim")) if part)
