"""The control language.

    ["not"] NAME ":" VALUE ["@" [WEIGHT] ["[" FROM ":" TO "]"]]

`pos: DET NOUN VERB ... @2[0:0.8]` asks for a tag pattern, twice as strongly, at the noisiest 80% of the noise levels.
What VALUE means is the classifier's business. A NAME with a colon, or a VALUE with an `@`, stands in quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.errors import UsageError, is_unicode, shown

QUOTES = "\"'"
MOST_CHARACTERS = 10_000  # of one control
MOST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Statement:
    """A control as written, before its classifier has read the value."""

    text: str
    name: str
    value: str
    weight: float = 1.0
    negated: bool = False
    window: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Control:
    """One attribute asked for: a classifier with its target."""

    statement: Statement
    classifier: Classifier = field(compare=False)
    target: Any
    complement: bool = False  # the target is what to avoid: under `not`, of kinds without a target for the opposite
    judged: bool = True  # whether texts must obey; else they only lean to it

    @property
    def text(self) -> str:
        return self.statement.text


def fold(name: str) -> str:
    """Names match whatever their case, spaces or hyphens: `family friendly` is `familyFriendly`."""
    return re.sub(r"[\W_]+", "", name).casefold()


def make_control(statement: Statement, classifier: Classifier) -> Control:
    """What a statement asks of its classifier. Here alone is decided what `not` means."""
    target = parse_value(classifier, statement.value)
    if not statement.negated:
        return Control(statement, classifier, target)
    opposite = classifier.negate(target)
    if opposite is None:
        return Control(statement, classifier, target, complement=True)
    return Control(statement, classifier, opposite)


def parse_value(classifier: Classifier, value: str) -> Any:
    """The target of a value. Raises UsageError, which says of an `@` in the value what it could have been meant for."""
    try:
        return classifier.parse(value)
    except UsageError as error:
        if "@" not in value or value[0] in QUOTES:
            raise
        hint = "a weight after @ is a number, such as @2; a value that holds an @ stands in quotes"
        raise UsageError(f"{error} ({hint})") from None


def check(controls: Sequence[Control], texts: Sequence[Sequence[str]]) -> list[Verdict]:
    """The oracle's verdict on each text under its control; all controls are of one classifier."""
    verdicts = controls[0].classifier.check(texts, [control.target for control in controls])
    return [
        verdict.negated() if control.complement else verdict
        for control, verdict in zip(controls, verdicts, strict=True)
    ]


def parse_statement(text: str) -> Statement:
    """Split a control into name, value, weight and window, in time linear in its length.

    Raises UsageError in one line.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{shown(text)}: a control has at most {MOST_CHARACTERS:,} characters, this one {len(text):,}")
    if not is_unicode(text):
        raise UsageError(f"{shown(text)}: not Unicode text")
    rest = text.strip()
    negated = rest[:3].casefold() == "not" and rest[3:4].isspace()
    rest, weight, window = _split_weight(rest[3:].lstrip() if negated else rest, text)
    name, value = _split_name(rest)
    if value is None or not name:
        raise UsageError(f"{shown(text)} is not a control; write NAME: VALUE, for example `pos: DET NOUN VERB ...`")
    if not value:
        raise UsageError(f"{shown(text)}: nothing stands after the colon")
    return Statement(text.strip(), name, value, weight, negated, window)


def write_statement(name: str, value: str) -> str:
    """A control that `parse_statement` reads as this name and value, in quotes where they need them."""
    if ":" in name or name[:1] in QUOTES or name.casefold().startswith("not "):
        quote = "'" if '"' in name else '"'
        name = f"{quote}{name}{quote}"
    return f'{name}: "{value}"' if "@" in value or value[:1] in QUOTES else f"{name}: {value}"


def _split_weight(rest: str, text: str) -> tuple[str, float, tuple[float, float]]:
    """What stands before the last `@`, and the weight and window after it. An `@` in quotes belongs to the value."""
    whole_range = (0.0, 1.0)
    before, at, after = rest.rpartition("@")
    word, bracket, window = after.strip().partition("[")
    word = word.rstrip()
    is_suffix = before[-1:].isspace() or after[:1] in tuple("0123456789.[+-")
    is_number = len(word.split()) <= 1 and not set(word) & set(f":{QUOTES}")
    is_window = not bracket or (window.endswith("]") and not set(window[:-1]) & set(f"]{QUOTES}"))
    if not (at and is_suffix and is_number and is_window):
        return rest, 1.0, whole_range
    weight = 1.0 if bracket and not word else _number(word, "weight", text)
    if weight < 0:
        raise UsageError(f"{shown(text)}: the weight must not be negative; write `not` in front to avoid something")
    if weight > MOST_WEIGHT:
        raise UsageError(f"{shown(text)}: the weight must be at most {MOST_WEIGHT:g}")
    return before.rstrip(), weight, _window(window[:-1], text) if bracket else whole_range


def _split_name(rest: str) -> tuple[str, str | None]:
    """What stands before the first colon, or in quotes before one, and what stands after it; None without a colon."""
    end = rest.find(rest[0], 1) if rest[:1] in tuple(QUOTES) else -1
    if end > 0 and rest[end + 1 :].lstrip().startswith(":"):
        return rest[1:end].strip(), rest[end + 1 :].lstrip()[1:].strip()
    name, colon, value = rest.partition(":")
    return name.strip(), value.strip() if colon else None


def _number(word: str, what: str, text: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise UsageError(f"{shown(text)}: the {what} {shown(word)} is not a number") from None
    if not math.isfinite(number):
        raise UsageError(f"{shown(text)}: the {what} {shown(word)} is not a finite number")
    return number


def _window(body: str, text: str) -> tuple[float, float]:
    start, _, end = body.partition(":")
    if body.count(":") != 1:
        raise UsageError(f"{shown(text)}: write the window as [FROM:TO], two numbers between 0 and 1")
    window = (_number(start.strip() or "0", "window", text), _number(end.strip() or "1", "window", text))
    if not 0 <= window[0] < window[1] <= 1:
        raise UsageError(f"{shown(text)}: the window [{shown(body)}] must rise within 0 and 1")
    return window
