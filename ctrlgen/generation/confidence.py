"""Confidence: only texts are returned whose score makes it sure enough that they obey.

Scores and verdicts of held-out targets are kept beside the model's classifiers (`ctrlgen eval --learn-confidence`).
From them Learn then Test (Angelopoulos et al. 2021) learns a threshold for any share: with probability 1 - DELTA over
the held-out targets, at least that share of the texts that score above it obey, of targets of the same kind under the
same settings. A threshold is tested by the exact binomial tail, as by Clopper and Pearson's bound; thresholds are
tested from strict to loose until one fails (fixed sequences), from each of STARTS on with its part of DELTA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctrlgen.checkpoint import CONFIG, DiffusionLM, directories_of, read_config
from ctrlgen.controls.language import Control
from ctrlgen.controls.registry import (
    SCORE_TEMPERATURE,
    fingerprint,
    trained_classifiers,
    weights_fingerprint,
)
from ctrlgen.errors import CtrlgenError, UsageError, listed
from ctrlgen.files import from_json, make_directory, write_text
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.request import Rejection, Request, Sample
from ctrlgen.settings import SETTINGS, Settings

FILE = "confidence.json"  # beside the classifiers
FEWEST = 500  # held-out targets
DELTA = 0.1  # the probability that a learned threshold does not keep its promise
STARTS = (25, 60)  # percents of the targets that the first threshold of each sequence returns
STEP = 5  # percents that each next threshold returns more
SCORE_DIGITS = 7


@dataclass(frozen=True)
class Threshold:
    """Texts that score above `score` are returned; of the held-out targets that was `returned`, a share."""

    score: float
    returned: float


@dataclass(frozen=True)
class Scored:
    """One text for each of N held-out targets: the score, and whether the oracles say that it obeys."""

    scores: tuple[float, ...]
    obeyed: tuple[bool, ...]

    def threshold(self, share: float) -> Threshold | None:
        """The loosest threshold above which at least this share obeys, with probability 1 - DELTA; None without any."""
        qualified: dict[int, Threshold] = {}
        for start in STARTS:
            for percent in range(start, 101, STEP):
                threshold = self.returning(percent)
                failures, tries = self.above(threshold)
                if binomial_tail(failures, tries, 1 - share) > DELTA / len(STARTS):
                    break
                qualified[percent] = Threshold(threshold, tries / len(self.scores))
        return qualified[max(qualified)] if qualified else None

    def returning(self, percent: int) -> float:
        """The score that at least this percent of the texts are above: the best of the others."""
        worst = sorted(self.scores, reverse=True)[max(1, len(self.scores) * percent // 100) - 1]
        return max((score for score in self.scores if score < worst), default=-math.inf)

    def above(self, threshold: float) -> tuple[int, int]:
        """How many texts above a threshold do not obey, and how many there are."""
        found = [obeys for score, obeys in zip(self.scores, self.obeyed, strict=True) if score > threshold]
        return found.count(False), len(found)


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(at most k of n), each with probability p. Not above delta just where Clopper and Pearson's upper bound of the
    probability, with confidence 1 - delta, is at most p.
    """
    if not 0 < p < 1:
        return float(p <= 0 or k >= n)
    log_choose = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    return min(1.0, sum(math.exp(c + i * math.log(p) + (n - i) * math.log1p(-p)) for i, c in enumerate(log_choose)))


def is_exact(control: Control) -> bool:
    """Whether an automaton or the length decides a control, so that its verdict is a rule's and no score is needed."""
    return control.classifier.structural or control.classifier.automaton(control.target) is not None


def kind_of(controls: Sequence[Control]) -> str:
    """The kind of a request: what its controls are called in evaluation, `field + pos`, with all but their values."""
    return " + ".join(sorted(map(part_of, controls)))


def part_of(control: Control) -> str:
    said = control.statement
    name = ("not " if said.negated else "") + (control.classifier.suite or control.classifier.kind)
    is_usual = said.weight == 1.0 and said.window == (0.0, 1.0)
    return name if is_usual else f"{name}@{said.weight:g}[{said.window[0]:g}:{said.window[1]:g}]"


def score(controls: Sequence[Control], scores: Sequence[float]) -> float:
    """The guides' joint probability of a text's controls, but for those that are decided exactly."""
    inexact = (p for control, p in zip(controls, scores, strict=True) if not is_exact(control))
    return round(math.prod(inexact), SCORE_DIGITS)


def with_thresholds(samples: Mapping[Job, Sample], thresholds: Sequence[Threshold]) -> dict[Job, Sample]:
    """The samples, of which those are rejected that their request's threshold holds back. Without any, as they are."""
    if not thresholds:
        return dict(samples)
    why = Rejection("confidence", "the model is not sure enough that it obeys")
    return {
        job: sample if is_returned(sample, thresholds[job.place]) else replace(sample, rejected=why)
        for job, sample in samples.items()
    }


def is_returned(sample: Sample, threshold: Threshold) -> bool:
    """Whether a text scores above the threshold of its kind, and obeys what is decided exactly."""
    if any(is_exact(result.control) and not result.verdict.success for result in sample.controls):
        return False
    controls = [result.control for result in sample.controls]
    return score(controls, [result.score for result in sample.controls]) > threshold.score


class Confidence:
    """What was learned of one model."""

    def __init__(self, model: DiffusionLM):
        self.model = model
        self.entries = [entry for root in directories_of(model, "classifiers") for entry in read(root / FILE)]

    def threshold(self, request: Request, settings: Settings) -> Threshold:
        """The threshold of a request's kind. Raises UsageError without one that was learned, CtrlgenError where none
        qualifies.
        """
        share = settings.confidence
        assert share is not None
        if request.template is not None:
            raise UsageError("--confidence is not for templates: leave it out")
        if all(map(is_exact, request.controls)):
            return Threshold(-math.inf, 1.0)
        scored = self.scored(kind_of(request.controls), settings)
        found = scored.threshold(share)
        if found is None:
            failures, tries = scored.above(scored.returning(STARTS[0]))
            raise CtrlgenError(
                f"no threshold qualifies for {kind_of(request.controls)!r} and --confidence {share:g}: of "
                f"{len(scored.scores)} held-out targets the {tries} with the highest scores obey to "
                f"{1 - failures / max(1, tries):.1%}; ask for less, or learn from more targets"
            )
        return found

    def scored(self, kind: str, settings: Settings) -> Scored:
        """What was learned of a kind under these settings."""
        of_kind = [entry for entry in self.entries if entry["kind"] == kind]
        if not of_kind:
            known = listed(sorted({repr(entry["kind"]) for entry in self.entries})) or "nothing"
            raise UsageError(
                f"--confidence: nothing was learned of {kind!r}, only of {known}; learn it with `ctrlgen eval --suite "
                f"{kind.replace(' ', '')} --limit {FEWEST} --learn-confidence`"
            )
        of_model = [entry for entry in of_kind if self.is_of_model(entry["made_with"])]
        if not of_model:
            raise UsageError(f"--confidence: what was learned of {kind!r} is of other weights; learn it again")
        asked, usual = as_json(settings, self.model), as_json(Settings(), self.model)
        for entry in of_model:
            if usual | entry["settings"] == asked:  # a setting that came later had its default
                return Scored(tuple(entry["scores"]), tuple(map(bool, entry["obeyed"])))
        learned = usual | of_model[0]["settings"]
        different = ", ".join(name for name in asked if learned[name] != asked[name])
        raise UsageError(f"--confidence: {kind!r} was learned with other settings ({different}); learn it with these")

    def is_of_model(self, learned: dict[str, Any]) -> bool:
        """Whether scores are of this model's weights and its classifiers; there may be further ones by now."""
        made = made_with(self.model)
        return made["weights"] == learned["weights"] and all(
            made["classifiers"].get(name) == of for name, of in learned["classifiers"].items()
        )

    def keep(self, learned: dict[str, Scored], settings: Settings) -> Path:
        """Add what was learned of each kind, in place of what was known of it, and write it. -> the file"""
        roots = directories_of(self.model, "classifiers")
        if not roots:
            raise CtrlgenError("the model must be saved before anything can be learned of it")
        made = {"settings": as_json(settings, self.model), "made_with": made_with(self.model)}
        added = [
            {"kind": kind, **made, "scores": list(of.scores), "obeyed": list(map(int, of.obeyed))}
            for kind, of in learned.items()
        ]
        kept = [
            entry
            for entry in read(roots[0] / FILE)
            if entry["kind"] not in learned or entry["settings"] != made["settings"]
        ]
        make_directory(roots[0])
        lines = ",\n".join(json.dumps(entry) for entry in sorted([*kept, *added], key=lambda entry: entry["kind"]))
        write_text(roots[0] / FILE, f"[\n{lines}\n]\n")
        return roots[0] / FILE


def as_json(settings: Settings, model: DiffusionLM) -> dict[str, Any]:
    """The settings on which a model's texts depend, as JSON has them."""
    settings = replace(settings, temperature=model.temperature(settings))
    of = {one.name: settings.guidance if one.of_guidance else settings for one in SETTINGS.values() if one.measured}
    values = {name: getattr(owner, SETTINGS[name].field) for name, owner in of.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def made_with(model: DiffusionLM) -> dict[str, Any]:
    """Identifies the weights and the classifiers that scores are of, with the temperatures of the scores."""
    directories = sorted(set(trained_classifiers(model).values()))
    classifiers = {
        at.name: [fingerprint(at), read_config(at / CONFIG).get(SCORE_TEMPERATURE, 1.0)] for at in directories
    }
    return {"weights": weights_fingerprint(model), "classifiers": classifiers}


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, none where there is no file. Raises CtrlgenError where it is damaged."""
    try:
        entries = from_json(path.read_text(encoding="utf-8"))
        if all(is_entry(entry) for entry in entries):
            return list(entries)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise CtrlgenError(f"{path}: is damaged; delete it, or learn it again with `ctrlgen eval --learn-confidence`")


def is_entry(entry: Any) -> bool:
    scores, obeyed = entry["scores"], entry["obeyed"]
    return (
        isinstance(entry["kind"], str)
        and isinstance(entry["settings"], dict)
        and isinstance(entry["made_with"]["classifiers"], dict)
        and isinstance(entry["made_with"]["weights"], str)
        and len(scores) == len(obeyed) > 0
        and all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        and set(obeyed) <= {0, 1}
    )
