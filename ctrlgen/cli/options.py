"""The settings as options of a command line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from ctrlgen.settings import DENOISING, KEEPING, SETTINGS, STEERING, Setting, Settings, Window, change

HEADINGS = (KEEPING, STEERING, DENOISING)  # in the order in which help shows them


def with_settings(
    known: Callable[[Setting], bool] = lambda one: True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a command whose first argument is `settings`, the command that has an option for each that it knows."""
    chosen = sorted(filter(known, SETTINGS.values()), key=lambda one: HEADINGS.index(one.heading))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(make_settings({one.name: given.pop(one.name) for one in chosen}), **given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *parameters_of(chosen))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def make_settings(given: dict[str, Any]) -> Settings:
    """The settings that options ask for. Raises UsageError where a value is out of bounds."""
    return change(
        Settings(),
        {name: SETTINGS[name].read(value) if SETTINGS[name].type == Window else value for name, value in given.items()},
    )


def parameters_of(settings: Iterable[Setting]) -> list[inspect.Parameter]:
    """Each setting as an argument whose annotation typer understands."""
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default="{:g}:{:g}".format(*one.default) if one.type == Window else one.default,
            annotation=Annotated[str if one.type == Window else one.type, option(one)],
        )
        for one in settings
    ]


def option(one: Setting) -> Any:
    """How typer shows a setting, and within which bounds it takes it."""
    flags = [f"--{one.name.replace('_', '-')}"] if one.type is bool else []
    return typer.Option(
        *flags,
        min=one.least if one.number is not None else None,
        max=one.most if one.number is not None else None,
        help=one.help,
        rich_help_panel=one.heading,
    )
