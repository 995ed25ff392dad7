"""The control language, and what a classifier must offer to be used in it.

    ["not"] NAME ":" VALUE ["@" [WEIGHT] ["[" FROM ":" TO "]"]]

`pos: DET NOUN VERB ... @2[0:0.8]` asks for a tag pattern, twice as strongly, at the noisiest 80% of the noise levels.
What VALUE means is the classifier's business. A NAME with a colon, or a VALUE with an `@`, stands in quotes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ctrlgen.errors import UsageError, shown

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from datasets import Dataset
    from torch import Tensor

    from ctrlgen.automata.automaton import Automaton
    from ctrlgen.checkpoint import DiffusionLM
    from ctrlgen.controls.template import Blank
    from ctrlgen.diffusion.denoiser import Denoised
    from ctrlgen.training.fit import Progress, TrainingConfig

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
class Verdict:
    """What an oracle says of a finished text. `success` is None where the oracle is not installed."""

    success: bool | None
    detail: str | None = None
    failed: tuple[int, ...] = ()  # positions of the words that failed, from 0
    correct: float | None = None  # share of the parts that succeeded
    parts: int = 1  # how many parts that share is of: words, brackets
    also: Mapping[str, bool] = field(default_factory=dict)  # further tests that the field reports, by name

    def turned_round(self) -> Verdict:
        """The verdict on `not` this control."""
        if self.success is None:
            return self
        return Verdict(not self.success, "it is there" if self.success else None)


@dataclass(frozen=True)
class Control:
    """One attribute asked for: a classifier with its target."""

    statement: Statement
    classifier: Classifier = field(compare=False)
    target: Any
    complement: bool = False  # the target is what to avoid: under `not`, of kinds without a target for the opposite

    @property
    def text(self) -> str:
        return self.statement.text


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


class Classifier(ABC):
    """An attribute that can be asked for: it guides by `log_prob` and is honest by `check`.

    Subclasses are found through the entry-point group `ctrlgen.classifiers`; the class attributes are what
    `ctrlgen controls` prints.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]
    syntax: ClassVar[str]
    example: ClassVar[str]
    oracle: ClassVar[str]  # what checks it
    trained: ClassVar[bool] = True  # whether it needs weights trained on a model
    weight: ClassVar[float] = 1.0  # of its log-probability in guidance, beside the user's `@`
    weight_in_company: ClassVar[float] = 1.0  # the same where other controls guide, too
    score_temperature: float = 1.0  # of the log-odds of `score`; `ctrlgen eval --calibrate` fits it to the oracle
    structural: ClassVar[bool] = False  # whether the length alone decides it, so that nothing is left to guide

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
        config: TrainingConfig,
        directory: Path,
    ) -> Iterator[Progress]:
        """Train this kind on a model, leaving config.json and model.safetensors in `directory`; yields progress."""
        raise UsageError(f"{cls.kind} is an exact rule and needs no training")

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

    def parts_of(self, target: Any) -> Sequence[Any]:
        """Smaller targets, all of which a text with this one has: `--explain` names those that it lacks."""
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

    def new_words(self, value: str) -> Sequence[str]:
        """The words of a value that the vocabulary lacks, where a text could be asked to have them. As written."""
        return ()

    def for_model(self, model: DiffusionLM) -> Classifier:
        """The same classifier for its model with more words (`DiffusionLM.with_words`), which a value has."""
        return self

    @abstractmethod
    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        """One tensor for a batch of targets, first dimension B, for texts of these lengths.

        A dimension that runs over words has max(lengths) of them; `log_prob` must ignore those beyond a row's end.
        """

    @abstractmethod
    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """log p(target | x_t) in nats, differentiable in x_t through `denoised`. -> (B,)"""

    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor | None:
        """log p(target | word) at each position where it has a closed form, for `exact` guidance. (B, n, V) or None

        Of a target that asks something of each position alone, that position's share. Under `not` the shares are
        multiplied; a classifier whose targets hold or fail as a whole must turn itself round, in `negate`.
        """
        return None

    @abstractmethod
    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        """The oracle: whether each finished text has its target. Never used to guide or to choose."""


def check(controls: Sequence[Control], texts: Sequence[Sequence[str]]) -> list[Verdict]:
    """The oracle's verdict on each text under its control; all controls are of one classifier."""
    verdicts = controls[0].classifier.check(texts, [control.target for control in controls])
    return [
        verdict.turned_round() if control.complement else verdict
        for control, verdict in zip(controls, verdicts, strict=True)
    ]


def parse_statement(text: str) -> Statement:
    """Split a control into name, value, weight and window, in time linear in its length.

    Raises UsageError in one line.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{shown(text)}: a control has at most {MOST_CHARACTERS:,} characters, this one {len(text):,}")
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
