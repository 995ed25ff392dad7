"""How heads are trained: the same way by the command line and by a recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Run

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.data.texts import load_data
from ctrlgen.domain import making
from ctrlgen.training.classifiers import VALIDATIONS, head_config
from ctrlgen.training.denoising import DataConfig, HeadsConfig, Recipe
from ctrlgen.training.fit import RESUME, TrainingConfig
from ctrlgen_classifiers.label import Label


@pytest.mark.parametrize("steps", [1, 7, 60, 500, 2000])
def test_few_steps_reach_their_rate_and_are_validated_as_often(steps: int) -> None:
    config = head_config(steps)
    assert config.warmup_steps == min(100, max(1, steps // 10))
    assert max(config.learning_rate(step) for step in range(steps)) == pytest.approx(1.0, abs=0.02 if steps > 1 else 0)
    assert -(-steps // config.validate_every) == min(steps, 4 if steps == 7 else VALIDATIONS)
    assert config.checkpoint_every == steps


def test_a_shorter_warmup_stays() -> None:
    assert TrainingConfig(steps=1000, warmup_steps=3).paced(4).warmup_steps == 3


def test_the_command_and_a_recipe_train_heads_alike(
    ctrlgen: Run, model_copy: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrainingConfig] = []

    def train(model: Any, name: str, *arguments: Any) -> Iterator[Any]:
        *_, config, directory = arguments
        given.append(config)
        (directory / "config.json").write_text('{"trained_on": ""}')
        (directory / RESUME).write_text("")
        yield from ()

    monkeypatch.setattr(Label, "train", train)
    options = ("--name", "one", "--label-column", "tags", "--steps", 60, "--tokens-per-batch", 300)
    assert ctrlgen("train-classifier", "label", "-m", model_copy, "--data", toy_data, *options).code == 0
    rows, column = load_data(str(toy_data))
    recipe = Recipe(DataConfig(str(toy_data)), heads=HeadsConfig(60, 300))
    place = model_copy / "classifiers" / "two"
    assert list(making.train_label(recipe, from_pretrained(str(model_copy)), "two", rows, column, place)) == []
    assert given[0] == given[1] == head_config(60, tokens_per_batch=300)
    for name in ("one", "two"):
        assert [path.name for path in (model_copy / "classifiers" / name).iterdir()] == ["config.json"]
