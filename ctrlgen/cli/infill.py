"""`ctrlgen infill`: fill the blanks of a text."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from ctrlgen.cli.sampling import SamplingOptions, answer, with_sampling_options
from ctrlgen.errors import listed
from ctrlgen.settings import Settings

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.request import Request

log = logging.getLogger(__name__)


@with_sampling_options()
def infill(
    options: SamplingOptions,
    settings: Settings,
    template: Annotated[
        str, typer.Argument(help="A text with blanks: ___ any number of words, ___{4} four, ___{3-6} three to six.")
    ],
) -> None:
    """Fill the blanks of a text.

    The words that you give are never changed. Controls may ask for more.

    Example: ctrlgen infill "The Vaults ___ near Café Adriatic ." -n 4
    """

    def asked(generator: Generator) -> list[Request]:
        from ctrlgen.controls.template import new_words

        request = generator.request(options.control or [], options.n, options.seed, template=template)
        unknown = [] if generator.model.opens else new_words(template, generator.model.tokenizer)
        if unknown:
            log.warning("warning: this model does not know %s; what it writes beside that may not fit", listed(unknown))
        return [request]

    answer(options, settings, asked)
