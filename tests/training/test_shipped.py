"""Recipes that come with ctrlgen, and recipes as text."""

import math
import tomllib
from typing import get_type_hints

import pytest

from ctrlgen.errors import UsageError
from ctrlgen.keys import keys_of
from ctrlgen.training.denoising import DataConfig, Recipe
from ctrlgen.training.recipe import make_recipe, read_recipe
from ctrlgen.training.shipped import commented, recipe_path, shipped_recipes, to_toml

TABLES = get_type_hints(Recipe)


def test_bounds_are_those_of_one_key_not_of_all_with_its_name() -> None:
    keys = {table: keys_of(kind) for table, kind in TABLES.items()}
    assert (keys["heads"]["judged"].least, keys["heads"]["steps"].least) == (0, 1)
    assert keys["model"]["dropout"].most == 1
    everything = [key for of_table in keys.values() for key in of_table.values()]
    assert not any(key.allows(math.nan) for key in everything)
    assert all(key.allows(value) for key in everything for value in ("text", True, None, []))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_printed_recipe_is_the_shipped_one(name: str) -> None:
    shipped = read_recipe(recipe_path(name), fill=False)
    assert make_recipe(tomllib.loads(commented(name)), "printed", fill=False) == shipped
    assert make_recipe(tomllib.loads(to_toml(shipped)), "written", fill=False) == shipped


def test_a_printed_recipe_has_every_key_which_may_be_uncommented() -> None:
    lines = [line.removeprefix("# ") for line in commented("small").split("[data]", 1)[1].splitlines()]
    tables = tomllib.loads("[data]" + "\n".join(lines))
    assert {table: list(values) for table, values in tables.items()} == {t: list(keys_of(k)) for t, k in TABLES.items()}


def test_odd_values_are_read_back() -> None:
    data = DataConfig('a "b"\\c\n.csv', text_column="тext", leave_out={"a b": ["x", 'y"']}, labels=["l"])
    assert make_recipe(tomllib.loads(to_toml(Recipe(data))), "written") == Recipe(data)


def test_an_unknown_recipe_is_named_with_the_choice() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'smal': use base, .*small\. Did you mean small\?"):
        commented("smal")
