"""`ctrlgen write`: a longer text to a plan, sentence by sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ctrlgen.cli.sampling import (
    BATCH_WINDOW,
    SamplingOptions,
    Tally,
    conclude,
    output,
    with_sampling_options,
    with_scorer,
    write_lines,
)
from ctrlgen.cli.telling import waiting
from ctrlgen.errors import UsageError
from ctrlgen.settings import Settings

if TYPE_CHECKING:
    from ctrlgen.generation.writing import WrittenText


@with_sampling_options(lambda one: not one.rejects)
def write(
    options: SamplingOptions,
    settings: Settings,
    plan: Annotated[Path, typer.Argument(help="A plan: TOML, or JSON Lines with a sentence a line.")],
    corpus: Annotated[
        str | None, typer.Option(help="Texts among which drafts are looked for: a file or data set.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of --corpus that holds the texts.")] = None,
) -> None:
    """Write several sentences to a plan.

    Each sentence has its own controls, and is written after the ones before it.

    The text goes to standard output, a table of its sentences with their verdicts to standard error.

    Example: ctrlgen write examples/restaurant.toml
    """
    if options.control:
        raise UsageError("a plan brings its own controls; leave out --control")
    if text_column is not None and corpus is None:
        raise UsageError("--text-column is a column of --corpus: give --corpus as well")
    from ctrlgen.generation.plans import read_plan

    read = read_plan(plan)
    with output(options.out) as file:
        from ctrlgen.cli.common import find_device
        from ctrlgen.cli.display import sampling_progress
        from ctrlgen.data.texts import read_texts
        from ctrlgen.generation.generator import Generator
        from ctrlgen.generation.writing import Writer

        texts = read_texts(corpus, text_column) if corpus is not None else []
        writer = Writer(Generator(options.model, find_device(options.device)), read, texts)
        settings = with_scorer(settings, options)
        tally = Tally()
        with waiting("writing") as tell:
            for first in range(0, options.n, BATCH_WINDOW):
                tell(f"{first:,} of {options.n:,} texts written")
                with sampling_progress() as watch:
                    count = min(BATCH_WINDOW, options.n - first)
                    written = writer.write(count, options.seed, settings, watch, first)
                lines = [text.as_json() for text in written]
                tally.count([sentence for line in lines for sentence in line["sentences"]])
                if options.as_json:
                    write_lines(lines, file)
                else:
                    show(written, file)
    conclude(tally, options, settings)


def show(written: list[WrittenText], file: TextIO) -> None:
    """Each text, a blank line between two; the tables of their sentences."""
    from ctrlgen.cli.display import show_sentences

    for text in written:
        print(("\n" if text.index else "") + text.text, file=file, flush=True)
        show_sentences(text, sys.stderr)
