"""`ctrlgen controls`: what can be asked for."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ctrlgen.cli.common import ModelOption


def controls(
    model: ModelOption = "e2e",
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
) -> None:
    """List the installed controls: syntax, an example, what checks it, and whether this model has it."""
    from rich.table import Table
    from rich.text import Text

    from ctrlgen.checkpoint import from_pretrained
    from ctrlgen.display import console
    from ctrlgen.registry import Controls, classifier_kinds

    ready = Controls(from_pretrained(model)).names()
    rows: list[dict[str, Any]] = []
    for kind, classifier in classifier_kinds().items():
        names = [name for name, of_kind in ready.items() if of_kind == kind]
        rows.append({
            "kind": kind, "names": names, "summary": classifier.summary, "syntax": classifier.syntax,
            "example": classifier.example, "checked_by": classifier.oracle,
        })  # fmt: skip
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for heading in ("control", "what", "syntax and example", "checked by"):
        table.add_column(heading)
    for row in rows:
        names = [name for name in row["names"] if name != row["kind"]]
        also = ", ".join(names) if row["names"] else f"not trained on {model}"
        what = Text(f"{row['summary']}\n{also}".rstrip())
        table.add_row(row["kind"], what, Text(f"{row['syntax']}\n{row['example']}"), row["checked_by"])
    console(sys.stdout).print(table)
