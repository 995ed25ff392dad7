"""`ctrlgen infill`: fill the blanks of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from ctrlgen.cli.sampling import SamplingOptions, answer, with_sampling_options
from ctrlgen.settings import Settings


@with_sampling_options
def infill(
    options: SamplingOptions,
    settings: Settings,
    template: Annotated[
        str, typer.Argument(help="A text with blanks: ___ any number of words, ___{4} four, ___{3-6} three to six.")
    ],
) -> None:
    """Fill the blanks of a text, under controls if you like. The words you give are never changed.

    Example: ctrlgen infill "The Vaults ___ near Café Adriatic ." -n 4
    """
    answer(
        options,
        settings,
        lambda generator: [generator.request(options.control or [], options.n, options.seed, template=template)],
    )
