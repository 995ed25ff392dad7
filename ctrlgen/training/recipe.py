"""Training recipes: TOML files read into `Recipe`, with every mistake named."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ctrlgen.checkpoint import CONFIG, DiffusionConfig, find_model, read_config
from ctrlgen.data.tables import kind_of
from ctrlgen.diffusion.denoiser import DenoiserConfig, ModelConfig
from ctrlgen.diffusion.schedule import make_schedule
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.files import refuse_device
from ctrlgen.keys import keys_of
from ctrlgen.text.tokenizer import SPECIAL
from ctrlgen.training.denoising import Recipe

RECIPES = Path(__file__).parent / "recipes"


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None, fill: bool = True) -> Recipe:
    """A recipe from a file. `overrides` are dotted keys such as `training.steps`.

    fill: take the sizes of a model to start from, where the recipe says none.

    Raises CtrlgenError where the file cannot be read, UsageError where a key or value is not understood.
    """
    refuse_device(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"; `ctrlgen recipe {path} > {path}.toml` writes one" if str(path) in shipped_recipes() else ""
        raise CtrlgenError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        if kind_of(path) is not None:
            raise UsageError(f"{path}: is data, not a recipe; give it with --data") from error
        raise UsageError(f"{path}: not TOML: {error}") from error
    if "sentence" in tables:
        raise UsageError(f"{path}: is a plan for `ctrlgen write`, not a recipe")
    return make_recipe(tables, str(path), overrides, fill)


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with ctrlgen."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def make_recipe(
    tables: dict[str, Any], source: str, overrides: Mapping[str, Any] | None = None, fill: bool = True
) -> Recipe:
    for dotted, value in (overrides or {}).items():
        table, _, key = dotted.partition(".")
        if isinstance(tables.setdefault(table, {}), dict):
            tables[table][key] = value
    if fill:
        fill_from_start(tables)
    sections = get_type_hints(Recipe)
    built = {}
    for table, values in tables.items():
        if table not in sections:
            raise UsageError(
                f"{source}: unknown table [{table}]; use {', '.join(sections)}.{did_you_mean(table, sections)}"
            )
        if not isinstance(values, dict):
            raise UsageError(f"{source}: [{table}] must be a table")
        built[table] = build(sections[table], values, f"{source}: [{table}]")
    if "data" not in built:
        raise UsageError(f"{source}: says nothing about [data]; give data.train, a path or a hub id")
    recipe = Recipe(**built)
    check_sizes(recipe, source)
    return recipe


def fill_from_start(tables: dict[str, Any]) -> None:
    """A recipe that starts from a model has its sizes and its noise, unless it says otherwise."""
    training = tables.get("training")
    start = training.get("init") if isinstance(training, dict) else None
    if not isinstance(start, str):
        return
    config = read_config(find_model(start) / CONFIG)
    for table, source, kind in (("model", "denoiser", ModelConfig), ("diffusion", "diffusion", DiffusionConfig)):
        said = config.get(source)
        if isinstance(said, dict) and isinstance(tables.setdefault(table, {}), dict):
            names = [field.name for field in dataclasses.fields(kind)]
            tables[table] = {name: said[name] for name in names if name in said} | tables[table]


def check_sizes(recipe: Recipe, source: str) -> None:
    """Refuse what no model can be made from, before any data is read."""
    diffusion = recipe.diffusion
    if recipe.data.max_vocab <= len(SPECIAL):
        raise UsageError(f"{source}: [data]: max_vocab = {recipe.data.max_vocab} leaves no words beside {SPECIAL}")
    try:
        DenoiserConfig(vocab_size=1, **dataclasses.asdict(recipe.model))
        make_schedule(diffusion.schedule, diffusion.min_noise, diffusion.max_noise)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    if recipe.model.context and recipe.model.output != "tied":
        raise UsageError(f'{source}: [model]: context = {recipe.model.context} needs output = "tied"')
    if recipe.data.documents and not recipe.model.context:
        raise UsageError(f"{source}: [data]: documents are for a model with a context: give model.context")
    if recipe.training.context_share == 1:
        raise UsageError(f"{source}: [training]: context_share must be below 1, for texts also begin without a context")


def build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A frozen dataclass from a TOML table, types and ranges checked."""
    hints, keys = get_type_hints(kind), keys_of(kind)
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for key, value in values.items():
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}; use {', '.join(hints)}.{did_you_mean(key, hints)}")
        if not fits(value, hints[key]):
            raise UsageError(f"{where}: {key} = {value!r} is not {describe(hints[key])}")
        if not keys[key].allows(value):
            raise UsageError(f"{where}: {key} = {value!r} must be from {keys[key].least} to {keys[key].most}")
    for name in required:
        if name not in values:
            raise UsageError(f"{where}: {name} is missing")
    numbers = {key: float(value) if hints[key] is float else value for key, value in values.items()}
    try:
        return kind(**numbers)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value is of the type a field asks for; whole numbers pass as floats."""
    options = get_args(hint)
    if options and all(isinstance(option, str) for option in options):
        return value in options
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, options[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(item, options[1]) for item in value.values())
    if options and get_origin(hint) is not None:
        return any(fits(value, option) for option in options)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)


def describe(hint: Any) -> str:
    options = get_args(hint)
    if options and all(isinstance(option, str) for option in options):
        return f"one of {', '.join(options)}"
    if get_origin(hint) is list:
        return f"a list, each of it {describe(options[0])}"
    if get_origin(hint) is dict:
        return f"a table, each value {describe(options[1])}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "nothing"}
    if options:
        return " or ".join(names.get(option, str(option)) for option in options if option is not type(None))
    return names.get(hint, str(hint))
