"""What is asked for and what is answered: requests, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ctrlgen.controls.classifier import Verdict, all_of
from ctrlgen.controls.language import Control
from ctrlgen.controls.template import Template
from ctrlgen.text.joining import Written, write

NewWord = tuple[str, str | None]  # as it is written, and a known word that it is like

GOOD_ORACLE = 0.9  # share of texts held out that it judges right


@dataclass(frozen=True)
class Request:
    """N samples under the same controls. Sample i has seed `seed + i`. With a template its blanks are filled."""

    controls: tuple[Control, ...] = ()
    n: int = 1
    seed: int = 0
    id: Any = None
    template: Template | None = None
    words: tuple[NewWord, ...] = ()  # that the vocabulary lacks and this request alone may have
    before: tuple[tuple[str, ...], ...] = ()  # the words of the sentences before the text, for models with a context


@dataclass(frozen=True)
class Explanation:
    """How one part of a control was lost. Steps are counted from 1; `steps` is None where none were watched.

    Under `not` a text has a part that does not have what the part names.
    """

    failed: str  # the oracle's words
    p: float  # the guide's probability that the finished text has the part
    steps: int | None = None
    last_held: int | None = None  # the last step whose likeliest words had the part, by the oracle
    pulled_by: str | None = None  # the control whose gradient has pointed most against the part's since
    negated: bool = False  # whether the control says `not`

    def __str__(self) -> str:
        said = f"{self.failed} (p={self.p:.2f})"
        if self.last_held is not None:
            said += f", {'there' if self.negated else 'lost'} after step {self.last_held} of {self.steps}"
        elif self.steps is not None:
            said += ", there from the first step" if self.negated else ", never there"
        return said + (f'; pulled away by "{self.pulled_by}"' if self.pulled_by is not None else "")


@dataclass(frozen=True)
class ControlResult:
    """One control's outcome: the oracle's verdict, and the guide's own probability of it in the finished text."""

    control: Control
    verdict: Verdict
    score: float
    explanation: tuple[Explanation, ...] | None = None  # of each part that failed, where it is asked for

    @property
    def doubtful(self) -> float | None:
        """The accuracy of an oracle that errs often; None where it is good, an exact rule, or unknown."""
        accuracy = self.control.classifier.oracle_accuracy
        return accuracy if accuracy is not None and accuracy < GOOD_ORACLE else None

    def as_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "control": self.control.text,
            "success": self.verdict.success,
            "score": self.score,
            "detail": self.verdict.detail,
        }
        if self.doubtful is not None:
            result["oracle_accuracy"] = self.doubtful
        if self.explanation is not None:
            result["explanation"] = [asdict(part) for part in self.explanation]
        return result


@dataclass(frozen=True)
class CostlyWord:
    """The worst word of a text: `position` is its place among the tokens, `cost` is in nats."""

    position: int
    word: str
    cost: float


@dataclass(frozen=True)
class Rejection:
    """Which setting leaves a sample out, and why in words."""

    by: Literal["max_cost", "no_slips", "distinct", "confidence"]
    why: str


@dataclass(frozen=True)
class Sample:
    """One finished text."""

    request: Request
    index: int
    text: str
    tokens: list[str]
    seed: int
    controls: tuple[ControlResult, ...]
    attempts: int = 1  # draws it took; with more than one the oracle has chosen it
    offsets: tuple[tuple[int, int], ...] = ()  # where each token stands in the text; empty is as `write` joins them
    cost: float | None = None  # nats a word; None where it was not measured
    cost_by: str | None = None  # by which model
    costliest_word: CostlyWord | None = None  # among those that the vocabulary has, see `slips.worst_word`
    slip: bool | None = None  # whether hardly anybody would write that word there; None where that was not learned
    rejected: Rejection | None = None

    @property
    def id(self) -> Any:
        """The id of its request."""
        return self.request.id

    @property
    def success(self) -> bool | None:
        """Whether every oracle agrees; None where one of them could not be asked."""
        return all_of([result.verdict.success for result in self.controls])

    @property
    def written(self) -> Written:
        """The text, and where each token stands in it."""
        return Written(self.text, self.offsets) if self.offsets else write(self.tokens)

    @property
    def failed(self) -> set[int]:
        """Positions of the words that failed a control."""
        return {position for result in self.controls for position in result.verdict.failed}

    @property
    def score(self) -> float | None:
        """The guides' joint probability, None without controls."""
        return math.prod(result.score for result in self.controls) if self.controls else None

    def as_json(self) -> dict[str, Any]:
        """The answer's documented JSON form."""
        return {
            "id": self.id,
            "index": self.index,
            "text": self.text,
            "tokens": self.tokens,
            "seed": self.seed,
            "success": self.success,
            "score": self.score,
            "attempts": self.attempts,
            "cost": self.cost,
            "cost_by": self.cost_by,
            "costliest_word": asdict(self.costliest_word) if self.costliest_word is not None else None,
            "slip": self.slip,
            "controls": [result.as_json() for result in self.controls],
        } | ({"rejected": asdict(self.rejected)} if self.rejected is not None else {})


@dataclass(frozen=True)
class Step:
    """What a caller may show while a batch is denoised."""

    done: int  # token-steps finished, over all batches
    total: int
    texts: Mapping[int, list[str]]  # the words so far of the samples of one request, by index

    @property
    def tokens(self) -> list[str]:
        """Those of the first."""
        return next(iter(self.texts.values()))


Watch = Callable[[Step], None]
