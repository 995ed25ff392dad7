"""What is said while people wait: K9 of the faults that they met."""

import io
import logging
import logging.config
import time
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest

from ctrlgen.cli import telling
from ctrlgen.cli.display import evaluation_progress, follow_training
from ctrlgen.cli.sampling import answers
from ctrlgen.cli.telling import duration, waiting
from ctrlgen.evaluation.evaluation import Progress as EvaluationProgress
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.training.fit import Progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "EVERY", 0.001)


def wait_for(line: str, written: io.StringIO) -> None:
    """Until another thread has written `line`."""
    deadline = time.monotonic() + 120
    while line not in written.getvalue():
        assert time.monotonic() < deadline, written.getvalue()[:500]
        time.sleep(0.001)


def test_a_server_that_sets_up_its_log_does_not_silence_ours(capsys: pytest.CaptureFixture[str]) -> None:
    telling.start_log()
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging.getLogger("ctrlgen.cli").warning("still here")
    assert capsys.readouterr().err == "ctrlgen: still here\n"


def test_k9_lines_come_while_nothing_happens() -> None:
    err = io.StringIO()
    with redirect_stderr(err), waiting("reading") as tell:
        wait_for("reading\n", err)
        tell("step 2 of 9")
        wait_for(": step 2 of 9\n", err)
    whole = err.getvalue()
    time.sleep(0.01)
    assert err.getvalue() == whole
    assert all(line.startswith("ctrlgen: after 0 s: ") for line in whole.splitlines())


def test_k9_a_terminal_has_no_such_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True)
    with redirect_stderr(err), waiting("reading"):
        time.sleep(0.01)
    assert err.getvalue() == ""


@pytest.mark.parametrize("resumable", [True, False])
def test_k9_training_says_how_far_it_is_and_what_it_takes(resumable: bool) -> None:
    err = io.StringIO()

    def events() -> Iterator[Progress]:
        wait_for("reading data", err)
        yield Progress(10, 20_000, 0.1, 3.25, 1850.0, 11_100.0)
        wait_for("step 10 of 20,000  loss 3.250  1,850 tokens/s, 3 h 5 min left", err)
        yield Progress(20, 20_000, 0.1, 3.0, 1850.0, 9_000.0)

    with redirect_stderr(err):
        follow_training(events(), resumable)
    assert err.getvalue().count("the 19,990 steps left take about 3 h 5 min here") == 1
    assert ("--resume" in err.getvalue()) is resumable


def test_k9_an_evaluation_says_how_far_it_is() -> None:
    err = io.StringIO()
    with redirect_stderr(err), evaluation_progress() as watch:
        wait_for("reading data", err)
        watch(EvaluationProgress(50, 1200, "pos ours"))
        wait_for("50 of 1,200 texts, pos ours", err)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (11_100, "3 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_k9_what_a_long_job_takes_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    forecast, err = telling.Forecast("sampling"), io.StringIO()
    with redirect_stderr(err):
        assert forecast.left(0.0) == ""
        now[0] = 101.0
        assert forecast.left(0.01) == ""  # one second says little
        now[0] = 110.0
        assert forecast.left(0.1) == ", 2 min left"
        assert forecast.left(0.2) == ", 40 s left"
    assert err.getvalue() == "ctrlgen: sampling takes about 2 min more here\n"


def test_k9_a_batch_tells_how_far_it_is(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telling, "SETTLED", 0.0)
    monkeypatch.setattr(telling, "LONG", 0.0)
    requests = [generator.request([], n=2, seed=seed) for seed in range(70)]
    assert sum(map(len, answers(generator, requests, Settings(steps=2, corrections=0)))) == 140
    said = capsys.readouterr().err
    assert said.count("ctrlgen: sampling takes about ") == 1
    assert "requests answered, " in said
