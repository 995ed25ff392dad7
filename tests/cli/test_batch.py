"""Long jobs: batches that are written as they are finished, stopped anywhere, and go on; requests as they come."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run

from ctrlgen.cli import sampling
from ctrlgen.cli.journal import header, journal
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Sample

JOB = {"requests": "a", "settings": "b"}
ANSWERS = [[{"id": 1, "text": "é"}, {"id": 1, "text": "b"}], [{"id": 2, "text": "c"}], [{"id": 3, "text": "d"}]]
SIZES = [len(answers) for answers in ANSWERS]
WHOLE = "".join(json.dumps(a, ensure_ascii=False) + "\n" for answers in ANSWERS for a in answers).encode()


def answer(path: Path, job: dict[str, str] = JOB, stop_before: int = 9) -> list[int]:
    """Do a job, or the rest of it, and say which requests were answered now."""
    answered = []
    with journal(path, job, SIZES) as written:
        for number in range(written.done, len(ANSWERS)):
            if number == stop_before:
                raise KeyboardInterrupt
            written.add(ANSWERS[number])
            answered.append(number)
    return answered


@pytest.mark.parametrize("size", range(len(header(JOB)) + len(WHOLE) + 1))
def test_a_job_goes_on_wherever_it_was_killed(size: int, tmp_path: Path) -> None:
    """The file cut at every single byte."""
    (tmp_path / "out.jsonl.partial").write_bytes((header(JOB) + WHOLE)[:size])
    answer(tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_bytes() == WHOLE


def test_a_damaged_line_is_answered_again(tmp_path: Path) -> None:
    whole = header(JOB) + WHOLE
    at = len(header(JOB)) + 1
    (tmp_path / "out.jsonl.partial").write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])
    assert answer(tmp_path / "out.jsonl") == [0, 1, 2]
    assert (tmp_path / "out.jsonl").read_bytes() == WHOLE


def test_what_was_answered_is_not_answered_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("of an earlier job")
    with pytest.raises(KeyboardInterrupt):
        answer(out, stop_before=2)
    assert out.read_text() == "of an earlier job"
    assert answer(out) == [2]
    assert out.read_bytes() == WHOLE
    assert answer(out) == [0, 1, 2]


def test_another_job_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(out, stop_before=1)
    before = (tmp_path / "out.jsonl.partial").read_bytes()
    with pytest.raises(UsageError, match=r"out.jsonl.partial: answers other settings; remove it"):
        answer(out, JOB | {"settings": "c"})
    with pytest.raises(UsageError, match="answers other requests and settings"):
        answer(out, {"requests": "c", "settings": "d"})
    assert (tmp_path / "out.jsonl.partial").read_bytes() == before
    (tmp_path / "out.jsonl.partial").write_text("notes of mine\n")
    with pytest.raises(CtrlgenError, match="holds no answers of ctrlgen"):
        answer(out)
    with pytest.raises(CtrlgenError, match="is a directory"):
        answer(tmp_path)


def test_a_run_killed_at_its_very_end_stands_in_nobodys_way(tmp_path: Path) -> None:
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    out.write_bytes(WHOLE)
    partial.write_bytes(header(JOB) + WHOLE)
    assert answer(out, JOB | {"settings": "c"}) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_nothing_is_left_where_nothing_was_answered(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path / "out.jsonl", stop_before=0)
    assert list(tmp_path.iterdir()) == []


REQUESTS = "".join(json.dumps({"id": id, "seed": 10 * id, "n": 1 + id % 2}) + "\n" for id in range(4))


@pytest.mark.slow
def test_a_batch_goes_on_where_it_was_stopped(
    ctrlgen: Run,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "BATCH_WINDOW", 1)
    (tmp_path / "requests.jsonl").write_text(REQUESTS)
    ask = ("generate", "-m", toy_model, "--batch", tmp_path / "requests.jsonl", "--steps", 2, "--out")
    assert ctrlgen(*ask, tmp_path / "whole").code == 0
    whole, generate = (tmp_path / "whole").read_bytes(), Generator.generate
    asked: list[Any] = []

    def stopped(self: Generator, requests: Sequence[Any], *others: Any) -> list[Sample]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(request.id for request in requests)
        return generate(self, requests, *others)

    monkeypatch.setattr(Generator, "generate", stopped)
    outcome = ctrlgen(*ask, tmp_path / "out")
    assert (outcome.code, outcome.out) == (130, "")
    assert "the same command goes on from here" in outcome.err
    assert not (tmp_path / "out").exists()
    assert ctrlgen(*ask, tmp_path / "out", "--seed", 1).code == 2
    asked.clear()
    monkeypatch.setattr(Generator, "generate", generate)
    outcome = ctrlgen(*ask, tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "ctrlgen: 2 of 4 requests were answered before\n")
    assert (tmp_path / "out").read_bytes() == whole
    assert not (tmp_path / "out.partial").exists()


def test_every_bad_line_is_named_and_the_good_ones_can_be_kept(ctrlgen: Run, toy_model: Path, tmp_path: Path) -> None:
    lines = ['{"id": 1}', "not json", '{"id": 3, "controls": ["pso: DET"]}', '{"nn": 1}', '{"id": 5}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    ask = ("generate", "-m", toy_model, "--steps", 2, "--batch", tmp_path / "bad.jsonl")
    outcome = ctrlgen(*ask)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert all(part in outcome.err for part in ["line 2: not JSON", "line 4: unknown key 'nn'", "--skip-bad"])
    outcome = ctrlgen(*ask, "--skip-bad")
    assert (outcome.code, [answer["id"] for answer in outcome.answers]) == (0, [1, 5])
    left_out = zip(outcome.err.splitlines(), ["not JSON", "unknown key 'nn'", "unknown control 'pso'"], strict=True)
    assert all("left out: " in line and reason in line for line, reason in left_out)
    assert ctrlgen("generate", "--skip-bad").code == 2


@pytest.mark.slow
def test_requests_are_answered_while_standard_input_stays_open(toy_model: Path) -> None:
    command = [sys.executable, "-m", "ctrlgen", "generate", "-m", str(toy_model), "--steps", "2", "--batch", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        for id in range(3):
            program.stdin.write(json.dumps({"id": id}) + "\n")
            program.stdin.flush()
            assert json.loads(program.stdout.readline())["id"] == id
        program.stdin.write('{"id": 3}\n{"id": "bad", "n": 0}\n')
        program.stdin.close()
        assert json.loads(program.stdout.readline())["id"] == 3
        assert program.wait() == 2
        assert "standard input, line 5: n must be between" in program.stderr.read()


def test_standard_input_without_requests(ctrlgen: Run, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    outcome = ctrlgen("generate", "-m", toy_model, "--batch", "-")
    assert outcome == Outcome(1, "", "ctrlgen: standard input: holds no requests\n")
