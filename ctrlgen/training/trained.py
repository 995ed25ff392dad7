"""Classifiers with a head that is trained on noised texts: all but what only the author of a control knows.

An author writes `examples`, `make_head`, `parse` and `check`, and where the oracle is a network as well, `make_oracle`
and `train_oracle`. Training, `--init`, the files and loading them are here. In a classifier's directory lie config.json
(its kind, what its networks are built from, the fingerprint of the model's weights, how it was trained and how well),
model.safetensors and, if there is one, oracle.safetensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ctrlgen.checkpoint import CONFIG, DiffusionLM, write_weights
from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.encoded import Encoded
from ctrlgen.controls.registry import find_trained, oracle_accuracy, weights_fingerprint
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.heads import FEWEST_TEXTS, Augment, Example, Head, Start, load_head, starting_point, train_head

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.training.fit import Progress, TrainingConfig

ORACLE = "oracle.safetensors"


@dataclass(frozen=True)
class TrainingData:
    """What `ctrlgen train-classifier` was given."""

    rows: Dataset
    text_column: str
    label_column: str | None
    name: str  # of the control
    seed: int


@dataclass(frozen=True)
class Lessons:
    """What there is to learn, and what config.json must say for the networks to be built again."""

    guide: Sequence[Example[Any]]  # for the head
    oracle: Sequence[Example[Any]] = ()  # for the oracle, where it is a network: texts that the head never sees
    networks: Mapping[str, Any] = field(default_factory=dict)  # entries of config.json that `make_head` reads
    facts: Mapping[str, Any] = field(default_factory=dict)  # other entries of it
    names: Sequence[str] = ()  # the controls that it answers, unless just the one it is trained as
    notes: Sequence[str] = ()  # told to the user at the end
    augment: Augment | None = None  # gives more examples for those that the head learns from
    new_words: Sequence[str] = ()  # of the oracle's texts, which the vocabulary lacks: their ids follow its own


class TrainedClassifier(Classifier, base=True):
    """A classifier whose `log_prob` is a trained head's."""

    learns_column: ClassVar[bool] = False  # whether any column of labels can be learned, which then names the control
    fewest_texts: ClassVar[int] = FEWEST_TEXTS  # different ones, that it is trained on
    trained_as: ClassVar[str | None] = None  # the kind in config.json, where kinds share a training; else its own

    def __init__(
        self, model: DiffusionLM, name: str, config: Mapping[str, Any], head: Head, judge: nn.Module | None = None
    ):
        """config: what config.json says. judge: the oracle's network."""
        self.model, self.name, self.config = model, name, config
        self.head, self.judge = head, judge

    # What an author writes

    @classmethod
    def refuse_labels(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> None:
        """Raises CtrlgenError where nothing can be learned from a column of labels, before anything is trained."""

    @classmethod
    @abstractmethod
    def examples(cls, model: DiffusionLM, data: TrainingData) -> Lessons:
        """The texts to learn from with their targets, as `Head.encode` takes them. Raises CtrlgenError for bad data."""

    @classmethod
    @abstractmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> Head:
        """The head, untrained. config: what config.json says, `Lessons.networks` among it."""

    @classmethod
    def make_oracle(cls, model: DiffusionLM, config: Mapping[str, Any]) -> nn.Module | None:
        """The oracle's network, untrained; None where `check` needs none.

        One that reads the model's weights has an attribute `reads_model` that is true: with other weights (`--init`)
        it is trained anew.
        """
        return None

    @classmethod
    def train_oracle(
        cls, model: DiffusionLM, oracle: Any, lessons: Lessons, config: Mapping[str, Any], seed: int
    ) -> Generator[Progress, None, dict[str, Any]]:
        """Train it, yielding progress; returns how good it is, which config.json will say under `oracle`."""
        raise NotImplementedError(f"{cls.kind}: make_oracle() needs train_oracle()")

    @classmethod
    def refuse_start(cls, start: Start, config: Mapping[str, Any], training: TrainingConfig) -> None:
        """Raises CtrlgenError where a training with this config.json cannot begin from that classifier (`--init`)."""

    @classmethod
    def report(cls, validation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Further figures of a validation, and what users should be told of it at the end."""
        return {}, []

    # What is the same for all

    @property
    def tokenizer(self) -> WordTokenizer:
        return self.model.tokenizer

    @property
    def oracle_accuracy(self) -> float | None:
        return oracle_accuracy(self.config, self.name)

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Encoded:
        return self.head.encode(targets, lengths)

    def log_prob(self, denoised: Denoised, encoded: Encoded) -> Tensor:
        return self.head.log_prob(denoised, encoded)

    @classmethod
    def untrained(cls, model: DiffusionLM, name: str, config: Mapping[str, Any]) -> Self:
        """The classifier that config.json describes, before its weights are read."""
        return cls(model, name, config, cls.make_head(model, config), cls.make_oracle(model, config))

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Self:
        directory, config = find_trained(model, name)
        try:
            classifier = cls.untrained(model, name, config)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            kind = cls.trained_as or cls.kind
            raise CtrlgenError(f"{directory / CONFIG}: not the settings of a {kind} classifier") from e
        load_head(classifier.head, directory).to(model.device)
        if classifier.judge is not None:
            load_head(classifier.judge, directory, ORACLE)
        return classifier

    @classmethod
    def train(
        cls,
        model: DiffusionLM,
        name: str,
        data: Dataset,
        text_column: str,
        label_column: str | None,
        config: TrainingConfig,
        directory: Path,
    ) -> Iterator[Progress]:
        torch.manual_seed(config.seed)
        kind = cls.trained_as or cls.kind
        lessons = cls.examples(model, TrainingData(data, text_column, label_column, name, config.seed))
        names = {"names": list(lessons.names)} if lessons.names else {}
        trained_on = weights_fingerprint(model)
        described: dict[str, Any] = {
            "kind": kind, **names, **lessons.facts, "trained_on": trained_on, **lessons.networks,
        }  # fmt: skip
        start = starting_point(config, kind)
        if start is not None:
            cls.refuse_start(start, described, config)
            described |= {key: start.said(key) for key in lessons.networks}
        try:
            head, oracle = cls.make_head(model, described), cls.make_oracle(model, described)
        except ValueError as error:  # what the earlier classifier reads, this model has not
            if start is None:
                raise
            raise CtrlgenError(f"{start.directory}: {error}; train without --init") from error
        same_model = start is not None and start.config.get("trained_on") == trained_on
        if oracle is not None and start is not None and (same_model or not getattr(oracle, "reads_model", False)):
            load_head(oracle, start.directory, ORACLE)
        elif oracle is not None:
            measured = yield from cls.train_oracle(model, oracle, lessons, described, config.seed)
            described["oracle"] = {**described.get("oracle", {}), **measured}
        for progress in train_head(model, head, lessons.guide, config, directory, described, lessons.augment):
            yield cls.reported(progress, described, lessons)
        if oracle is not None:
            write_weights(directory / ORACLE, oracle.state_dict())

    @classmethod
    def reported(cls, progress: Progress, config: Mapping[str, Any], lessons: Lessons) -> Progress:
        """A validation with what `report` adds; the last one says in words what users should know."""
        if progress.validation is None:
            return progress
        figures, told = cls.report(progress.validation, config)
        notes = [*lessons.notes, *told] if progress.step == progress.steps else []
        return replace(progress, validation=progress.validation | figures | {"notes": notes})
