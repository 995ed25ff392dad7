"""What is checked when a classifier is registered, so that a mistake in it is one line of error before it is used."""

from __future__ import annotations

import inspect
from typing import Any

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import parse_statement
from ctrlgen.errors import CtrlgenError, UsageError, listed

TEXTS = ("summary", "syntax", "example", "oracle")
METHODS = {  # with what they are given
    "load": ("model", "name"),
    "parse": ("value",),
    "encode": ("targets", "lengths"),
    "log_prob": ("denoised", "encoded"),
    "check": ("texts", "targets"),
}


def refuse_incomplete(name: str, found: Any) -> None:
    """Raises CtrlgenError, one line, where what is registered as `name` does not offer what a classifier must."""
    reason = shortcoming(name, found)
    if reason is not None:
        raise CtrlgenError(f"the classifier {name!r} ({described(found)}) {reason}")


def shortcoming(name: str, found: Any) -> str | None:
    """What is wrong with a class that is to answer to `name`, or None."""
    if not isinstance(found, type) or not issubclass(found, Classifier):
        return "is no subclass of ctrlgen.Classifier"
    lacking = [text for text in TEXTS if not hasattr(found, text)]
    lacking += [f"{method}()" for method in METHODS if method in found.__abstractmethods__]
    if lacking:
        return f"lacks {listed(lacking)}"
    if found.kind != name:
        return f"calls itself {found.kind!r}: its `kind` and the name of its entry point must be the same"
    for text in TEXTS:
        value = getattr(found, text)
        if not isinstance(value, str) or not value.strip() or "\n" in value:
            return f"needs a `{text}` of one line, not {value!r:.60}"
    try:
        parse_statement(found.example)
    except UsageError as error:
        return f"has an `example` that cannot be asked for: {error}"
    for method, given in METHODS.items():
        reason = misfit(found, method, given)
        if reason is not None:
            return reason
    return None


def misfit(kind: type[Classifier], method: str, given: tuple[str, ...]) -> str | None:
    """Why a method cannot be called as it will be, or None."""
    function = getattr(kind, method)
    if not callable(function):
        return f"has a `{method}` that is no method"
    of_class = method == "load"
    if inspect.ismethod(function) != of_class:
        return f"needs {method}() {'as a class method' if of_class else 'as a method of its instances'}"
    try:
        inspect.signature(function).bind(*given if of_class else ("self", *given))
    except TypeError as error:
        return f"has {method}{inspect.signature(function)}, which cannot be given ({', '.join(given)}): {error}"
    return None


def described(found: Any) -> str:
    return f"{found.__module__}:{found.__qualname__}" if isinstance(found, type) else f"{found!r:.60}"
