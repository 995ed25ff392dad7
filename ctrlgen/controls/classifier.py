"""What a classifier must offer to be asked for in the control language: four texts and five methods, and what it may.

`docs/your-own-control.md` shows how to write one; `ctrlgen.testing.check_classifier` tests what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ctrlgen.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from datasets import Dataset
    from torch import Tensor

    from ctrlgen.automata.automaton import Automaton
    from ctrlgen.checkpoint import DiffusionLM
    from ctrlgen.controls.template import Blank
    from ctrlgen.diffusion.denoiser import Denoised


def all_of(successes: Sequence[bool | None]) -> bool | None:
    """Whether all are successes; None where no failure is among them, but one that no oracle could judge."""
    if False in successes:
        return False
    return None if None in successes else True


@dataclass(frozen=True)
class Verdict:
    """What an oracle says of a finished text. `success` is None where the oracle is not installed."""

    success: bool | None
    detail: str | None = None
    failed: tuple[int, ...] = ()  # positions of the words that failed, from 0
    correct: float | None = None  # share of the parts that succeeded
    parts: int = 1  # how many parts that share is of: words, brackets
    also: Mapping[str, bool] = field(default_factory=dict)  # further tests that the field reports, by name

    def negated(self) -> Verdict:
        """The verdict on `not` this control."""
        if self.success is None:
            return self
        return Verdict(not self.success, "it is there" if self.success else None)


def both(one: Verdict, other: Verdict) -> Verdict:
    """The verdict on two things asked for together; what is correct is the first one's."""
    details = [verdict.detail for verdict in (one, other) if verdict.detail]
    failed = tuple(sorted({*one.failed, *other.failed}))
    return Verdict(all_of((one.success, other.success)), "; ".join(details) or None, failed, one.correct, one.parts)


@dataclass(frozen=True)
class Asks:
    """What a target asks for, part by part, so that other systems can be asked for the same. Words count from 0."""

    tags: Mapping[int, str] = field(default_factory=dict)  # of words, by place
    words: Mapping[int, str] = field(default_factory=dict)  # by place
    spans: tuple[tuple[int, int, str], ...] = ()  # first word, word after the last, label
    phrases: tuple[tuple[str, ...], ...] = ()  # words in a row, somewhere in the text
    begins: tuple[str, ...] = ()  # the text's first words
    value: str | None = None  # one of `Classifier.choices`


class Classifier(ABC):
    """An attribute that can be asked for: it guides by `log_prob`, and `check`, its oracle, judges finished texts.

    Subclasses are found through the entry-point group `ctrlgen.classifiers`. They must have the four texts that
    `ctrlgen controls` prints, and `load`, `parse`, `encode`, `log_prob` and `check`; the rest may be left as it is.
    """

    kind: ClassVar[str]  # the name of the entry point; that of the class in lower case unless given
    summary: ClassVar[str]
    syntax: ClassVar[str]
    example: ClassVar[str]
    oracle: ClassVar[str]  # what checks it
    trained: ClassVar[bool] = True  # whether it needs weights trained on a model
    weight: ClassVar[float] = 1.0  # of its log-probability in guidance, beside the user's `@`
    composed_weight: ClassVar[float] = 1.0  # the same where other controls guide as well
    published_fluency: ClassVar[float] = 0.01  # the fluency weight of `--guidance published` (Li et al. 2022, appendix)
    score_temperature: float = 1.0  # of the log-odds of `score`; `ctrlgen eval --calibrate` fits it to the oracle
    structural: ClassVar[bool] = False  # whether the length alone decides it, so that nothing is left to guide
    # What evaluation knows of a kind:
    suite: ClassVar[str | None] = None  # the part of `ctrlgen eval --suite all` that asks for it; kinds may share one
    composed_with: ClassVar[tuple[str, ...]] = ()  # suites that `--suite compose` joins with this kind's
    enumerable: ClassVar[bool] = False  # whether its values are few: each is asked for, beside all texts that have it
    nothing: ClassVar[str | None] = None  # the value of texts that say nothing of it, where that can be asked for
    task: ClassVar[str | None] = None  # the task's name in the literature, where others have published figures

    def __init_subclass__(cls, base: bool = False, **options: Any) -> None:
        """With `base` the class is no kind itself, only what kinds inherit from."""
        super().__init_subclass__(**options)
        if not base and not hasattr(cls, "kind"):
            cls.kind = cls.__name__.lower()

    @classmethod
    @abstractmethod
    def load(cls, model: DiffusionLM, name: str) -> Classifier:
        """The classifier called `name` of this model. Raises CtrlgenError where it has not been trained."""

    @abstractmethod
    def parse(self, value: str) -> Any:
        """The target that `value` names. Raises UsageError with the offending part and what would be accepted."""

    @classmethod
    def train(
        cls,
        model: DiffusionLM,
        name: str,
        data: Dataset,
        text_column: str,
        label_column: str | None,
        config: Any,
        directory: Path,
    ) -> Iterator[Any]:
        """Train this kind on a model, leaving config.json and model.safetensors in `directory`; yields progress.

        `config`, a `TrainingConfig`, says how long and how fast; what is yielded is `Progress`.
        """
        raise UsageError(f"{cls.kind} is an exact rule and needs no training")

    @property
    def oracle_accuracy(self) -> float | None:
        """The share of texts held out that the oracle judges right, where that is known; None for an exact rule."""
        return None

    def sharing(self, name: str) -> Classifier | None:
        """The classifier of another `name` that was trained with this one, or None where it is to be loaded by itself.

        The two share weights, and each can encode and check the other's targets: they are of one `group`.
        """
        return None

    @property
    def group(self) -> int:
        """Identifies the classifiers whose targets may be guided in the same batch."""
        return id(self)

    def negate(self, target: Any) -> Any | None:
        """The target that `not` asks for, of kinds that have one; others are guided by log(1 - p)."""
        return None

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """For each text a value of this control that it has: what evaluation asks for, with the text as reference.

        `rows` are the data's rows, with their labels. None where a text has no value to ask for.
        """
        return [None] * len(texts)

    def choices(self) -> Sequence[str]:
        """All values of an `enumerable` kind; of other kinds none."""
        return ()

    def symbols(self) -> Mapping[str, Sequence[str]]:
        """What values are written with where they are too many to list, by kind: tags, labels of constituents."""
        return {}

    def asks(self, target: Any) -> Asks | None:
        """The target part by part, or None where it cannot be said so: then a baseline cannot be asked for it."""
        return None

    def value_at(self, target: Any, length: int) -> str | None:
        """The one value, as `values_of` writes it, of a text of `length` words with this target, if that is known.

        For systems that were trained on such values: `length: 10-15` in a text of 12 words is `12`.
        """
        return None

    @classmethod
    def published_value(cls, line: Mapping[str, Any], inside: Sequence[int]) -> str | None:
        """The value that a line of Diffusion-LM's published files of targets asks this kind for, or None.

        `inside` are the places of the line's lists that belong to the text, without its frame.
        """
        return None

    @classmethod
    def value_near(cls, words: Sequence[str | None]) -> str | None:
        """The value that asks for a text near to these words, where None may be any word; None of all other kinds.

        Editing and drafts use the kind that has one.
        """
        return None

    def parts_of(self, target: Any) -> Sequence[Any]:
        """Smaller targets, one at least, all of which a text with this one has: `--explain` names those that it lacks,
        and `--guidance published` takes the mean over them."""
        return [target]

    def contradiction(self, target: Any, other: Classifier, others_target: Any) -> str | None:
        """Why no text can have this target and `other`'s as well, or None. Asked of both sides."""
        return None

    def allows_length(self, target: Any, length: int) -> bool:
        """Whether a text of `length` words can have this target."""
        return True

    def length_prior(self, target: Any, lengths: Sequence[int]) -> Sequence[float] | None:
        """log-weights by which the length of a text with this target is drawn; None: as training texts have lengths."""
        return None

    def automaton(self, target: Any) -> Automaton | None:
        """The automaton of the texts that have this target, where that is a matter of their words alone.

        Such a target is guaranteed: the last words are chosen within its automaton, and corrections stay in it.
        """
        return None

    def allows_parts(self, target: Any, parts: Sequence[str | Blank]) -> bool:
        """Whether a text of these words, with any words in its blanks, can have this target."""
        return True

    def for_value(self, value: str) -> Classifier:
        """The classifier that reads a value: itself, or another where this one has not learned it."""
        return self

    def new_words(self, value: str) -> Mapping[str, str | None]:
        """The words of a value that the vocabulary lacks, where a text could be asked to have them. As written.

        Each with a word of the vocabulary that it stands for, whose vectors it takes, or None: its spelling makes it.
        """
        return {}

    def for_model(self, model: DiffusionLM) -> Classifier:
        """The same classifier for its model with more words (`DiffusionLM.with_words`), which a value has."""
        return self

    @abstractmethod
    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Any:
        """A batch of targets as a tensor, or a tuple or frozen dataclass of tensors, for texts of these lengths.

        The first dimension of each tensor is B. They may lie on the CPU: they are moved to the model's device. A
        dimension that runs over words has max(lengths) of them; `log_prob` must ignore those beyond a row's end.
        """

    @abstractmethod
    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        """log p(target | x_t) in nats, differentiable in x_t through `denoised`. -> (B,)"""

    def word_log_prob(self, denoised: Denoised, encoded: Any) -> Tensor | None:
        """log p(target | word) at each position where it has a closed form, for `exact` guidance. (B, n, V) or None

        Of a target that asks something of each position alone, that position's share. Under `not` the shares are
        multiplied; a classifier whose targets hold or fail as a whole must turn itself round, in `negate`.
        """
        return None

    def aside(self, denoised: Denoised, targets: Sequence[Sequence[Any]]) -> Tensor | None:
        """What the guide reads in texts beside these targets, encoded: an edit is to leave it. None where nothing is.

        targets: for each text those that are asked for, of any classifiers of this `group`.
        """
        return None

    def wordings(self, target: Any) -> Sequence[tuple[str, ...]]:
        """Phrases that make a text have this target, the usual first: what an edit may put in."""
        asks = self.asks(target)
        return asks.phrases if asks is not None else ()

    def reading(self, denoised: Denoised) -> list[str | None]:
        """The value of this control that the guide reads in each text, None where it reads none. (B)"""
        return [None] * len(denoised.x_t)

    def codes(self, texts: Sequence[Sequence[str]]) -> Tensor | None:
        """Vectors of length one whose products say how near texts are, by which `ctrlgen similar` searches. (N, k)"""
        return None

    def judged_by(self, oracle: str) -> Classifier:
        """The same classifier with another oracle, for `ctrlgen eval --oracle`: what the name means is its own matter.

        Raises UsageError where it has none of this name, CtrlgenError where that one cannot be loaded.
        """
        raise UsageError(f"--oracle: {self.kind} has one oracle only")

    @abstractmethod
    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        """The oracle: whether each finished text has its target.

        It never guides. It chooses only where a user asks for it, and among the versions of an edit where it is a rule
        (`trained` is false).
        """
