"""Oracles that begin to load before torch does."""

from importlib.metadata import EntryPoint

import pytest

from ctrlgen.controls import oracles
from ctrlgen.errors import UsageError

started: list[str] = []


def start_slow() -> None:
    started.append("slow")


def fail() -> None:
    raise RuntimeError("a stranger's mistake")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("bad", f"{__name__}:fail", oracles.GROUP), EntryPoint("slow", f"{__name__}:start_slow", "")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    started.clear()


@pytest.mark.parametrize(("controls", "expected"), [
    (["Slow: x", "bad: y"], ["slow"]),
    (["not slow: x @2"], ["slow"]),
    (["quick: x"], []),
    ([], []),
])  # fmt: skip
def test_what_is_asked_for_begins_to_load(controls: list[str], expected: list[str]) -> None:
    oracles.start_oracles(controls)
    assert started == expected


def test_nothing_begins_before_every_control_is_understood() -> None:
    with pytest.raises(UsageError, match="is not a control"):
        oracles.start_oracles(["slow: x", "nonsense"])
    assert started == []
