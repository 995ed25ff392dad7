"""`ctrlgen augment`: more labelled texts."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ctrlgen.cli.common import DeviceOption, find_device
from ctrlgen.cli.journal import journal
from ctrlgen.cli.telling import waiting
from ctrlgen.errors import UsageError

if TYPE_CHECKING:
    from ctrlgen.domain.augmenting import Augmented


def augment(
    data: Annotated[str, typer.Option(help="The labelled texts that there are: a path or a hub id.")],
    label_column: Annotated[str, typer.Option(help="The column of labels, a control of the model.")],
    out: Annotated[Path, typer.Option(help="The new texts, as csv.")],
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    per_label: Annotated[int, typer.Option(min=1, max=100_000, help="Texts for each label.")] = 50,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model that `ctrlgen train --label-column` has made.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the texts.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Write more labelled texts.

    There are as many for each label, and no copies of yours; the worst are left out.

    Twice as many are drawn as are kept. A run that was stopped goes on with the same command.

    Example: ctrlgen augment --data train.csv --label-column intent --per-label 50 --model mine --out more.csv
    """
    if model is None:
        raise UsageError(
            f"give --model; `ctrlgen train --data {data} --label-column {label_column} --minutes 20 --out mine` "
            "makes one"
        )
    from ctrlgen.domain.augmenting import Augmenter
    from ctrlgen.domain.verdict import earlier_doubt
    from ctrlgen.files import atomic_file
    from ctrlgen.generation.generator import Generator

    generator = Generator(model, find_device(device))
    if doubt := earlier_doubt(generator.model.directory):
        print(f"ctrlgen: warning: the verdict on this model is {doubt}", file=sys.stderr)
    augmenter = Augmenter(generator, data, text_column, label_column)
    requests = augmenter.requests(per_label, seed)
    job = {
        "model": str(generator.model.directory),
        "data": hashlib.sha256(repr(augmenter.training.sentences).encode()).hexdigest(),
        "request": f"{label_column} {per_label} {seed}",
    }
    drawn_file = out.with_name(f"{out.name}.drawn")
    with (
        atomic_file(out) as temporary,  # a place that cannot be written to is refused before anything is drawn
        journal(drawn_file, job, [request.n for request in requests]) as noted,
        waiting("writing texts") as tell,
    ):
        drawn = list(noted.kept)
        for number, request in enumerate(requests[noted.done :], noted.done + 1):
            rows = augmenter.draw(request)
            noted.add(rows)
            drawn += rows
            tell(f"{number} of {len(requests)} requests")
        chosen, left = augmenter.choose(drawn, per_label)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, augmenter.text_column, label_column, chosen)
    drawn_file.unlink(missing_ok=True)
    count = {value: sum(text.label == value for text in chosen) for value in augmenter.values}
    copies, near = sum(of.copies for of in left.values()), sum(of.near for of in left.values())
    print(
        f"ctrlgen: {len(drawn):,} texts drawn: {copies:,} copies, {near:,} near copies and "
        f"{sum(of.worse for of in left.values()):,} worse ones left out; {len(chosen):,} written to {out}",
        file=sys.stderr,
    )
    short = [f"{value} ({n})" for value, n in count.items() if n < per_label]
    if short:
        print(f"ctrlgen: warning: fewer than {per_label} new texts of {', '.join(short)}", file=sys.stderr)


def write_rows(file: TextIO, text_column: str, label_column: str, texts: Sequence[Augmented]) -> None:
    """Rows under the names of the data's own columns."""
    rows = csv.writer(file)
    rows.writerow([text_column, label_column, "probability", "cost"])
    rows.writerows([text.text, text.label, f"{text.probability:.4f}", f"{text.cost:.3f}"] for text in texts)
