"""`ctrlgen similar`: the texts of a corpus that say what a given text says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, find_device
from ctrlgen.cli.sampling import output, write_lines
from ctrlgen.errors import UsageError


def similar(
    text: Annotated[str, typer.Argument(help="The text to compare with.")],
    data: Annotated[str, typer.Option(help="The texts to search, a million at most: a file or data set.")],
    text_column: Annotated[str | None, typer.Option(help="The column of --data that holds the texts.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many to show.")] = 10,
    model: ModelOption = "e2e",
    by: Annotated[str | None, typer.Option(help="The control whose codes are compared; the model's only one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Search texts by what they say.

    Every text is compared; the nearest come first, with the cosine of their codes.

    The codes are those of a `means` classifier, which no bundled model has: run `ctrlgen train-classifier means` first.

    Example: ctrlgen similar "A cheap pub by the river." --model my-model --data texts.jsonl
    """
    from ctrlgen.checkpoint import from_pretrained
    from ctrlgen.controls.registry import Controls
    from ctrlgen.controls.similar import coding_control, nearest
    from ctrlgen.data.texts import read_texts

    loaded = from_pretrained(model, find_device(device))
    classifier, split = coding_control(Controls(loaded), by), loaded.tokenizer.split
    if not split(text):
        raise UsageError("there is no text to compare with")
    with output(out) as file:
        texts = read_texts(data, text_column)
        (found,) = nearest(classifier, [split(text)], [split(one) for one in texts], number)
        if as_json:
            lines = [
                {"rank": rank, "text": texts[one.place], "similarity": one.similarity}
                for rank, one in enumerate(found, 1)
            ]
            write_lines(lines, file)
            return
        for one in found:
            print(f"{one.similarity:.3f}  {texts[one.place]}", file=file)
    sys.stdout.flush()
