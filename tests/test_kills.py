"""Commands that are killed at any moment: nothing is lost, doubled or torn, and the end is that of a whole run.

`pytest tests/test_kills.py --kills 200` kills that often in all; the moments are drawn anew for each number.
"""

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_grammar import TINY_RECIPE

from ctrlgen.checkpoint import CONFIG, WEIGHTS, from_pretrained
from ctrlgen.evaluation.report.card import END, START
from ctrlgen.training.fit import METRICS

FEWEST = 2  # kills of each command, unless more are asked for
NOTHING_TO_RESUME = "nothing to resume"
CARD = "# My model\n\nA word of mine before.\n\n{start}\nold figures\n{end}\n\nA word of mine behind.\n"
RECIPE = f"""{TINY_RECIPE}
steps = 24
log_every = 3
checkpoint_every = 5
validate_every = 12
"""

processes = multiprocessing.get_context("forkserver")


def command_line(arguments: Sequence[str], said: Path) -> None:
    """In a process of its own: a command as people type it, with all that it says in a file."""
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from ctrlgen.cli import main

    torch.set_num_threads(1)
    sys.argv = ["ctrlgen", *arguments]
    main(list(arguments))


@dataclass
class Place:
    """Where a command works, and what it says there."""

    directory: Path

    def run(self, arguments: Sequence[object], kill_after: float | None = None) -> int:
        """The exit code; -9 where it was killed before it ended."""
        process = processes.Process(target=command_line, args=(list(map(str, arguments)), self.said))
        process.start()
        process.join(kill_after)
        if process.is_alive():
            process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    @property
    def said(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.said"

    def __truediv__(self, name: str) -> Path:
        return self.directory / name


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    prepare: what is there before it. stands: what must hold at any moment. result: what it makes, without times.
    """

    prepare: Callable[[Place, Path, Path], None]
    arguments: Callable[[Place], list[object]]
    stands: Callable[[Place], None]
    result: Callable[[Place], Any]
    resumes: bool = False  # by --resume, not by the same command


def files(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones as well, by its name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def losses(metrics: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


def nothing(place: Place, data: Path, model: Path) -> None: ...


def with_recipe(place: Place, data: Path, model: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE.format(data=json.dumps(str(data))))


def a_model_or_none(place: Place) -> None:
    if (place / "model" / CONFIG).exists() and (place / "model" / WEIGHTS).exists():
        from_pretrained(str(place / "model"))


def trained(place: Place) -> Any:
    left = files(place / "model")
    return {name: content for name, content in left.items() if name not in (METRICS, "resume.safetensors")}, losses(
        place / "model" / METRICS
    )


def with_model(place: Place, data: Path, model: Path) -> None:
    shutil.copytree(model, place / "model")
    shutil.copy(data, place / "data.jsonl")


def old_or_new_classifier(place: Place) -> None:
    names = set(files(place / "model" / "classifiers" / "pos"))
    assert {CONFIG, WEIGHTS} <= names, names
    json.loads((place / "model/classifiers/pos" / CONFIG).read_text())


def classifiers(place: Place) -> Any:
    return {name: content for name, content in files(place / "model").items() if not name.endswith(METRICS)}


def with_requests(place: Place, data: Path, model: Path) -> None:
    with_model(place, data, model)
    rows = [{"id": f"r{n}", "controls": ["length: 6"] if n % 2 else [], "n": 1 + n % 3} for n in range(150)]
    (place / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole_answers(place: Place) -> None:
    """Under its final name all answers or none; while it grows, whole lines but for the last, none of them twice."""
    if (place / "out.jsonl").exists():
        assert len((place / "out.jsonl").read_text().splitlines()) == 300
    if (place / "out.jsonl.partial").exists():
        *lines, _ = (place / "out.jsonl.partial").read_bytes().split(b"\n")
        seen = [(answer["id"], answer["index"]) for answer in map(json.loads, lines[1:])]
        assert seen == [(f"r{n}", index) for n in range(150) for index in range(1 + n % 3)][: len(seen)]


def answers(place: Place) -> Any:
    return (place / "out.jsonl").read_bytes(), sorted(path.name for path in place.directory.iterdir())


def whole_records(place: Place) -> None:
    if (place / "report/results.json").exists():
        json.loads((place / "report/results.json").read_text())


def records(place: Place) -> Any:
    found = []
    for line in (place / "report/samples.jsonl").read_text().splitlines()[1:]:
        chunk = json.loads(line)
        found += [(chunk["chunk"], [record | {"seconds": 0} for record in chunk["records"]])]
    return found, sorted(path.name for path in (place / "report").iterdir())


def with_card(place: Place, data: Path, model: Path) -> None:
    with_model(place, data, model)
    (place / "model/README.md").write_text(CARD.format(start=START, end=END))


def old_or_new_card(place: Place) -> None:
    card = (place / "model/README.md").read_text()
    assert card.startswith("# My model\n\nA word of mine before.\n\n" + START)
    assert card.endswith(END + "\n\nA word of mine behind.\n")
    assert ("old figures" in card) != ("| length" in card)


def card(place: Place) -> Any:
    table = [line for line in (place / "model/README.md").read_text().splitlines() if line.startswith("| length")]
    return [row.split("|")[:6] for row in table], sorted(files(place / "model"))


TEACH = ("--steps", 6, "--tokens-per-batch", 256)
MEASURE = ("--suite", "length", "--limit", 80, "--steps", 2, "--corrections", 0, "--data")
JOBS = {
    "train": Job(
        with_recipe, lambda at: ["train", at / "recipe.toml", "--out", at / "model"], a_model_or_none, trained, True
    ),
    "train-classifier": Job(
        with_model,
        lambda at: ["train-classifier", "pos", "-m", at / "model", "--data", at / "data.jsonl", "--force", *TEACH],
        old_or_new_classifier,
        classifiers,
    ),
    "train-lm": Job(
        with_model,
        lambda at: ["train-lm", "-m", at / "model", "--data", at / "data.jsonl", "--force", *TEACH],
        a_model_or_none,
        classifiers,
        True,
    ),
    "batch": Job(
        with_requests,
        lambda at: [
            "generate", "-m", at / "model", "--batch", at / "requests.jsonl", "--out", at / "out.jsonl", "--steps", 4,
        ],
        whole_answers,
        answers,
    ),
    "eval": Job(
        with_model,
        lambda at: ["eval", "-m", at / "model", *MEASURE, at / "data.jsonl", "--report", at / "report"],
        whole_records,
        records,
    ),
    "card": Job(
        with_card,
        lambda at: ["eval", "-m", at / "model", *MEASURE, at / "data.jsonl", "--update-card"],
        old_or_new_card,
        card,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> Iterator[None]:
    """New processes have what commands import."""
    processes.set_forkserver_preload(
        ["torch", "datasets", "ctrlgen.cli.display", "ctrlgen.evaluation.evaluation", "ctrlgen.training.denoising",
         "ctrlgen_classifiers.pos", "ctrlgen_classifiers.tree", "ctrlgen_classifiers.words"]
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def prepared(job: Job, directory: Path, data: Path, model: Path) -> Place:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    place = Place(directory)
    job.prepare(place, data, model)
    return place


@pytest.mark.parametrize("name", JOBS)
def test_k7_a_killed_command_ends_as_if_it_had_not_been(
    name: str, toy_data: Path, toy_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    job, rng = JOBS[name], random.Random(name)
    wanted = -(-request.config.getoption("--kills") // len(JOBS)) or FEWEST
    place = prepared(job, tmp_path / "place", toy_data, toy_model)
    assert place.run(job.arguments(place)) == 0, place.said.read_text()
    place = prepared(job, tmp_path / "place", toy_data, toy_model)  # the first run also started the server of processes
    started = time.monotonic()
    assert place.run(job.arguments(place)) == 0, place.said.read_text()
    duration, whole = time.monotonic() - started, job.result(place)
    killed, is_new = 0, True
    while killed < wanted or not is_new:
        if is_new:
            place = prepared(job, tmp_path / "place", toy_data, toy_model)
        arguments = job.arguments(place)
        moment = rng.uniform(0, duration) if killed < wanted else None
        code = place.run([*arguments, "--resume"] if job.resumes and not is_new else arguments, moment)
        said = place.said.read_text()
        if code == 1 and NOTHING_TO_RESUME in said:
            code = place.run(arguments)
            said = place.said.read_text()
        killed += code == -9
        assert code in (0, -9), said
        job.stands(place)
        is_new = code == 0
        if is_new:
            assert job.result(place) == whole
