"""`ctrlgen generate`: sample texts under controls."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctrlgen.cli.sampling import SamplingOptions, answer, with_sampling_options
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.files import read_lines
from ctrlgen.settings import Settings

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.request import Request

BATCH_KEYS = ("id", "controls", "n", "seed", "template")


@with_sampling_options
def generate(
    options: SamplingOptions,
    settings: Settings,
    batch: Annotated[str | None, typer.Option(help="JSON Lines requests from a file, or - for standard input.")] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Share the batch among the processors of a Ray cluster: RAY_ADDRESS, or this machine."
        ),
    ] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(help="CONTROL=PERCENT%: so many of the -n texts have it, the others not. Repeat for more."),
    ] = None,
) -> None:
    """Sample texts that obey controls.

    Example: ctrlgen generate --control "pos: DT NN VBZ DT JJ NN IN NNP NNP ." -n 4
    """
    if share:
        if batch is not None:
            raise UsageError("--share is of the -n texts of one request: leave out --batch")
        answer_shares(options, settings, share)
        return
    if batch is None:
        if ray:
            raise UsageError("--ray shares a batch: give --batch as well")
        answer(options, settings, lambda generator: [generator.request(options.control or [], options.n, options.seed)])
        return
    if options.control:
        raise UsageError("--batch brings its own controls; leave out --control")
    lines = read_requests(batch)
    answer(
        options,
        settings,
        lambda generator: [batch_request(generator, line, where, options) for where, line in lines],
        as_json=True,
        on_cluster=ray,
    )


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


def read_requests(source: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests with where they stand, from a JSON Lines file or standard input."""
    name = "standard input" if source == "-" else source
    try:
        if source == "-" and sys.stdin is None:
            raise UsageError("standard input is closed")
        lines = read_lines(sys.stdin if source == "-" else Path(source))
    except (OSError, UnicodeDecodeError) as error:
        raise CtrlgenError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    requests = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            requests.append((f"{name}, line {number}", parse_request(line, f"{name}, line {number}")))
    if not requests:
        raise CtrlgenError(f"{name}: holds no requests")
    return requests


def parse_request(line: str, where: str) -> dict[str, Any]:
    """One request as written: {"id": …, "controls": […], "n": …, "seed": …, "template": …}."""
    try:
        request = json.loads(line, parse_constant=refuse_constant)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair could not be answered
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(request, dict):
        raise UsageError(f"{where}: a request is a JSON object")
    for key in request:
        if key not in BATCH_KEYS:
            raise UsageError(
                f"{where}: unknown key {key!r}; use {', '.join(BATCH_KEYS)}.{did_you_mean(key, BATCH_KEYS)}"
            )
    controls = request.get("controls", [])
    if not isinstance(controls, list) or not all(isinstance(c, str) for c in controls):
        raise UsageError(f"{where}: controls must be a list of strings")
    for key in ("n", "seed"):
        if key in request and (not isinstance(request[key], int) or isinstance(request[key], bool)):
            raise UsageError(f"{where}: {key} must be a whole number")
    if not isinstance(request.get("template", ""), str):
        raise UsageError(f"{where}: template must be a string")
    return request


def refuse_constant(name: str) -> None:
    """Python's JSON reads and writes NaN and Infinity, which are none."""
    raise ValueError(f"{name} is no number")


def batch_request(generator: Generator, request: dict[str, Any], where: str, options: SamplingOptions) -> Request:
    """A request as the generator takes it. What it leaves out is as the command's options say."""
    try:
        return generator.request(
            request.get("controls", []),
            request.get("n", options.n),
            request.get("seed", options.seed),
            request.get("id"),
            request.get("template"),
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
