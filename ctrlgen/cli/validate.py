"""`ctrlgen validate`: check a recipe, a batch of requests or a file of data, without running it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.batch import BATCH_KEYS, requests_and_bad, understood
from ctrlgen.cli.common import ModelOption
from ctrlgen.cli.sampling import SamplingOptions
from ctrlgen.errors import UsageError, shown
from ctrlgen.files import read_lines

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("recipe", "batch", "data")
MOST_LISTED = 5  # values of a column
MOST_VALUES = 50  # different ones in a column that looks like labels


def validate(
    file: Annotated[str, typer.Argument(help="A recipe (.toml), a batch of requests (.jsonl) or data.")],
    model: ModelOption = "e2e",
    kind: Annotated[
        str | None, typer.Option("--as", help="recipe, batch or data; what the file looks like if not given.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Of data: the column that holds the text.")] = None,
) -> None:
    """Check a file before it costs hours: every mistake is named, and nothing is trained or sampled.

    Example: ctrlgen validate requests.jsonl --model e2e
    """
    kind = kind or kind_of(file)
    if kind not in KINDS:
        raise UsageError(f"--as {shown(kind)}: use {', '.join(KINDS)}")
    if kind == "recipe":
        validate_recipe(Path(file))
    elif kind == "batch":
        validate_batch(file, model)
    else:
        validate_data(file, text_column)


def kind_of(file: str) -> str:
    """A recipe by its name; a batch by the keys of its first line; else data."""
    path = Path(file)
    if path.suffix.lower() == ".toml":
        return "recipe"
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return "data"
    try:
        first: Any = json.loads(next(filter(str.strip, read_lines(path)), ""))
    except (ValueError, RecursionError):
        return "batch"
    return "batch" if isinstance(first, dict) and set(first) <= set(BATCH_KEYS) else "data"


def validate_recipe(path: Path) -> None:
    """Its keys and values, and whether its data can be read."""
    from ctrlgen.data.texts import load_data, load_rows
    from ctrlgen.training.recipe import read_recipe

    data = read_recipe(path).data
    for source in filter(None, (data.train, data.validation)):
        load_data(source, data.text_column)
    for source in data.documents:
        load_rows(source)
    typer.echo(f"{path}: a recipe; its data can be read")


def validate_batch(source: str, model: str) -> None:
    """Whether the model understands every request."""
    lines, bad = requests_and_bad(source)
    from ctrlgen.generation.generator import Generator

    _, requests = understood(Generator(model), lines, SamplingOptions(), skip_bad=False, bad=bad)
    texts = sum(request.n for request in requests)
    typer.echo(f"{source}: a batch of {len(requests):,} requests for {texts:,} texts; {model} understands them all")


def validate_data(source: str, text_column: str | None) -> None:
    """What the file holds: its texts, and the columns that could be labels."""
    from ctrlgen.data.texts import load_data

    data, column = load_data(source, text_column)
    texts = [text for text in data[column] if isinstance(text, str) and text.strip()]
    typer.echo(f"{source}: {len(data):,} rows, {len(texts):,} texts in column {column!r}")
    for name in data.column_names:
        if name != column:
            typer.echo(f"  column {name!r}: {described(data, name)}")


def described(data: Dataset, name: str) -> str:
    """A column in words: its most frequent values if it looks like labels."""
    from ctrlgen.data.labels import read_labels

    try:
        labels = read_labels(data, name)
    except UsageError as error:
        return str(error).partition("holds ")[2]
    counts = Counter(filter(None, labels))
    if len(counts) > MOST_VALUES:
        return f"{len(counts):,} different values"
    most = ", ".join(f"{shown(value, 40)} {times:,}" for value, times in counts.most_common(MOST_LISTED))
    more = ", …" if len(counts) > MOST_LISTED else ""
    empty = f"; {labels.count(''):,} empty" if "" in labels else ""
    return f"{len(counts):,} values: {most}{more}{empty}"
