"""Oracles that take long to load begin before torch is imported, beside everything else that is to be loaded.

A package registers a function under GROUP, by the name of its kind of control. The function takes no arguments, returns
at once (it starts a process) and stands in a module that does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ctrlgen.controls.language import fold, parse_statement

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
