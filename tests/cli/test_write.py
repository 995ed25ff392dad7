"""`ctrlgen write`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

PLAN = """[defaults]
controls = ["length: 7"]
[[sentence]]
speaker = "Ann"
controls = ["words: cat"]
[[sentence]]
speaker = "Bob"
"""


@pytest.fixture
def run(toy_model: Path, tmp_path: Path, ctrlgen: Run) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "plan.toml").write_text(PLAN)

    def call(*arguments: str, plan: str = "plan.toml") -> tuple[int, str, str]:
        outcome = ctrlgen("write", tmp_path / plan, "-m", toy_model, "--steps", 8, *arguments)
        return outcome.code, outcome.out, outcome.err

    return call


def test_the_text_goes_to_standard_output_the_table_to_standard_error(run: Any) -> None:
    code, out, err = run("-n", "2")
    assert code == 0
    ann, bob, empty, *_ = out.split("\n")
    assert (ann[:5], bob[:5], empty) == ("Ann: ", "Bob: ", "")
    assert "1 Ann" in err
    assert "✓ 2/2" in err


def test_json_lines(run: Any, tmp_path: Path) -> None:
    code, out, err = run("-n", "2", "--json", "--out", str(tmp_path / "out.jsonl"))
    assert (code, out, err) == (0, "", "")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert [sentence["speaker"] for sentence in lines[0]["sentences"]] == ["Ann", "Bob"]


@pytest.mark.parametrize(
    ("plan", "arguments", "code", "said"),
    [
        ("none.toml", [], 1, "none.toml: cannot be read"),
        ("plan.toml", ["-c", "length: 3"], 2, "a plan brings its own controls"),
        ("plan.toml", ["--text-column", "x"], 2, "--text-column is a column of --corpus"),
        ("bad.toml", [], 2, "sentence 1: unknown control 'lenth'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Any, tmp_path: Path, plan: str, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "bad.toml").write_text('[[sentence]]\ncontrols = ["lenth: 7"]\n')
    ended, out, err = run(*arguments, plan=plan)
    assert (ended, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
