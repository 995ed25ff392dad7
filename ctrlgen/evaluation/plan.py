"""What to evaluate, in every detail: an `Evaluation` is made from it. Nothing here needs torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from ctrlgen.errors import UsageError
from ctrlgen.settings import Settings, read_settings

MAX_SEED = 2**32  # each stands for a million of the samples' own


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and where the figures go. The same plan gives the same figures, in Python and in the shell.

    Raises UsageError where its parts do not go together.
    """

    model: str = "e2e"
    device: str = "auto"
    suites: tuple[str, ...] = ()  # none stands for all that the model has
    data: tuple[str, ...] = ()  # held-out texts; several sources are joined by their texts
    training_data: str | None = None  # for what is copied from it, and for the 5-gram cost model
    targets: Path | None = None  # a file of targets instead of suites and data
    samples: Path | None = None  # texts to evaluate instead of the model's, in the order of targets
    systems: tuple[tuple[str, Path], ...] = ()  # texts of other systems to evaluate beside the model's, by name
    oracles: tuple[tuple[str, str], ...] = ()  # of a control, the oracle that judges it instead of its own
    limit: int = 50
    samples_per_target: int = 1
    seeds: tuple[int, ...] = (0,)
    settings: Settings = field(default_factory=Settings)
    sweep: tuple[tuple[str, tuple[str, ...]], ...] = ()
    frontier: tuple[float, ...] = ()  # temperatures at which unguided texts are written as well: cost against variety
    baselines: tuple[str, ...] = ()
    language_models: tuple[str, ...] = ()  # causal LMs by hub id or path, further cost models
    report: Path | None = None  # a directory for texts and figures; an evaluation that was interrupted continues there
    comparison: Path | None = None  # a Markdown page with published figures beside these
    update_card: bool = False  # write the figures into the model's card
    calibrate: bool = False  # fit the classifiers' `score` to the verdicts; not on test texts
    learn_confidence: bool = False  # keep scores and verdicts, from which `confidence` learns thresholds

    def __post_init__(self) -> None:
        if self.targets is not None and (self.suites or self.data):
            raise UsageError("--targets brings what is asked for; leave out --suite and --data")
        if self.targets is None and not self.data:
            raise UsageError("give --data, held-out texts from which targets are taken, or --targets")
        if self.samples is not None and (self.sweep or self.frontier or self.baselines or len(self.seeds) > 1):
            raise UsageError(
                "--samples are evaluated as they are; leave out --sweep, --frontier, --baseline and further --seeds"
            )
        if self.frontier and self.targets is not None:
            raise UsageError("--frontier is of unguided texts beside human ones: it needs --data, not --targets")
        if any(abs(seed) > MAX_SEED for seed in self.seeds):
            raise UsageError(f"--seeds: a seed must be at most {MAX_SEED} in size")
        if min(self.limit, self.samples_per_target) < 1:
            raise UsageError("--limit and --samples-per-target must be at least 1")
        self.variants(is_unguided=True)

    def variants(self, is_unguided: bool = False) -> dict[str, Settings]:
        """The settings to be tried, by what they are called; "" is the plan's own.

        is_unguided: with those of the frontier.
        """
        temperatures = {
            f"temperature={t:g}": read_settings(self.settings, {"temperature": str(t)}) for t in self.frontier
        }
        further = temperatures if is_unguided else {}
        if not self.sweep:
            return {"": self.settings} | further
        keys = [key for key, _ in self.sweep]
        return further | {
            ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True)): read_settings(
                self.settings, dict(zip(keys, values, strict=True))
            )
            for values in itertools.product(*(values for _, values in self.sweep))
        }
