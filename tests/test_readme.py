"""The commands of the README, and of the pages that it leads to first, run as they stand, on data made here; only steps
and samples are fewer."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ctrlgen.cli import main

ROOT = Path(__file__).parents[1]
SERVES = ("demo", "--ray")  # a page and a cluster have tests of their own


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The commands that stand in lines of their own, without comments."""
    return [re.sub(r"\s{2,}#.*", "", line.strip()) for line in re.findall(r"^    ctrlgen .*$", text, re.MULTILINE)]


ASKED, TRAINED = page("README.md").split("## Your own model")
ASKING = [
    command
    for command in dict.fromkeys(commands(ASKED) + commands(page("docs/generating.md")))
    if not any(one in command for one in SERVES)
]
OWN_DATA = page("docs/your-own-data.md").split("## More controls")[1].split("## More labelled texts")[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the README's commands name."""
    place = tmp_path_factory.mktemp("readme")
    rows = []
    names = ("The Vaults", "The Mill", "Blue Spice", "Alimentum")
    for name, food, price, near in itertools.product(
        names, ("French", "Italian", "Chinese"), ("cheap", "high"), ("Café Adriatic", "Crowne Plaza Hotel", "the river")
    ):
        words = [*name.split(), "is", "a", price, food, "pub", "near", *near.split(), "."]
        noun = f"(NP {' '.join(f'(NNP {word})' for word in name.split())})"
        place_ = f"(PP (IN near) (NP {' '.join(f'(NNP {word})' for word in near.split())}))"
        tree = f"(S {noun} (VP (VBZ is) (NP (DT a) (JJ {price}) (JJ {food}) (NN pub)) {place_}) (. .))"
        meaning = f"name[{name}], food[{food}], priceRange[{price}], near[{near}]"
        rows.append(
            {"human_reference": " ".join(words), "meaning_representation": meaning, "tree": tree, "price": price}
        )
    shutil.copytree(ROOT / "examples", place / "examples")
    (place / "e2e" / "trees").mkdir(parents=True)
    for file in ("e2e/train.jsonl", "e2e/test.jsonl", "e2e/trees/test.jsonl", "trees.jsonl"):
        (place / file).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    with (place / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        opinion = {"cheap": "positive", "high": "negative"}
        writer.writerows([row["human_reference"], opinion[row["price"]]] for row in rows)
    (place / "requests.jsonl").write_text(
        '{"id": "a1", "controls": ["length: 5"], "n": 2, "seed": 7}\n', encoding="utf-8"
    )
    return place


def run(command: str, *more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], *more])
    assert ended.value.code == 0, command


@pytest.mark.parametrize("command", ASKING)
def test_what_can_be_asked_for(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    run(command.replace("-n 200", "-n 5"), *(() if "controls" in command.split()[1] else ("--steps", "4")))
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("text", [TRAINED, OWN_DATA], ids=["README.md", "your-own-data.md"])
def test_a_model_of_ones_own(
    text: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which they stand, each with what those before have made."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for command in commands(text):
        if command.startswith("ctrlgen eval"):
            run(command, "--limit", "4", "--steps", "4")
        else:
            run(re.sub(r" --(steps|minutes) \d+", "", command), "--steps", "4")
    assert (tmp_path / "report" / "report.html").exists() == ("ctrlgen eval" in text)
    assert capsys.readouterr().out.strip()


def test_commands_are_read() -> None:
    assert len(ASKING) > 20
    assert len(commands(TRAINED)) > 4
    assert len(commands(OWN_DATA)) > 7
