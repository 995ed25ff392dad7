"""What can be asked for, and files that are checked before they cost hours."""

import json
from pathlib import Path

import pytest
from command_line import Outcome, Run


@pytest.mark.slow
def test_the_values_of_a_control(ctrlgen: Run) -> None:
    listed = ctrlgen("controls", "Food")
    assert listed.code == 0
    assert {"Italian", "Japanese", "absent"} <= set(listed.out.splitlines())
    (answer,) = ctrlgen("controls", "food", "--json").answers
    assert answer == {"kind": "field", "values": listed.out.splitlines(), "symbols": {}}
    assert "\nUniversal tags: ADJ ADP ADV AUX " in ctrlgen("controls", "pos").out
    assert "\nlabels: ADJP ADVP " in ctrlgen("controls", "span").out
    assert "\nexample: length: " in ctrlgen("controls", "length").out
    outcome = ctrlgen("controls", "fod")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean food?" in outcome.err


def test_good_files(ctrlgen: Run, toy_data: Path, toy_model: Path, tmp_path: Path) -> None:
    recipe, batch, data = (tmp_path / name for name in ("a.toml", "b.jsonl", "c.csv"))
    recipe.write_text(f"[data]\ntrain = {json.dumps(str(toy_data))}\n")
    batch.write_text('{"n": 3}\n{"controls": ["pos: DET ..."], "n": 2}\n')
    data.write_text("text,mood\nA pub .,good\n,bad\nA bar .,good\n")
    before = sorted(tmp_path.iterdir())
    assert ctrlgen("validate", recipe) == Outcome(0, f"{recipe}: a recipe; its data can be read\n", "")
    said = f"{batch}: a batch of 2 requests for 5 texts; {toy_model} understands them all\n"
    assert ctrlgen("validate", batch, "-m", toy_model) == Outcome(0, said, "")
    said = f"{data}: 3 rows, 2 texts in column 'text'\n  column 'mood': 2 values: 'good' 2, 'bad' 1\n"
    assert ctrlgen("validate", data) == Outcome(0, said, "")
    data = tmp_path / "d.jsonl"
    data.write_text('{"sentence": "A pub ."}\n')
    assert ctrlgen("validate", data).out == f"{data}: 1 rows, 1 texts in column 'sentence'\n"
    data.unlink()
    assert "600 texts in column 'text'" in ctrlgen("validate", toy_data).out
    assert sorted(tmp_path.iterdir()) == before


def test_good_plans(ctrlgen: Run, toy_model: Path, tmp_path: Path) -> None:
    plan, lines = tmp_path / "plan.toml", tmp_path / "plan.jsonl"
    plan.write_text('carry = ["pos"]\n[[sentence]]\ncontrols = ["pos: DET ..."]\n[[sentence]]\ndraft = "the cat ."\n')
    lines.write_text('{"defaults": {"controls": ["length: 5"]}}\n{"draft": "nearest"}\n')
    said = f"{plan}: a plan of 2 sentences; {toy_model} understands all of it\n"
    assert ctrlgen("validate", plan, "-m", toy_model) == Outcome(0, said, "")
    corpus = "; `ctrlgen write` needs --corpus for its drafts"
    said = f"{lines}: a plan of 1 sentence; {toy_model} understands all of it{corpus}\n"
    assert ctrlgen("validate", lines, "-m", toy_model) == Outcome(0, said, "")
    assert ctrlgen("validate", lines, "-m", toy_model, "--as", "plan") == Outcome(0, said, "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.toml", "[[sentence]]\ncontrols = ['lenth: 7']\n", "sentence 1: unknown control 'lenth'"),
        ("p.toml", "[[sentence]]\n[[sentence]]\ncontrol = 3\n", "sentence 2: unknown key 'control'"),
        ("p.toml", "[[sentence]]\ndraft = 'nearest'\n", "sentence 1: draft = nearest needs controls"),
        ("p.toml", "carry = ['lenth']\n[[sentence]]\n", "unknown control 'lenth'"),
        ("p.toml", "[defaults]\nspeaker = 'Ann'\n", "has no sentences"),
        ("p.jsonl", '{"speaker": "Ann"}\n{"speaker": 3}\n', "sentence 2: speaker must be a text"),
        ("a.toml", "[data]\ntrain = 'none.csv'\n", "none.csv: no such file"),
        ("a.toml", "[data]\ntrain = 'none.csv'\n[training]\nstep = 3\n", "Did you mean steps?"),
        ("a.jsonl", '{"n": 1}\n{"n": 0}\n{"controls": ["pso: DET"]}\n', "(2 bad lines"),
        ("a.jsonl", "not json\n", "line 1: not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.csv", "text,mood\na,b,c\n", "line 2: 3 fields"),
        ("missing.csv", None, "no such file"),
    ],
)
def test_bad_files(
    ctrlgen: Run, toy_model: Path, tmp_path: Path, name: str, content: str | None, said: str
) -> None:  # fmt: skip
    if content is not None:
        (tmp_path / name).write_text(content)
    outcome = ctrlgen("validate", tmp_path / name, "-m", toy_model)
    assert outcome.code in (1, 2)
    assert (outcome.out, len(outcome.err.splitlines())) == ("", 1)
    assert said in outcome.err
