"""More labelled texts: new ones, as many for each label, the same again after a stop."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from command_line import Run, exit_code
from toy_grammar import toy_meaning, toy_sentences

from ctrlgen.domain.augmenting import Augmented, Augmenter, ranked
from ctrlgen.domain.verdict import VERDICT
from ctrlgen.generation.generator import Generator

NOUNS = ("cat", "dog", "house", "river")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": " ".join(words), "subject": toy_meaning(words)["subject"]} for words, _ in toy_sentences(200)]
    path = tmp_path_factory.mktemp("augment") / "toy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(data: Path, toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a control `subject`."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("augmenting") / "toy"))
    command = ["label", "--model", str(directory), "--data", str(data), "--label-column", "subject"]
    assert exit_code("train-classifier", *command, "--name", "subject", "--steps", "20") == 0
    return directory


def written(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_texts_are_new_and_as_many_for_each_label_and_the_same_after_a_stop(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--data", str(data), "--label-column", "subject", "--per-label", "3", "-m", str(model)]
    assert exit_code("augment", *options, "--out", str(tmp_path / "whole.csv")) == 0
    rows = written(tmp_path / "whole.csv")
    assert list(rows[0]) == ["text", "subject", "probability", "cost"]
    counts = {noun: sum(row["subject"] == noun for row in rows) for noun in NOUNS}
    assert max(counts.values()) <= 3
    assert sum(counts.values()) == len(rows) > 0
    known = {json.loads(line)["text"] for line in data.read_text().splitlines()}
    texts = [row["text"] for row in rows]
    assert not known & set(texts)
    assert len(set(texts)) == len(texts)

    draw, calls = Augmenter.draw, []

    def stopped(self: Augmenter, request: object) -> object:
        calls.append(request)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Augmenter, "draw", stopped)
    out = tmp_path / "stopped.csv"
    assert exit_code("augment", *options, "--out", str(out)) == 130
    assert not out.exists()
    assert exit_code("augment", *options, "--out", str(out)) == 0
    assert len(calls) == 3 + len(NOUNS) - 2  # two requests were answered before the stop
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["stopped.csv", "whole.csv"]


def test_a_model_that_is_not_there_yet_is_told(data: Path, model: Path, tmp_path: Path, ctrlgen: Run) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / VERDICT).write_text('{"verdict": "not there yet: 90% of the texts have a slip"}')
    options = ("--label-column", "subject", "--per-label", 1, "--out", tmp_path / "a.csv")
    written = ctrlgen("augment", "-m", copy, "--data", data, *options)
    assert "warning: the verdict on this model is not there yet" in written.err
    (copy / VERDICT).write_text('{"verdict": "usable"}')
    assert "the verdict on this model" not in ctrlgen("augment", "-m", copy, "--data", data, *options).err


def test_copies_are_left_out(data: Path, model: Path) -> None:
    augmenter = Augmenter(Generator(str(model)), str(data), None, "subject")
    known = json.loads(data.read_text().splitlines()[0])["text"].split()
    nearly = [*known, "dog"]  # of which nearly all stands in a training text
    other = ["dog", "river", "cat", "house", "near", "near", "red"]
    rows = [
        {"text": " ".join(words), "words": words, "label": "cat", "probability": 0.5}
        for words in (known, [word.upper() for word in known], nearly, other, other)
    ]
    chosen, left = augmenter.choose(rows, 5)
    assert [text.text for text in chosen] == [" ".join(other)]
    assert (left["cat"].copies, left["cat"].near, left["cat"].worse) == (3, 1, 0)


def test_the_worst_are_left_out() -> None:
    texts = [Augmented(name, "x", p, cost) for name, p, cost in [("a", 0.9, 1.0), ("b", 0.8, 2.0), ("c", 0.1, 9.0)]]
    assert [text.text for text in ranked(texts[::-1])] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label-column", "subject"], "give --model; `ctrlgen train"),
        (["--label-column", "nothing", "-m", "MODEL"], "no column 'nothing'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], said: str, data: Path, model: Path, tmp_path: Path, ctrlgen: Run
) -> None:
    options = [str(model) if option == "MODEL" else option for option in options]
    refused = ctrlgen("augment", "--data", data, *options, "--out", tmp_path / "a.csv")
    assert refused.code == 2
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_drawn(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrlgen: Run
) -> None:
    monkeypatch.setattr(Augmenter, "draw", lambda *_: pytest.fail("texts were drawn"))
    refused = ctrlgen("augment", "--data", data, "--label-column", "subject", "-m", model, "--out", tmp_path)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.endswith(f"ctrlgen: {tmp_path}: is a directory\n")
