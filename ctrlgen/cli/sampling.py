"""What every command that samples shares: its options, and the way from requests to printed samples."""

# No `from __future__ import annotations`: typer is shown the options' types themselves.

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, find_device
from ctrlgen.cli.options import with_settings
from ctrlgen.cli.telling import Forecast, waiting
from ctrlgen.controls.oracles import start_oracles
from ctrlgen.files import to_json
from ctrlgen.settings import MOST_SAMPLES, SETTINGS, Setting, Settings, check_counts

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.request import Request, Sample

BATCH_WINDOW = 64  # requests answered at a time, so that long inputs stream
UNSUCCESSFUL = 3


def check_seed(seed: int) -> int:
    """The seed, where it is not too large: its bounds would fill a page of help."""
    check_counts(1, seed)
    return seed


@dataclass(frozen=True)
class SamplingOptions:
    """The options of every command that samples."""

    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            "-c",
            help='What to ask for, e.g. "food: Italian"; `ctrlgen controls` lists all. Repeat for more.',
        ),
    ] = None
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=MOST_SAMPLES, help="How many texts.")] = 1
    model: ModelOption = "e2e"
    seed: Annotated[int, typer.Option(callback=check_seed, help="Text i has seed SEED + i.")] = 0
    device: DeviceOption = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False
    out: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None
    require_success: Annotated[bool, typer.Option("--require-success", help="Exit with 3 if any control failed.")] = (
        False
    )
    scorer: Annotated[
        str | None,
        typer.Option(
            help="Steer by any function: MODULE:FUNCTION (texts to numbers) or hf:MODEL=LABEL. Runs its code."
        ),
    ] = None


def with_sampling_options(
    known: Callable[[Setting], bool] = lambda one: True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a command whose first arguments are SamplingOptions and Settings, the command as typer takes it: each option
    by itself, of the settings those that it knows."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(SamplingOptions, eval_str=True).parameters
        own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]

        @functools.wraps(command)
        def run(settings: Settings, **given: Any) -> None:
            options = SamplingOptions(**{name: given.pop(name) for name in shared})
            command(options, settings, **given)

        first = inspect.Parameter("settings", inspect.Parameter.KEYWORD_ONLY)
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]
        run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        return with_settings(known)(run)

    return decorate


def answer(
    options: SamplingOptions,
    settings: Settings,
    make_requests: Callable[["Generator"], list["Request"]],
    finished: Callable[[list["Sample"]], None] | None = None,
) -> None:
    """Sample what is requested and write it out. Nothing is written where a request cannot be understood.

    `finished` is given the samples as they are written.
    """
    start_oracles(options.control or ())  # what is no control is refused before torch is imported
    with output(options.out) as file:
        from ctrlgen.generation.generator import Generator

        settings = with_scorer(settings, options)
        generator = Generator(options.model, find_device(options.device))
        requests = make_requests(generator)
        tell_cost(settings, requests)
        tell_confidence(generator, requests, settings)
        tally = Tally()
        for samples in answers(generator, requests, settings):
            lines = [sample.as_json() for sample in samples]
            tally.count(lines)
            if finished is not None:
                finished(samples)
            if options.as_json:
                write_lines(lines, file)
            else:
                from ctrlgen.cli.display import show_samples

                show_samples([sample for sample in samples if sample.rejected is None], file, costs=settings.cost)
    conclude(tally, options, settings)


def with_scorer(settings: Settings, options: SamplingOptions) -> Settings:
    """The settings with the scorer that the options name."""
    if options.scorer is None:
        return settings
    from ctrlgen.generation.scorers import load_scorer

    return replace(settings, scorer=load_scorer(options.scorer))


def tell_cost(settings: Settings, requests: Sequence["Request"]) -> None:
    """Say what a scorer will take."""
    if settings.scorer is not None:
        from ctrlgen.generation.particles import cost

        print(cost(sum(request.n for request in requests), settings.particles), file=sys.stderr)


def tell_confidence(generator: "Generator", requests: Sequence["Request"], settings: Settings) -> None:
    """Say what share of texts will be returned. Raises where no threshold is known of a request's kind."""
    thresholds = generator.thresholds(requests, settings)
    if thresholds:
        returned = sum(t.returned * r.n for t, r in zip(thresholds, requests, strict=True)) / sum(r.n for r in requests)
        print(f"of held-out targets of these kinds {returned:.0%} are returned", file=sys.stderr)


def conclude(tally: "Tally", options: SamplingOptions, settings: Settings) -> None:
    """Say what became of all samples, where they were drawn until they succeeded."""
    if settings.until_success:
        print(tally.line(1 + settings.until_success), file=sys.stderr)
    if tally.rejected:
        why = "; ".join(f"{count} {reason}" for reason, count in tally.rejected.items())
        count = sum(tally.rejected.values())
        print(f"{count} of {tally.samples + count} samples are left out: {why}", file=sys.stderr)
    if options.require_success and (tally.failed or tally.rejected):
        raise typer.Exit(UNSUCCESSFUL)


def write_lines(lines: Sequence[dict[str, Any]], file: TextIO) -> None:
    """Samples as JSON Lines, at once to be read, but for those that are left out."""
    for line in lines:
        if "rejected" not in line:
            file.write(to_json(line, file) + "\n")
    file.flush()


@dataclass
class Tally:
    """What became of all samples."""

    samples: int = 0
    draws: int = 0
    failed: int = 0
    unjudged: int = 0
    why: str | None = None  # they were not judged
    rejected: Counter[str] = field(default_factory=Counter)  # reasons of those that are left out, which count as none

    def count(self, samples: Sequence[dict[str, Any]]) -> None:
        """Samples as `Sample.as_json` has them."""
        for sample in samples:
            self.draws += sample["attempts"]
            if "rejected" in sample:
                self.rejected[SETTINGS[sample["rejected"]["by"]].rejects] += 1
                continue
            self.samples += 1
            self.failed += sample["success"] is False
            self.unjudged += sample["success"] is None
            for result in sample["controls"]:
                if result["success"] is None:
                    self.why = self.why or result["detail"]

    def line(self, most: int) -> str:
        """One line on a run that drew each sample up to `most` times."""
        still = "none of those that are returned fails" if self.rejected else "none fails"
        if self.failed:
            still = f"{self.failed} of {self.samples} samples still fail after {most} draws"
        said = f"{still}; {self.draws} draws in all"
        if not self.unjudged:
            return said
        unjudged = f"{self.unjudged} of {self.samples} samples could not be judged, so were not drawn again: {self.why}"
        return f"{said}; {unjudged}" if self.failed or self.draws > self.samples else unjudged


def answers(generator: "Generator", requests: Sequence["Request"], settings: Settings) -> Iterator[list["Sample"]]:
    """Samples, a window of requests at a time, with a progress bar on a terminal."""
    from ctrlgen.cli.display import sampling_progress

    total, forecast, done = sum(request.n for request in requests), Forecast("sampling"), 0
    with waiting("sampling") as tell:
        for start in range(0, len(requests), BATCH_WINDOW):
            window = requests[start : start + BATCH_WINDOW]
            texts = sum(request.n for request in window)

            def follow(share: float, start: int = start, done: int = done, texts: int = texts) -> None:
                left = forecast.left((done + share * texts) / total)
                tell(f"{start:,} of {len(requests):,} requests answered{left}")

            follow(0.0)
            with sampling_progress(follow) as watch:
                samples = generator.generate(window, settings, watch)
            done += texts
            yield samples


@contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is whole."""
    if path is None:
        yield sys.stdout
        return
    from ctrlgen.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
