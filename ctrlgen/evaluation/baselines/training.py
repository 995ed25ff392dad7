"""What the baselines that are trained learn from, and where they are kept: once trained, they are used again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch

from ctrlgen.checkpoint import CONFIG, directories_of, read_config
from ctrlgen.controls.classifier import Asks
from ctrlgen.controls.language import Control
from ctrlgen.controls.registry import trained_classifiers
from ctrlgen.data.texts import load_data
from ctrlgen.directories import replacing
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.evaluation.targets import Words, kinds
from ctrlgen.generation.generator import Generator
from ctrlgen.training.fit import RESUME, Progress, Task, TrainingConfig, fit

MOST_TEXTS = 20_000
FEWEST_TEXTS = 20
SEED = 0
LEARNED_FROM = ("kind", "names", "values", "chains", "oracle")  # of a classifier's config.json; the guide is none of it
FORMAT = 3  # of what is kept

Follow = Callable[[Iterable[Progress]], None]  # consumes the events of a training run, and may show them
Values = dict[str, list[str | None]]  # by the name of a control, its value in each text


class Corpus:
    """Training texts with their rows of data, and the model whose controls they have."""

    def __init__(self, generator: Generator, texts: list[Words], rows: list[Mapping[str, Any]]):
        self.generator, self.texts, self.rows = generator, texts, rows

    @cached_property
    def values(self) -> Values:
        """What each control is in each text. Controls that cannot tell are left out and reported."""
        values = {}
        for name in self.generator.controls.names():
            try:
                of_texts = self.generator.controls.classifier(name).values_of(self.texts, self.rows, Random(SEED))
            except CtrlgenError as error:
                logging.getLogger(__name__).warning("the baselines do not learn %s: %s", name, error)
                continue
            if any(of_texts):
                values[name] = of_texts
        return values

    @cached_property
    def asks(self) -> dict[str, list[Asks | None]]:
        """What each control asks of each text, part by part."""
        return {name: [self.parts(name, value) for value in of_texts] for name, of_texts in self.values.items()}

    def parts(self, name: str, value: str | None) -> Asks | None:
        classifier = self.generator.controls.classifier(name)
        return classifier.asks(classifier.parse(value)) if value else None


def read_corpus(generator: Generator, source: str) -> Corpus:
    """Up to MOST_TEXTS different texts that fit the model. Raises CtrlgenError where there are too few."""
    data, column = load_data(source)
    tokenizer, longest = generator.model.tokenizer, generator.model.longest
    rows: dict[Words, Mapping[str, Any]] = {}
    for row in data:
        if isinstance(row[column], str) and 0 < len(words := tuple(tokenizer.split(row[column]))) <= longest:
            rows.setdefault(words, row)
    if len(rows) < FEWEST_TEXTS:
        raise CtrlgenError(
            f"{source}: only {len(rows)} texts fit the model: a baseline learns from {FEWEST_TEXTS} or more"
        )
    texts = Random(SEED).sample(list(rows), min(MOST_TEXTS, len(rows)))
    return Corpus(generator, texts, [rows[words] for words in texts])


def baseline_directory(lm: LanguageModel, name: str, corpus: Corpus, config: Any) -> Path:
    """Where a baseline is kept: named by all that it is made of."""
    generator = corpus.generator
    digest = hashlib.sha256(json.dumps([FORMAT, name, config], sort_keys=True).encode())
    for key, tensor in sorted(lm.lm.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    for path in sorted(set(trained_classifiers(generator.model).values())):
        described = read_config(path / CONFIG)
        digest.update(json.dumps([described.get(key) for key in LEARNED_FROM], sort_keys=True).encode())
    digest.update(json.dumps([sorted(generator.controls.names()), corpus.texts]).encode())
    return directories_of(generator.model, "baselines")[0] / f"{name}-{digest.hexdigest()[:12]}"


def unwatched(events: Iterable[Progress]) -> None:
    deque(events, maxlen=0)


def train_once(
    task: Any, name: str, config: TrainingConfig, directory: Path, follow: Follow, device: torch.device
) -> None:
    """Train what `task()` makes, unless that has been done. A run that was killed continues."""
    if directory.exists():
        return
    logging.getLogger(__name__).warning("training the baseline %s, once, to be kept in %s", name, directory)
    resume = (directory.with_name(f".{directory.name}.partial") / RESUME).exists()
    with replacing(directory, resume=resume, keep=RESUME) as working:
        made: Task = task()
        follow(fit(made, config, working, resume=resume, device=device))


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Raises CtrlgenError in one line where what is kept of a baseline is damaged."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CtrlgenError(f"{directory}: is damaged; remove it to train the baseline again") from error


@dataclass(frozen=True)
class Known:
    """The controls that were learned. The values of labels are listed; others are read by whoever learned them."""

    kinds: dict[str, str]  # by name
    labels: dict[str, list[str]]

    @classmethod
    def of(cls, corpus: Corpus) -> Known:
        kind_of, values = kinds(corpus.generator), corpus.values
        labels = {name: sorted(set(filter(None, of))) for name, of in values.items() if kind_of[name].enumerable}
        return cls({name: kind_of[name].kind for name in values}, labels)

    def value(self, control: Control, name: str) -> str | None:
        """A label's value as it was learned, or None."""
        parse = control.classifier.parse
        return next((value for value in self.labels[name] if parse(value) == control.target), None)


def name_of(generator: Generator, control: Control) -> str:
    """A control's name as the model calls it."""
    names = generator.controls.names()
    return next(name for name in names if generator.controls.classifier(name) is control.classifier)
