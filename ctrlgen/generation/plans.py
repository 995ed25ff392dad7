"""Plans of longer texts: a list of sentences or turns, each with what is asked of it.

A plan is TOML, with `[[sentence]]` entries and perhaps `[defaults]`, or JSON Lines with a sentence a line. docs/
from-a-text.md has its keys. Nothing here needs torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrlgen.controls.language import fold, parse_statement
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean, shown
from ctrlgen.files import BYTE_ORDER_MARK, from_json, refuse_device

NEAREST = "nearest"  # a draft that is to be looked for in a corpus
KEYS: dict[str, type] = {"controls": list, "speaker": str, "draft": str}  # of a sentence, and of the defaults
PLAN_KEYS: dict[str, type] = {"sentence": list, "defaults": dict, "carry": list}
OF_ALL = {"defaults", "carry"}  # in JSON Lines, in lines of their own
MOST_SENTENCES = 1000
TYPES: dict[type, str] = {list: "a list of texts", str: "a text", dict: "a table"}


@dataclass(frozen=True)
class PlannedSentence:
    """What is asked of one sentence. where: its entry, as an error names it."""

    where: str
    controls: tuple[str, ...] = ()
    speaker: str | None = None
    draft: str | None = None  # a text that it leans to, or NEAREST


@dataclass(frozen=True)
class TextPlan:
    """The sentences of a text, in order. `carry`: controls that hold for all later sentences once one has them."""

    sentences: tuple[PlannedSentence, ...]
    carry: tuple[str, ...] = ()


def read_plan(path: str | Path) -> TextPlan:
    """A plan from a file: JSON Lines by its name, else TOML.

    Raises CtrlgenError where it cannot be read, UsageError naming the entry that cannot be understood.
    """
    path = Path(path)
    refuse_device(path)
    try:
        text = path.read_text(encoding="utf-8").removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CtrlgenError(f"{path}: cannot be read: not UTF-8 text") from error
    if path.suffix.lower() in (".jsonl", ".json"):
        return make_plan(read_lines(text, str(path)), str(path))
    try:
        return make_plan(tomllib.loads(text), str(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def read_lines(text: str, source: str) -> dict[str, Any]:
    """JSON Lines as TOML would say it: a sentence a line, `defaults` and `carry` in lines of their own."""
    plan: dict[str, Any] = {"sentence": []}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            entry = from_json(line)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise UsageError(f'{where}: must be a JSON object, such as {{"controls": ["length: 8"]}}')
        of_plan = set(entry) & OF_ALL
        if of_plan and of_plan == set(entry):
            plan |= entry
        else:
            plan["sentence"].append(entry)
    return plan


def make_plan(plan: Mapping[str, Any], source: str = "the plan") -> TextPlan:
    """A plan from its tables. Raises UsageError naming the entry that cannot be understood."""
    refuse_others(plan, PLAN_KEYS, source)
    entries, defaults = plan.get("sentence", []), plan.get("defaults", {})
    if not entries:
        raise UsageError(f"{source}: has no sentences; write [[sentence]] entries, each with its controls")
    if len(entries) > MOST_SENTENCES:
        raise UsageError(f"{source}: has {len(entries):,} sentences, {MOST_SENTENCES:,} at most")
    refuse_others(defaults, KEYS, f"{source}, defaults")
    carry = texts_of(plan.get("carry", []), f"{source}: carry")
    return TextPlan(
        tuple(sentence(entry, defaults, f"{source}, sentence {number}") for number, entry in enumerate(entries, 1)),
        tuple(carry),
    )


def sentence(entry: Any, defaults: Mapping[str, Any], where: str) -> PlannedSentence:
    """One entry, with what the defaults say of what it leaves open; its controls replace theirs of the same name."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: must be a table")
    refuse_others(entry, KEYS, where)
    usual = texts_of(defaults.get("controls", []), f"{where}: the defaults' controls")
    own = texts_of(entry.get("controls", []), f"{where}: controls")
    try:
        names = {fold(parse_statement(control).name) for control in own}
        controls = [control for control in usual if fold(parse_statement(control).name) not in names] + own
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    said = {key: entry.get(key, defaults.get(key)) for key in ("speaker", "draft")}
    for key, value in said.items():
        if value is not None and not value.strip():
            raise UsageError(f"{where}: {key} is empty")
    if said["draft"] == NEAREST and not controls:
        raise UsageError(f"{where}: draft = nearest needs controls, by which the corpus is searched")
    return PlannedSentence(where, tuple(controls), said["speaker"], said["draft"])


def refuse_others(entry: Mapping[str, Any], known: Mapping[str, type], where: str) -> None:
    """Raises UsageError for keys that mean nothing, and for values of another type."""
    for key, value in entry.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {shown(key)}; use {', '.join(known)}.{did_you_mean(key, known)}")
        if not isinstance(value, known[key]):
            raise UsageError(f"{where}: {key} must be {TYPES[known[key]]}, got {shown(str(value))}")


def texts_of(values: Sequence[Any], where: str) -> list[str]:
    """A list of texts. Raises UsageError where it holds something else."""
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"{where}: {shown(str(value))} is not a text")
    return list(values)
