"""`ctrlgen validate`: check a recipe, a plan, a batch of requests or a file of data, without running it."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.batch import BATCH_KEYS, requests_and_bad, understood
from ctrlgen.cli.common import ModelOption
from ctrlgen.cli.sampling import SamplingOptions
from ctrlgen.errors import UsageError, shown
from ctrlgen.files import BYTE_ORDER_MARK, read_lines
from ctrlgen.generation.plans import KEYS, NEAREST, OF_ALL, PLAN_KEYS, read_plan

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("recipe", "plan", "batch", "data")
MOST_LISTED = 5  # values of a column
MOST_VALUES = 50  # different ones in a column that looks like labels


def validate(
    file: Annotated[str, typer.Argument(help="A recipe or plan (.toml), a batch of requests (.jsonl) or data.")],
    model: ModelOption = "e2e",
    kind: Annotated[
        str | None, typer.Option("--as", help="recipe, plan, batch or data; what the file looks like if not given.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Of data: the column that holds the text.")] = None,
) -> None:
    """Check a file before it costs hours.

    Every mistake is named, and nothing is trained or sampled.

    Example: ctrlgen validate requests.jsonl --model e2e
    """
    kind = kind or kind_of(file)
    if kind not in KINDS:
        raise UsageError(f"--as {shown(kind)}: use {', '.join(KINDS)}")
    if kind == "recipe":
        validate_recipe(Path(file))
    elif kind == "plan":
        validate_plan(Path(file), model)
    elif kind == "batch":
        validate_batch(file, model)
    else:
        validate_data(file, text_column)


def kind_of(file: str) -> str:
    """A recipe or a plan by its name and its tables; a plan or a batch by the keys of its first line; else data."""
    path = Path(file)
    if path.suffix.lower() == ".toml":
        return "plan" if is_plan(path) else "recipe"
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return "data"
    try:
        first: Any = json.loads(next(filter(str.strip, read_lines(path)), ""))
    except (ValueError, RecursionError):
        return "batch"
    if not isinstance(first, dict):
        return "data"
    if set(first) <= set(BATCH_KEYS):
        return "batch"
    return "plan" if set(first) <= {*KEYS, *OF_ALL} else "data"


def is_plan(path: Path) -> bool:
    """Whether a TOML file has what only plans have."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8").removeprefix(BYTE_ORDER_MARK))
    except (OSError, ValueError):
        return False
    return bool(tables.keys() & PLAN_KEYS.keys())


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


def validate_plan(path: Path, model: str) -> None:
    """Whether the model understands every sentence; drafts that are to be looked for need the corpus, which is not."""
    plan = read_plan(path)
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.writing import Writer

    searched = [sentence for sentence in plan.sentences if sentence.draft == NEAREST]
    known = [replace(one, draft=None) if one in searched else one for one in plan.sentences]
    Writer(Generator(model), replace(plan, sentences=tuple(known)))
    corpus = "; `ctrlgen write` needs --corpus for its drafts" if searched else ""
    typer.echo(
        f"{path}: a plan of {len(known):,} sentence{'s' * (len(known) > 1)}; {model} understands all of it{corpus}"
    )


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
