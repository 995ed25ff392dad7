"""Recipes as text: those that come with ctrlgen, and any recipe written out with a word on every key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.keys import keys_of
from ctrlgen.training.denoising import Recipe
from ctrlgen.training.recipe import RECIPES, read_recipe, shipped_recipes


def recipe_path(name: str) -> Path:
    """Raises UsageError where no recipe of this name comes with ctrlgen."""
    names = shipped_recipes()
    if name not in names:
        raise UsageError(f"no recipe {name!r}: use {', '.join(names)}.{did_you_mean(name, names)}")
    return RECIPES / f"{name}.toml"


def commented(name: str) -> str:
    """A shipped recipe with every key: those that it leaves as they are stand behind `#`, with their defaults."""
    path = recipe_path(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    about = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(about) + "\n\n" + to_toml(read_recipe(path, fill=False), everything=True)


def to_toml(recipe: Recipe, everything: bool = False) -> str:
    """The keys that differ from their defaults; with `everything` the others too, behind `#`, and what each is for."""
    tables = []
    for table, kind in get_type_hints(Recipe).items():
        values, keys = getattr(recipe, table), keys_of(kind)
        lines = []
        for key in dataclasses.fields(kind):
            value, default = getattr(values, key.name), default_of(key)
            if value == default and not everything:
                continue
            line = f"{key.name} = {toml(example_of(key) if value is None else value)}"
            line = f"# {line}" if value == default else line
            lines.append(f"{line:<34}  # {keys[key.name].help.replace('`', '')}" if everything else line)
        if lines:
            tables.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(tables) + "\n"


def documented(table: str) -> str:
    """What docs/recipes.md says of a table's keys, as Markdown."""
    kind = get_type_hints(Recipe)[table]
    keys, lines = keys_of(kind), ["| key | default | meaning |", "|---|---|---|"]
    for key in dataclasses.fields(kind):
        default = default_of(key)
        said = "–" if default is dataclasses.MISSING else "none" if default is None else toml(default)
        lines.append(f"| `{key.name}` | {said} | {keys[key.name].help} |")
    return "\n".join(lines)


def default_of(key: dataclasses.Field[Any]) -> Any:
    return key.default_factory() if key.default_factory is not dataclasses.MISSING else key.default


def example_of(key: dataclasses.Field[Any]) -> str:
    """What stands for a value that is none, which TOML cannot write."""
    return {"init": "e2e", "validation": "valid.csv", "text_column": "text"}.get(key.name, "")


def toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {toml(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
