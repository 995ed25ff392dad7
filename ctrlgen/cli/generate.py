"""`ctrlgen generate`: sample texts under controls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ctrlgen.cli.batch import answer_batch
from ctrlgen.cli.sampling import SamplingOptions, answer, with_sampling_options
from ctrlgen.errors import UsageError
from ctrlgen.settings import Settings, rejecting

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.request import Request


@with_sampling_options()
def generate(
    options: SamplingOptions,
    settings: Settings,
    batch: Annotated[
        str | None,
        typer.Option(
            help="JSON Lines requests from a file, or - for standard input, answered as they come. With --out, the "
            "same command goes on where an interrupted one stopped."
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Share the batch among the processors of a Ray cluster: RAY_ADDRESS, or this machine."
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Answer a batch without the lines that cannot be understood.")
    ] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(help="CONTROL=PERCENT%: so many of the -n texts have it, the others not. Repeat for more."),
    ] = None,
) -> None:
    """Write texts that obey controls.

    Example: ctrlgen generate -c "pos: DET NOUN AUX ADJ PUNCT" -c "food: Italian" -n 4
    """
    if share:
        if batch is not None:
            raise UsageError("--share is of the -n texts of one request: leave out --batch")
        if rejects := rejecting(settings):
            raise UsageError(f"--{rejects[0].replace('_', '-')} is not for a set with --share: leave it out")
        answer_shares(options, settings, share)
        return
    if batch is None:
        if ray or skip_bad:
            raise UsageError(f"--{'ray' if ray else 'skip-bad'} is of a batch: give --batch as well")
        answer(options, settings, lambda generator: [generator.request(options.control or [], options.n, options.seed)])
        return
    if options.control:
        raise UsageError("--batch brings its own controls; leave out --control")
    answer_batch(options, settings, batch, ray, skip_bad)


def answer_shares(options: SamplingOptions, settings: Settings, shares: Sequence[str]) -> None:
    """Sample a set of texts of which given shares have a control, and say on standard error how many do."""
    from ctrlgen.generation.shares import LEAST_REDRAWS, Shares, count_shares, parse_share

    parsed = [parse_share(share) for share in shares]
    settings = replace(settings, until_success=max(settings.until_success, LEAST_REDRAWS))

    def make_requests(generator: Generator) -> list[Request]:
        return Shares(generator, options.control or [], parsed, options.n, options.seed).requests()

    answer(options, settings, make_requests, finished=partial(count_shares, parsed))
    for share in parsed:
        print(share.line(options.n), file=sys.stderr)
