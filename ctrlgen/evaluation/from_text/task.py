"""What a suite that starts from texts has to say: what is asked, who writes, and what a text keeps of its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Protocol

from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.systems import System
from ctrlgen.evaluation.targets import Asked, Example, Target
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings

Figures = dict[str, float]  # of one text, by name; shares of one


class Task(Protocol):
    """One such suite."""

    def targets(self, generator: Generator, examples: Sequence[Example], rng: Random) -> Iterable[Target]:
        """What may be asked of each text, in order. Raises UsageError where the model has no control for it."""
        ...

    def system(self, generator: Generator, settings: Settings, asked: Asked) -> System:
        """ctrlgen itself, as it answers this suite."""
        ...

    def others(self, generator: Generator, asked: Asked, examples: Sequence[Example]) -> list[System]:
        """Simple methods that answer it as well."""
        ...

    def measured(self, generator: Generator, asked: Asked, texts: Sequence[Record]) -> list[Figures]:
        """What the suite reports of each text beside its verdicts."""
        ...


def with_figures(task: Task, generator: Generator, asked: Asked, work: Callable[[], list[Record]]) -> list[Record]:
    """The records that this work makes, with the task's figures of each."""
    records = work()
    found = task.measured(generator, asked, records)
    return [replace(record, figures=figures) for record, figures in zip(records, found, strict=True)]


def make_task_targets(
    task: Task, generator: Generator, examples: Sequence[Example], limit: int, seed: int
) -> list[Target]:
    """Up to `limit` targets. The same seed takes the same texts as for other suites, where they can be asked."""
    rng = Random(seed)
    return list(islice(task.targets(generator, rng.sample(examples, len(examples)), rng), limit))
