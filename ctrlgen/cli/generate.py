"""`ctrlgen generate`: sample texts under controls."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ctrlgen.choices import GuidanceMethod, SamplerName, Selection
from ctrlgen.cli.common import DeviceOption, ModelOption, find_device
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean

if TYPE_CHECKING:
    from ctrlgen.pipeline import Generator, Request, Sample, Settings

BATCH_KEYS = ("id", "controls", "n", "seed")
BATCH_WINDOW = 256  # requests answered at a time, so that long inputs stream
UNSUCCESSFUL = 3


def generate(
    control: Annotated[
        list[str] | None,
        typer.Option("--control", "-c", help='What to ask for, e.g. "pos: DET NOUN VERB ...". Repeat for more.'),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many samples.")] = 1,
    model: ModelOption = "e2e",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 24,
    sampler: Annotated[SamplerName, typer.Option(help="How x_t walks to x_0.")] = "ancestral",
    eta: Annotated[float, typer.Option(min=0.0, max=1.0, help="Noise of ddim: 0 none, 1 as ancestral.")] = 0.0,
    guidance: Annotated[GuidanceMethod, typer.Option(help="How to steer; paper is Diffusion-LM's.")] = "gradient",
    strength: Annotated[float | None, typer.Option(min=0.0, help="How hard controls pull; 0 is unguided.")] = None,
    window: Annotated[str, typer.Option(help="FROM:TO, the part of denoising in which controls act.")] = "0:1",
    temperature: Annotated[float, typer.Option(help="Below 1: likelier words.")] = 0.8,
    candidates: Annotated[int, typer.Option(min=1, help="Draw this many, keep the best by the model's score.")] = 1,
    select: Annotated[Selection, typer.Option(help="How to choose among candidates.")] = "score",
    seed: Annotated[int, typer.Option(help="Sample i has seed SEED + i.")] = 0,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    batch: Annotated[str | None, typer.Option(help="JSON Lines requests from a file, or - for standard input.")] = None,
    require_success: Annotated[bool, typer.Option(help="Exit with 3 if any control failed.")] = False,
) -> None:
    """Sample texts that obey controls.

    Example: ctrlgen generate --control "pos: DT NN VBZ DT JJ NN IN NNP NNP ." -n 4
    """
    if batch is not None and control:
        raise UsageError("--batch brings its own controls; leave out --control")
    lines = read_requests(batch) if batch is not None else None
    with output(out) as file:
        from ctrlgen.guidance import Guidance
        from ctrlgen.pipeline import Generator, Settings

        choice: dict[str, Any] = {"method": guidance, "window": parse_window(window)}
        if strength is not None:
            choice["strength"] = strength
        settings = Settings(
            steps,
            sampler,
            eta,
            temperature,
            Guidance(**choice),
            candidates,
            select,
        )
        generator = Generator(model, find_device(device))
        if lines is None:
            requests = [generator.request(control or [], n, seed)]
        else:
            requests = [batch_request(generator, line, where, seed) for where, line in lines]
        failed = False
        for samples in answers(generator, requests, settings):
            failed = failed or any(sample.success is False for sample in samples)
            if as_json or batch is not None:
                for sample in samples:
                    file.write(json.dumps(sample.as_json(), ensure_ascii=False) + "\n")
                file.flush()
            else:
                from ctrlgen.display import show_samples

                show_samples(samples, file)
    if require_success and failed:
        raise typer.Exit(UNSUCCESSFUL)


def answers(generator: Generator, requests: Sequence[Request], settings: Settings) -> Iterator[list[Sample]]:
    """Samples, a window of requests at a time, with a progress bar on a terminal."""
    from ctrlgen.display import sampling_progress

    for start in range(0, len(requests), BATCH_WINDOW):
        with sampling_progress() as watch:
            samples = generator.generate(requests[start : start + BATCH_WINDOW], settings, watch)
        yield samples


def parse_window(text: str) -> tuple[float, float]:
    start, _, end = text.partition(":")
    try:
        window = (float(start or 0), float(end or 1))
    except ValueError:
        raise UsageError(f"--window {text!r}: write FROM:TO, two numbers between 0 and 1") from None
    if not 0 <= window[0] < window[1] <= 1:
        raise UsageError(f"--window {text!r}: must rise within 0 and 1")
    return window


@contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is whole."""
    if path is None:
        yield sys.stdout
        return
    from ctrlgen.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def read_requests(source: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests with where they stand, from a JSON Lines file or standard input."""
    name = "standard input" if source == "-" else source
    try:
        with nullcontext(sys.stdin) if source == "-" else open(source, encoding="utf-8") as file:
            lines = file.read().splitlines()
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
    """One request as written: {"id": …, "controls": […], "n": …, "seed": …}."""
    try:
        request = json.loads(line)
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
    return request


def batch_request(generator: Generator, request: dict[str, Any], where: str, seed: int) -> Request:
    try:
        return generator.request(
            request.get("controls", []), request.get("n", 1), request.get("seed", seed), request.get("id")
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
