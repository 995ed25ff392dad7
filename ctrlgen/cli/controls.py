"""`ctrlgen controls`: what can be asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.common import ModelOption
from ctrlgen.files import to_json

if TYPE_CHECKING:
    from ctrlgen.controls.classifier import Classifier


def controls(
    name: Annotated[
        str | None, typer.Argument(help="A control of the model, to list its values, or what they are written with.")
    ] = None,
    model: ModelOption = "e2e",
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
) -> None:
    """List what a model can be asked for.

    Each control has its syntax, an example and what checks it. With a name, the values of one control are listed.

    Example: ctrlgen controls food
    """
    from rich.table import Table
    from rich.text import Text

    from ctrlgen.checkpoint import CONFIG, from_pretrained, read_config
    from ctrlgen.cli.display import console
    from ctrlgen.controls.registry import Controls, classifier_kinds, oracle_accuracy, trained_classifiers
    from ctrlgen.evaluation.report.card import measured_success
    from ctrlgen.generation.request import GOOD_ORACLE

    loaded = from_pretrained(model)
    if name is not None:
        list_values(Controls(loaded).classifier(name), as_json)
        return
    ready = Controls(loaded).names()
    configs = {name: read_config(path / CONFIG) for name, path in trained_classifiers(loaded).items()}
    measured = measured_success(loaded)
    rows: list[dict[str, Any]] = []
    for kind, classifier in classifier_kinds().items():
        names = [name for name, of_kind in ready.items() if of_kind == kind]
        rows.append({
            "kind": kind, "names": names, "summary": classifier.summary, "syntax": classifier.syntax,
            "example": classifier.example, "checked_by": classifier.oracle,
            "measured": measured.get(kind),
            "oracle_accuracy": {
                name: of for name in names if (of := oracle_accuracy(configs.get(name, {}), name)) is not None
            },
        })  # fmt: skip
    if as_json:
        for row in rows:
            print(to_json(row, sys.stdout))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for heading in ("control", "what", "syntax and example", "checked by"):
        table.add_column(heading)
    for row in rows:
        names = [name for name in row["names"] if name != row["kind"]]
        also = ", ".join(names) if row["names"] else f"not trained on {model}"
        what = Text(f"{row['summary']}\n{also}".rstrip())
        how = Text(f"{row['syntax']}\n{row['example']}")
        right = "\n".join(
            f"right of {of:.0%} of {name}" for name, of in row["oracle_accuracy"].items() if of < GOOD_ORACLE
        )
        said = [row["checked_by"], right, in_words(row["measured"])]
        table.add_row(row["kind"], what, how, Text("\n".join(filter(None, said))))
    console(sys.stdout).print(table)
    if any(measured.values()):
        print("success: measured by `ctrlgen eval` on texts held out, and human texts under the same check")


def list_values(classifier: Classifier, as_json: bool) -> None:
    """Every value of a control, one a line, as it is asked for; how it is written, where there are too many to list."""
    values, symbols = list(classifier.choices()), classifier.symbols()
    if as_json:
        print(to_json({"kind": classifier.kind, "values": values, "symbols": symbols}, sys.stdout))
        return
    if not values:
        values = [classifier.syntax, f"example: {classifier.example}"]
        values += [f"{name}: {' '.join(known)}" for name, known in symbols.items()]
    print("\n".join(values))


def in_words(measured: dict[str, Any] | None) -> str:
    """`success 78.0%, parts 99.0%; human 100.0%`"""
    if not measured:
        return ""
    parts = f", parts {measured['parts']:.1%}" if measured.get("parts") is not None else ""
    human = f"; human {measured['human']:.1%}" if measured.get("human") is not None else ""
    return f"success {measured['success']:.1%}{parts}{human}"
