"""The trained control of docs/your-own-control.md: its code is run as it stands there."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest

from ctrlgen import Generator, TrainedClassifier, UsageError, from_pretrained
from ctrlgen.controls import registry
from ctrlgen.data.texts import load_data
from ctrlgen.testing import check_classifier
from ctrlgen.training.fit import TrainingConfig

PAGE = Path(__file__).parents[2] / "docs" / "your-own-control.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
BRIEF = TrainingConfig(steps=300, tokens_per_batch=512, matrix_lr=0.0, lr=0.01, ema=0.9, validate_every=60)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TrainedClassifier]]:
    """The page's control, as if its package were installed."""
    module = ModuleType("page")
    exec(compile(CODE[0], str(PAGE), "exec"), module.__dict__)  # the page is ours
    monkeypatch.setitem(sys.modules, "page", module)
    entries = [EntryPoint("reading", "page:Reading", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    registry.installed.cache_clear()
    yield module.Reading
    registry.installed.cache_clear()


def test_it_is_as_short_as_promised() -> None:
    (code,) = CODE
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 60


@pytest.mark.slow
def test_it_is_trained_found_and_guides(reading: type[TrainedClassifier], model_copy: Path, toy_data: Path) -> None:
    model = from_pretrained(str(model_copy))
    rows, column = load_data(str(toy_data))
    directory = model_copy / "classifiers" / "reading"
    *_, last = reading.train(model, "reading", rows, column, None, BRIEF, directory)
    assert last.validation is not None
    assert last.validation["accuracy"] > 0.5
    check_classifier(reading, model, ["easy", "plain", "hard"])
    generator = Generator(str(model_copy))
    with pytest.raises(UsageError, match="'simple' is no level; write easy, plain, hard"):
        generator.request(["reading: simple"])
    letters = {}
    for level in ("easy", "hard"):
        samples = generator.generate([generator.request([f"reading: {level}"], n=8)])
        letters[level] = mean(len(word) for sample in samples for word in sample.tokens if word.isalpha())
    assert letters["easy"] + 0.5 < letters["hard"], letters
    again = dataclasses.replace(BRIEF, init=str(directory), steps=30)
    *_, last = reading.train(model, "reading", rows, column, None, again, model_copy / "classifiers" / "again")
    assert last.validation is not None
