"""`ctrlgen generate --batch`: requests from a file, or from another program as they come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, TextIO

from ctrlgen.cli import sampling
from ctrlgen.cli.common import find_device
from ctrlgen.cli.journal import Journal, journal
from ctrlgen.cli.sampling import (
    SamplingOptions,
    Tally,
    answers,
    conclude,
    tell_confidence,
    tell_cost,
    with_scorer,
    write_lines,
)
from ctrlgen.controls.language import parse_statement
from ctrlgen.controls.oracles import start_oracles
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.files import BYTE_ORDER_MARK, from_json, read_lines
from ctrlgen.settings import Settings, check_counts

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.request import Request

BATCH_KEYS = ("id", "controls", "n", "seed", "template")
MOST_NAMED = 5  # lines that cannot be understood, in an error
Written = tuple[str, dict[str, Any]]  # where a request stands, and what it says


def answer_batch(options: SamplingOptions, settings: Settings, source: str, on_cluster: bool, skip_bad: bool) -> None:
    """Answer the requests of a file or of standard input, as JSON Lines in their order.

    With --out a run that was stopped goes on where it was. Without, standard input is answered as it comes.
    """
    if on_cluster and options.device not in ("auto", "cpu"):
        raise UsageError("--ray shares a batch among processors: leave out --device")
    if on_cluster and options.scorer is not None:
        raise UsageError("a scorer runs on this machine: leave out --ray")
    settings = with_scorer(settings, options)
    as_it_comes = source == "-" and options.out is None and not on_cluster
    lines = [] if as_it_comes else read_requests(source, skip_bad)
    start_oracles(control for _, written in lines for control in written.get("controls", []))
    if on_cluster:
        from ctrlgen.generation.cluster import generate_on_cluster
    from ctrlgen.generation.generator import Generator

    generator, tally = Generator(options.model, find_device(options.device)), Tally()
    if as_it_comes:
        answer_stream(generator, options, settings, skip_bad, tally)
    else:
        lines, requests = understood(generator, lines, options, skip_bad)
        tell_cost(settings, requests)
        tell_confidence(generator, requests, settings)
        with writing(options.out, job(generator, lines, options, settings), [r.n for r in requests]) as written:
            tally.count(written.kept)
            left = requests[written.done :]
            if on_cluster and left:
                answered = generate_on_cluster(options.model, left, settings)
            else:
                answered = ([s.as_json() for s in samples] for samples in answers(generator, left, settings))
            for found in answered:
                tally.count(found)
                written.add(found)
    conclude(tally, options, settings)


class Printing:
    """What takes answers where there is no --out: standard output, from which nothing can go on."""

    done = 0
    kept: Sequence[dict[str, Any]] = ()

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        write_lines(answers, sys.stdout)


@contextmanager
def writing(out: Path | None, job: dict[str, str], sizes: Sequence[int]) -> Iterator[Journal | Printing]:
    if out is None:
        yield Printing()
        return
    with journal(out, job, sizes) as written:
        if written.done:
            print(f"ctrlgen: {written.done:,} of {len(sizes):,} requests were answered before", file=sys.stderr)
        try:
            yield written
        except KeyboardInterrupt:
            print("ctrlgen: stopped; the same command goes on from here", file=sys.stderr)
            raise


def job(generator: Generator, lines: Sequence[Written], options: SamplingOptions, settings: Settings) -> dict[str, str]:
    """What tells this job from another: requests, settings, and the weights that answer."""
    from ctrlgen.controls.registry import fingerprint, trained_classifiers, weights_fingerprint

    requests = [[written for _, written in lines], options.n, options.seed]
    classifiers = {name: fingerprint(at, "*.*") for name, at in sorted(trained_classifiers(generator.model).items())}
    parts = {
        "requests": requests,
        "settings": [dataclasses.asdict(dataclasses.replace(settings, scorer=None)), options.scorer],
        "models": [weights_fingerprint(generator.model), generator.model.diffusion.temperature, classifiers],
    }
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for key, value in parts.items()}


def answer_stream(
    generator: Generator, options: SamplingOptions, settings: Settings, skip_bad: bool, tally: Tally
) -> None:
    """Answer lines as they come, those that came together in one go. Those before a bad one are answered, too."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    number = 0
    for lines in arriving(sys.stdin):
        requests: list[Request] = []
        refused: UsageError | None = None
        for line in lines:
            number += 1
            where = f"standard input, line {number}"
            if not line.strip():
                continue
            try:
                requests.append(batch_request(generator, parse_request(line, where), where, options))
            except UsageError as error:
                if not skip_bad:
                    refused = error
                    break
                print(f"ctrlgen: left out: {error}", file=sys.stderr)
        for samples in answers(generator, requests, settings):
            found = [sample.as_json() for sample in samples]
            tally.count(found)
            write_lines(found, sys.stdout)
        if refused is not None:
            raise refused
    if number == 0:
        raise CtrlgenError("standard input: holds no requests")


def arriving(file: TextIO) -> Iterator[list[str]]:
    """Lines as soon as they are there, as many at a time as have come. Raises CtrlgenError where they are no text."""
    queue: Queue[str | Exception | None] = Queue(4 * sampling.BATCH_WINDOW)

    def read() -> None:
        try:
            for number, line in enumerate(file):
                queue.put(line if number else line.removeprefix(BYTE_ORDER_MARK))
            queue.put(None)
        except (OSError, ValueError) as error:
            queue.put(error)

    Thread(target=read, daemon=True).start()
    last: str | Exception | None = ""
    while isinstance(last, str):
        items = [queue.get()]
        with suppress(Empty):
            while len(items) < sampling.BATCH_WINDOW:
                items.append(queue.get_nowait())
        last = items[-1]
        yield [item for item in items if isinstance(item, str)]
    if last is not None:
        raise CtrlgenError(f"standard input: cannot be read: {last}")


def read_requests(source: str, skip_bad: bool = False) -> list[Written]:
    """Requests with where they stand, from a JSON Lines file or standard input.

    Raises UsageError naming the lines that are none; with `skip_bad` they are told and left out.
    """
    requests, bad = requests_and_bad(source)
    refuse(bad, skip_bad)
    if not requests:
        raise CtrlgenError(f"{'standard input' if source == '-' else source}: holds no requests")
    return requests


def requests_and_bad(source: str) -> tuple[list[Written], list[str]]:
    """The requests of a file or of standard input, and what is wrong with lines that are none."""
    name = "standard input" if source == "-" else source
    try:
        if source == "-" and sys.stdin is None:
            raise UsageError("standard input is closed")
        lines = read_lines(sys.stdin if source == "-" else Path(source))
    except (OSError, UnicodeDecodeError) as error:
        raise CtrlgenError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    requests, bad = [], []
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        try:
            if line.strip():
                requests.append((where, parse_request(line, where)))
        except UsageError as error:
            bad.append(str(error))
    if not requests and not bad:
        raise CtrlgenError(f"{name}: holds no requests")
    return requests, bad


def understood(
    generator: Generator, lines: Sequence[Written], options: SamplingOptions, skip_bad: bool, bad: Sequence[str] = ()
) -> tuple[list[Written], list[Request]]:
    """The requests that the model understands; the others are refused, or told and left out, as in `read_requests`.

    bad: what is wrong with others.
    """
    good, requests, bad = [], [], list(bad)
    for where, written in lines:
        try:
            requests.append(batch_request(generator, written, where, options))
            good.append((where, written))
        except UsageError as error:
            bad.append(str(error))
    refuse(bad, skip_bad)
    if not requests:
        raise CtrlgenError("no request is left")
    return good, requests


def refuse(bad: Sequence[str], skip: bool) -> None:
    if skip:
        for reason in bad:
            print(f"ctrlgen: left out: {reason}", file=sys.stderr)
    elif len(bad) == 1:
        raise UsageError(bad[0])
    elif bad:
        more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        named = "; ".join(bad[:MOST_NAMED])
        raise UsageError(f"{named}{more} ({len(bad)} bad lines; --skip-bad answers the others)")


def parse_request(line: str, where: str) -> dict[str, Any]:
    """One request as written: {"id": …, "controls": […], "n": …, "seed": …, "template": …}."""
    try:
        request = from_json(line)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair could not be answered
    except ValueError as error:
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
    with located(where):  # what needs no model is refused before torch is imported
        check_counts(request.get("n", 1), request.get("seed", 0))
        for control in controls:
            parse_statement(control)
    return request


@contextmanager
def located(where: str) -> Iterator[None]:
    """What is refused in here says where it stands."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def batch_request(generator: Generator, request: dict[str, Any], where: str, options: SamplingOptions) -> Request:
    """A request as the generator takes it. What it leaves out is as the command's options say."""
    with located(where):
        return generator.request(
            request.get("controls", []),
            request.get("n", options.n),
            request.get("seed", options.seed),
            request.get("id"),
            request.get("template"),
        )
