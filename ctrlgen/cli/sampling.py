"""What every command that samples shares: its options, and the way from requests to printed samples."""

# No `from __future__ import annotations`: typer is shown the options' types themselves.

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, find_device
from ctrlgen.cli.telling import waiting
from ctrlgen.errors import UsageError
from ctrlgen.files import to_json
from ctrlgen.settings import GuidanceMethod, SamplerName, Selection

if TYPE_CHECKING:
    from ctrlgen.generation.generator import Generator, Request, Sample, Settings

BATCH_WINDOW = 256  # requests answered at a time, so that long inputs stream
UNSUCCESSFUL = 3


@dataclass(frozen=True)
class SamplingOptions:
    """The options of every command that samples."""

    control: Annotated[
        list[str] | None,
        typer.Option("--control", "-c", help='What to ask for, e.g. "pos: DET NOUN VERB ...". Repeat for more.'),
    ] = None
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many samples.")] = 1
    model: ModelOption = "e2e"
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 24
    sampler: Annotated[SamplerName, typer.Option(help="How x_t walks to x_0.")] = "ancestral"
    eta: Annotated[float, typer.Option(min=0.0, max=1.0, help="Noise of ddim: 0 none, 1 as ancestral.")] = 0.0
    guidance: Annotated[GuidanceMethod, typer.Option(help="How to steer; paper is Diffusion-LM's.")] = "gradient"
    strength: Annotated[float | None, typer.Option(min=0.0, help="How hard controls pull; 0 is unguided.")] = None
    window: Annotated[
        str, typer.Option(help="FROM:TO, the noise levels at which controls act: 0 is noise, 1 text.")
    ] = "0:1"
    temperature: Annotated[float, typer.Option(help="Lower: likelier words; higher: more varied texts.")] = 1.2
    corrections: Annotated[
        int, typer.Option(min=0, help="Sweeps over the finished text that replace words the others make unlikely.")
    ] = 3
    clamp: Annotated[
        bool, typer.Option("--clamp", help="Round every step's estimate to words' embeddings, as Diffusion-LM does.")
    ] = False
    candidates: Annotated[int, typer.Option(min=1, help="Draw this many, keep the best by the model's score.")] = 1
    select: Annotated[Selection, typer.Option(help="How to choose among candidates.")] = "score"
    seed: Annotated[int, typer.Option(help="Sample i has seed SEED + i.")] = 0
    device: DeviceOption = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False
    out: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None
    until_success: Annotated[
        int,
        typer.Option(
            min=0,
            help="Draw again what an oracle rejects, at most this often. The oracle then chooses the texts, so its "
            "verdicts measure nothing any more; not used in our reported numbers.",
        ),
    ] = 0
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Of each part that failed: when it was lost, and to which other control."),
    ] = False
    require_success: Annotated[bool, typer.Option(help="Exit with 3 if any control failed.")] = False

    def settings(self) -> "Settings":
        from ctrlgen.generation.generator import Settings
        from ctrlgen.generation.guidance import Guidance

        choice: dict[str, Any] = {"method": self.guidance, "window": parse_window(self.window)}
        if self.strength is not None:
            choice["strength"] = self.strength
        return Settings(
            steps=self.steps,
            sampler=self.sampler,
            eta=self.eta,
            temperature=self.temperature,
            corrections=self.corrections,
            clamp=self.clamp,
            guidance=Guidance(**choice),
            candidates=self.candidates,
            select=self.select,
            until_success=self.until_success,
            explain=self.explain,
        )


def with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first argument is SamplingOptions, as typer takes it: each option an argument of its own."""
    shared = inspect.signature(SamplingOptions, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = SamplingOptions(**{name: given.pop(name) for name in shared})
        command(options, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def answer(
    options: SamplingOptions,
    make_requests: Callable[["Generator"], list["Request"]],
    as_json: bool = False,
    on_cluster: bool = False,
    finished: Callable[[list["Sample"]], None] | None = None,
) -> None:
    """Sample what is requested and write it out. Nothing is written where a request cannot be understood.

    What a cluster answers is JSON Lines. `finished` is given the samples as they are written.
    """
    with output(options.out) as file:
        if on_cluster:
            from ctrlgen.generation.cluster import generate_on_cluster
        from ctrlgen.generation.generator import Generator

        settings = options.settings()
        if on_cluster and options.device not in ("auto", "cpu"):
            raise UsageError("--ray shares a batch among processors: leave out --device")
        generator = Generator(options.model, find_device(options.device))
        requests = make_requests(generator)
        tally = Tally()
        if on_cluster:
            for lines in generate_on_cluster(options.model, requests, settings):
                tally.count(lines)
                write_lines(lines, file)
        else:
            for samples in answers(generator, requests, settings):
                lines = [sample.as_json() for sample in samples]
                tally.count(lines)
                if finished is not None:
                    finished(samples)
                if as_json or options.as_json:
                    write_lines(lines, file)
                else:
                    from ctrlgen.cli.display import show_samples

                    show_samples(samples, file)
    if settings.until_success:
        print(tally.line(1 + settings.until_success), file=sys.stderr)
    if options.require_success and tally.failed:
        raise typer.Exit(UNSUCCESSFUL)


def write_lines(lines: Sequence[dict[str, Any]], file: TextIO) -> None:
    """Samples as JSON Lines, at once to be read."""
    for line in lines:
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

    def count(self, samples: Sequence[dict[str, Any]]) -> None:
        """Samples as `Sample.as_json` has them."""
        self.samples += len(samples)
        for sample in samples:
            self.draws += sample["attempts"]
            self.failed += sample["success"] is False
            self.unjudged += sample["success"] is None
            for result in sample["controls"]:
                if result["success"] is None:
                    self.why = self.why or result["detail"]

    def line(self, most: int) -> str:
        """One line on a run that drew each sample up to `most` times."""
        still = (
            f"{self.failed} of {self.samples} samples still fail after {most} draws" if self.failed else "none fails"
        )
        said = f"{still}; {self.draws} draws in all"
        if not self.unjudged:
            return said
        unjudged = f"{self.unjudged} of {self.samples} samples could not be judged, so were not drawn again: {self.why}"
        return f"{said}; {unjudged}" if self.failed or self.draws > self.samples else unjudged


def answers(generator: "Generator", requests: Sequence["Request"], settings: "Settings") -> Iterator[list["Sample"]]:
    """Samples, a window of requests at a time, with a progress bar on a terminal."""
    from ctrlgen.cli.display import sampling_progress

    with waiting("sampling") as tell:
        for start in range(0, len(requests), BATCH_WINDOW):
            tell(f"{start:,} of {len(requests):,} requests answered")
            with sampling_progress() as watch:
                samples = generator.generate(requests[start : start + BATCH_WINDOW], settings, watch)
            yield samples


def parse_window(text: str) -> tuple[float, float]:
    start, colon, end = text.partition(":")
    try:
        window = (float(start or 0), float(end or 1 if colon else ""))
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
