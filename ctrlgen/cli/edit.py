"""`ctrlgen edit`: change a text as little as its controls ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ctrlgen.cli.sampling import (
    BATCH_WINDOW,
    SamplingOptions,
    Tally,
    conclude,
    output,
    with_sampling_options,
    write_lines,
)
from ctrlgen.cli.telling import waiting
from ctrlgen.controls.oracles import start_oracles
from ctrlgen.errors import UsageError
from ctrlgen.settings import Settings

if TYPE_CHECKING:
    from ctrlgen.generation.editing import Editor
    from ctrlgen.generation.edits import Edited, Source

MOST_NAMED = 3  # rows in an error


@with_sampling_options(lambda one: one.edits)
def edit(
    options: SamplingOptions,
    settings: Settings,
    text: Annotated[str | None, typer.Argument(help="The text to edit.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Edit each text of a file (csv, jsonl, txt) or data set.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of --data that holds the texts.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Words that must stay as they are. Repeat for more.")] = None,
) -> None:
    """Change a text as little as its controls ask.

    A text that already obeys is given back as it is.

    Example: ctrlgen edit "Cocum is a cheap pub by the river." -c "food: Italian"
    """
    if (text is None) == (data is None):
        raise UsageError("give one text to edit, or --data FILE")
    if text_column is not None and data is None:
        raise UsageError("--text-column is a column of --data: give --data as well")
    if not options.control:
        raise UsageError("say what to change: -c CONTROL")
    if options.scorer is not None:
        raise UsageError("--scorer is for texts that are written from noise: leave it out")
    start_oracles(options.control)  # what is no control is refused before torch is imported
    with output(options.out) as file:
        from ctrlgen.cli.common import find_device
        from ctrlgen.cli.display import show_edits
        from ctrlgen.generation.editing import Editor
        from ctrlgen.generation.generator import Generator

        texts = [text] if text is not None else read_texts(str(data), text_column)
        editor = Editor(Generator(options.model, find_device(options.device)))
        tally = Tally()
        for edits in edited(editor, read_sources(editor, texts, keep or [], options, data), settings):
            lines = [one.as_json() for one in edits]
            tally.count(lines)
            if options.as_json:
                write_lines(lines, file)
            else:
                show_edits(edits, file)
    conclude(tally, options, settings)


def edited(editor: Editor, sources: Sequence[Source], settings: Settings) -> Iterator[list[Edited]]:
    """What becomes of the sources, a window at a time, with a progress bar on a terminal."""
    from ctrlgen.cli.display import sampling_progress

    with waiting("editing") as tell:
        for start in range(0, len(sources), BATCH_WINDOW):
            tell(f"{start:,} of {len(sources):,} texts edited")
            with sampling_progress() as watch:
                edits = editor.edit(sources[start : start + BATCH_WINDOW], settings, watch)
            yield edits


def read_texts(data: str, text_column: str | None) -> list[str]:
    """The texts of a column; an empty cell is an empty text."""
    from ctrlgen.data.texts import load_data

    rows, column = load_data(data, text_column)
    return [str(value or "") for value in rows[column]]


def read_sources(
    editor: Editor, texts: Sequence[str], keep: Sequence[str], options: SamplingOptions, data: str | None
) -> list[Source]:
    """The texts with what is asked of them; those of data have their row, counted from 1, as id.

    A phrase to be kept need not be in every text of the data. Raises UsageError naming the rows that cannot be edited.
    """
    sources, refused = [], []
    for row, text in enumerate(texts, 1):
        here = keep if data is None else [phrase for phrase in keep if editor.has(phrase, text)]
        try:
            number = None if data is None else row
            sources.append(editor.source(text, options.control or [], here, options.n, options.seed, number))
        except UsageError as error:
            if data is None:
                raise
            refused.append(f"row {row}: {error}")
    if refused:
        more = f"; and {len(refused) - MOST_NAMED} more" if len(refused) > MOST_NAMED else ""
        raise UsageError(f"{data}: {'; '.join(refused[:MOST_NAMED])}{more}")
    return sources
