"""`ctrlgen edit`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from ctrlgen.generation.generator import Generator


@pytest.fixture
def run(toy_model: Path, ctrlgen: Run) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        outcome = ctrlgen("edit", "-m", toy_model, "--steps", 8, *arguments)
        return outcome.code, outcome.out, outcome.err

    return call


@pytest.fixture
def text(generator: Generator) -> str:
    return generator.generate([generator.request(["length: 7"])])[0].text


@pytest.mark.slow
def test_a_text_is_edited_and_the_table_says_how(run: Any, text: str, generator: Generator) -> None:
    word = generator.model.tokenizer.split(text)[3]
    code, out, _ = run(text, "-c", f"not words: {word}")
    assert code == 0
    assert "kept" in out
    assert "changes" in out
    assert "✓" in out
    code, out, _ = run(text, "-c", f"words: {word}")
    assert "100%  none" in out
    assert text in out


def test_each_text_of_a_column(run: Any, text: str, generator: Generator, tmp_path: Path) -> None:
    word = generator.model.tokenizer.split(text)[3]
    file = tmp_path / "texts.csv"
    file.write_text(f"what,other\n{text},1\n{text},2\n", encoding="utf-8")
    code, out, _ = run("--data", str(file), "--text-column", "what", "-c", f"words: {word}", "--keep", word, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["id"], line["text"], line["kept"]) for line in lines] == [(1, text, 1.0), (2, text, 1.0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one text to edit, or --data FILE"),
        (["the cat"], "say what to change"),
        (["the cat", "--data", "x.csv", "-c", "length: 5"], "give one text to edit"),
        (["the cat", "--text-column", "x", "-c", "length: 5"], "--text-column is a column of --data"),
        (["the cat", "-c", "length: 5", "--explain"], "No such option: --explain"),
        (["the cat", "-c", "length: 5", "--redrafts", "2"], "No such option: --redrafts"),
        (["the cat", "-c", "length: 5", "--scorer", "a:b"], "--scorer"),
        (["the cat", "-c", "length: 5", "--keep", "dog"], "'dog' is to be kept"),
        ([" ", "-c", "length: 5"], "there is no text to edit"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Any, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_rows_that_cannot_be_edited_are_named(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text(f"text,n\nthe cat,1\n{'the ' * 20},2\n,3\n", encoding="utf-8")
    code, _, err = run("--data", str(file), "-c", "length: 5")
    assert code == 2
    assert "row 2: the text has 20 words" in err
    assert "row 3: there is no text" in err
