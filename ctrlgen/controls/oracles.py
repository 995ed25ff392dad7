"""Oracles that take long to load, and functions that are named.

Such oracles begin before torch is imported, beside everything else that is to be loaded. A package registers a function
under GROUP, by the name of its kind of control. The function takes no arguments, returns at once (it starts a process)
and stands in a module that does not import torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ctrlgen.controls.language import fold, parse_statement
from ctrlgen.errors import UsageError

GROUP = "ctrlgen.oracles"


def start_oracles(controls: Iterable[str]) -> None:
    """Begin to load what the oracles of controls as written need. What cannot be loaded is said once it is needed.

    Raises UsageError for a text that is no control.
    """
    from importlib.metadata import entry_points  # takes a while to import

    asked = {fold(parse_statement(text).name) for text in controls}
    for entry in entry_points(group=GROUP):
        if fold(entry.name) in asked:
            with suppress(Exception):  # a stranger's package may fail in any way
                entry.load()()


def load_function(option: str, name: str) -> Callable[..., Any]:
    """The function MODULE:FUNCTION that an option names; it is run. Raises UsageError."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise UsageError(f"{option} {name!r}: write MODULE:FUNCTION")
    if os.getcwd() not in sys.path:  # a module in the current directory, as `python -m` finds it
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # a user's module may fail in any way
        raise UsageError(f"{option} {name!r}: {module} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"{option} {name!r}: {module} has no function {function!r}")
    return found
