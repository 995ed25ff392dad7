"""Recipes that come with ctrlgen, and recipes as text."""

import dataclasses
import tomllib
from typing import get_type_hints

import pytest

from ctrlgen.errors import UsageError
from ctrlgen.training.denoising import DataConfig, Recipe
from ctrlgen.training.recipe import make_recipe, read_recipe
from ctrlgen.training.shipped import MEANINGS, commented, recipe_path, shipped_recipes, to_toml


def test_every_key_has_a_meaning_and_nothing_else_has() -> None:
    keys = {table: [f.name for f in dataclasses.fields(kind)] for table, kind in get_type_hints(Recipe).items()}
    assert {table: sorted(meanings) for table, meanings in MEANINGS.items()} == {t: sorted(k) for t, k in keys.items()}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_printed_recipe_is_the_shipped_one(name: str) -> None:
    shipped = read_recipe(recipe_path(name), fill=False)
    assert make_recipe(tomllib.loads(commented(name)), "printed", fill=False) == shipped
    assert make_recipe(tomllib.loads(to_toml(shipped)), "written", fill=False) == shipped


def test_a_printed_recipe_has_every_key_which_may_be_uncommented() -> None:
    lines = [line.removeprefix("# ") for line in commented("small").split("[data]", 1)[1].splitlines()]
    tables = tomllib.loads("[data]" + "\n".join(lines))
    assert tables.keys() == MEANINGS.keys()
    assert {table: set(values) for table, values in tables.items()} == {t: set(k) for t, k in MEANINGS.items()}


def test_odd_values_are_read_back() -> None:
    data = DataConfig('a "b"\\c\n.csv', text_column="тext", leave_out={"a b": ["x", 'y"']}, labels=["l"])
    assert make_recipe(tomllib.loads(to_toml(Recipe(data))), "written") == Recipe(data)


def test_an_unknown_recipe_is_named_with_the_choice() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'smal': use base, .*small\. Did you mean small\?"):
        commented("smal")
