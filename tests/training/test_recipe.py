"""Recipes: what is read, and how each mistake is named."""

import math
from pathlib import Path

import pytest

from ctrlgen.diffusion.denoiser import ModelConfig
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.training.denoising import DataConfig, Recipe
from ctrlgen.training.recipe import make_recipe, read_recipe

WHOLE = """
[data]
train = "train.jsonl"
validation = "valid.jsonl"

[model]
width = 64
objective = "mse"

[diffusion]
schedule = "sqrt"

[training]
steps = 10
lr = 1
compile = true
"""


def test_a_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(WHOLE)
    recipe = read_recipe(path)
    assert recipe.data == DataConfig("train.jsonl", "valid.jsonl")
    assert recipe.model == ModelConfig(width=64, objective="mse")
    assert (recipe.diffusion.schedule, recipe.diffusion.steps) == ("sqrt", 2000)
    assert (recipe.training.steps, recipe.training.lr, recipe.training.compile) == (10, 1.0, True)
    assert isinstance(recipe.training.lr, float)  # written 1


def test_the_default_of_everything_but_the_data() -> None:
    assert make_recipe({"data": {"train": "x.txt"}}, "options") == Recipe(DataConfig("x.txt"))


def test_overrides_win_and_may_add_tables(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\ntrain = "a.txt"\n')
    recipe = read_recipe(path, {"data.train": "b.txt", "training.steps": 7})
    assert (recipe.data.train, recipe.training.steps) == ("b.txt", 7)


def data(**tables: object) -> dict[str, object]:
    return {"data": {"train": "x.txt"}, **tables}


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        (data(trainin={}), ["[trainin]", "Did you mean training?"]),
        (data(training={"step": 3}), ["[training]", "'step'", "Did you mean steps?"]),
        (data(model={"widht": 3}), ["[model]", "'widht'", "Did you mean width?"]),
        ({"data": {"train": "x", "txt": "y"}}, ["[data]", "'txt'", "text_column"]),
        (data(training={"steps": "many"}), ["steps = 'many'", "a whole number"]),
        (data(training={"steps": 1.5}), ["steps = 1.5", "a whole number"]),
        (data(training={"steps": True}), ["steps = True", "a whole number"]),
        (data(training={"lr": "high"}), ["lr = 'high'", "a number"]),
        (data(training={"lr": False}), ["lr = False", "a number"]),
        (data(training={"compile": 1}), ["compile = 1", "true or false"]),
        (data(model={"objective": "mae"}), ["objective = 'mae'", "one of ce, mse"]),
        ({"data": {"train": 3}}, ["train = 3", "a string"]),
        ({"data": {"train": "x", "validation": 3}}, ["validation = 3", "a string"]),
        (data(training=3), ["[training] must be a table"]),
        ({"data": {"validation": "x"}}, ["[data]", "train is missing"]),
        ({"training": {}}, ["[data]", "data.train"]),
        ({}, ["[data]", "data.train"]),
    ],
)
def test_each_mistake_is_named(tables: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make_recipe(tables, "recipe.toml")
    message = str(raised.value)
    assert message.startswith("recipe.toml: ")
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (data(model={"width": 30, "heads": 4}), "width 30"),
        (data(model={"heads": 0}), "heads"),
        (data(model={"layers": 0}), "layers"),
        (data(model={"max_length": -1}), "max_length"),
        (data(diffusion={"schedule": "warped"}), "'warped'"),
        (data(diffusion={"min_noise": 2.0, "max_noise": 1.0}), "2.0 and 1.0"),
        (data(diffusion={"steps": 0}), "steps"),
        (data(diffusion={"temperature": 0}), "temperature"),
        (data(training={"steps": 0}), "steps"),
        (data(training={"tokens_per_batch": 0}), "tokens_per_batch"),
        (data(training={"log_every": 0}), "log_every"),
        (data(training={"checkpoint_every": 0}), "checkpoint_every"),
        (data(training={"validate_every": -5}), "validate_every"),
        (data(model={"dropout": 1.5}), "dropout = 1.5 must be from 0 to 1"),
        (data(training={"ema": -0.5}), "ema = -0.5 must be from 0 to 1"),
        (data(training={"context_share": 1.0}), "context_share must be below 1"),
        (data(model={"context": 8}), 'context = 8 needs output = "tied"'),
        ({"data": {"train": "x.txt", "documents": ["y.jsonl"]}}, "documents are for a model with a context"),
        (data(training={"lr": -1.0}), "lr = -1.0 must be from 0 to 1000000000"),
        (data(training={"lr": math.nan}), "lr = nan must be from 0 to 1000000000"),
        (data(training={"lr": 1e308}), "lr = 1e.308 must be from 0 to 1000000000"),
        ({"data": {"train": "x.txt", "min_count": -1}}, "min_count = -1 must be from 0"),
        ({"data": {"train": "x.txt", "max_vocab": 10**22}}, "max_vocab = 1"),
        ({"data": {"train": "x.txt", "max_vocab": 3}}, "max_vocab = 3 leaves no words"),
        (data(diffusion={"steps": 10**20}), "steps = 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_the_data_is_read(tables: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named) as raised:
        make_recipe(tables, "recipe.toml")
    assert str(raised.value).startswith("recipe.toml: ")


@pytest.mark.parametrize("table", ["data", "training"])
def test_an_override_of_what_is_no_table(table: str) -> None:
    with pytest.raises(UsageError, match=rf"\[{table}\] must be a table"):
        make_recipe(data() | {table: "x"}, "recipe.toml", {"data.train": "b.txt", "training.steps": 7})


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match=r"none\.toml: cannot be read: No such file") as raised:
        read_recipe(tmp_path / "none.toml")
    assert not isinstance(raised.value, UsageError)
    with pytest.raises(CtrlgenError, match=r"^e2e: cannot be read: .*; `ctrlgen recipe e2e > e2e.toml` writes one$"):
        read_recipe(Path("e2e"))
    (tmp_path / "rows.csv").write_text("text,mood\nA pub .,good\n")
    with pytest.raises(UsageError, match=r"rows\.csv: is data, not a recipe; give it with --data$"):
        read_recipe(tmp_path / "rows.csv")
    broken = tmp_path / "broken.toml"
    broken.write_text("[[sentence]]\n")
    with pytest.raises(UsageError, match=r"broken\.toml: is a plan for `ctrlgen write`, not a recipe$"):
        read_recipe(broken)
    broken.write_text("[data\n")
    with pytest.raises(UsageError, match=r"broken\.toml: not TOML"):
        read_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"broken\.toml: not TOML"):
        read_recipe(broken)
