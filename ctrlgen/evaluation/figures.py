"""Rows of figures from records: success, cost beside human text, diversity, novelty, calibration, speed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ctrlgen.diffusion.losses import SCORED_LEVELS
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation import metrics
from ctrlgen.evaluation.cost_models import CostModel
from ctrlgen.evaluation.metrics import Estimate, estimate, mean, share
from ctrlgen.evaluation.novelty import Training
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.slips import Slips
from ctrlgen.evaluation.systems import HUMAN, OURS
from ctrlgen.evaluation.targets import FROM_TEXT, INFILL, UNGUIDED, Asked, Words
from ctrlgen.generation.reading import STRIDE
from ctrlgen.settings import Settings


@dataclass(frozen=True)
class Row:
    """The figures of one suite by one system under one setting."""

    suite: str
    system: str
    setting: str
    targets: int
    samples: int
    success: Estimate | None  # share of texts whose controls all hold
    parts: Estimate | None  # share of words (pos) or labelled F1 (tree), where the oracle counts parts
    by_control: dict[str, Estimate]  # in compositions
    also: dict[str, Estimate]  # further published tests
    unchecked: int  # texts that no oracle could be asked about
    cost: dict[str, Estimate]  # nats a token under each cost model
    exp_mean: dict[str, float]  # mean of exp(cost): the perplexity that Diffusion-LM prints
    gap: dict[str, Estimate]  # cost above human text of the same targets
    distinct: dict[str, float | None]
    entropy: float | None  # of the words of all texts, nats
    self_bleu: float | None
    slips: Estimate | None  # share of texts with a word that hardly anybody would write there
    repeats: Estimate | None  # share of texts in which a pair of words stands twice
    copies: float | None
    longest_shared: float | None
    bleu: float | None  # against references, infilling only
    rouge_l: float | None
    calibration: metrics.Calibration | None
    seconds_per_sample: float | None
    tokens_per_second: float | None
    evaluations: int | None  # of the denoiser, a sample


@dataclass(frozen=True)
class Found:
    """What was found of single texts."""

    costs: Mapping[str, Mapping[Words, float]]  # nats a token, by cost model
    slips: Mapping[Words, bool]
    shared: Mapping[Words, int]  # consecutive words with a training text
    copied: Set[Words] | None


def summarise(
    records: Sequence[Record],
    asked: Mapping[str, Asked],
    cost_models: Sequence[CostModel],
    training: Training | None,
    slips: Slips | None,
    calls: Mapping[str, int],
) -> list[Row]:
    """A row for every suite, system and setting."""
    texts = list(dict.fromkeys(tuple(record.tokens) for record in records if record.tokens))
    found = Found(
        {of.name: dict(zip(texts, of.costs(texts), strict=True)) for of in cost_models},
        dict(zip(texts, slips.found(texts), strict=True)) if slips else {},
        dict(zip(texts, training.longest_shared(texts), strict=True)) if training else {},
        {words for words in texts if training.copied(words)} if training else None,
    )
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return [
        summary(group, groups.get((group[0].suite, HUMAN, ""), []), asked[group[0].suite], found, calls)
        for group in groups.values()
    ]


def summary(
    records: Sequence[Record],
    human: Sequence[Record],
    asked: Asked,
    found: Found,
    calls: Mapping[str, int],
) -> Row:
    suite, system, setting = records[0].group
    texts = [record.tokens for record in records]
    checked = [record for record in records if record.checked]
    seconds, is_ours = sum(record.seconds for record in records), system == OURS
    written = [record for record in records if record.tokens]
    cost = {name: [of[tuple(record.tokens)] for record in written] for name, of in found.costs.items()}
    keys = [tuple(record.tokens) for record in written]
    return Row(
        suite, system, setting, len(asked.targets), len(records),
        success=share_by_target(checked, [float(bool(record.success)) for record in checked]),
        parts=parts_right(checked),
        by_control=success_by_control(records, asked),
        also=further_tests(records, asked),
        unchecked=0 if suite == UNGUIDED else len(records) - len(checked),
        cost={name: e for name, of in cost.items() if (e := estimate_by_target(written, of))},
        exp_mean={name: mean(math.exp(value) for value in of) for name, of in cost.items() if of},
        gap={name: e for name, of in found.costs.items() if system != HUMAN and (e := gap(records, human, of))},
        distinct={str(n): metrics.distinct(texts, n) for n in (1, 2, 4)},
        entropy=metrics.entropy(texts),
        self_bleu=optional_self_bleu(texts),
        slips=share_by_target(written, [found.slips[words] for words in keys]) if found.slips else None,
        repeats=share_by_target(written, [metrics.repeats_a_pair(words) for words in keys]),
        copies=mean(words in found.copied for words in keys) if found.copied is not None else None,
        longest_shared=mean(found.shared[words] for words in keys) if found.shared else None,
        bleu=against_references(records, asked, lambda t, r: metrics.sentence_bleu(" ".join(t), [" ".join(r)])),
        rouge_l=against_references(records, asked, metrics.rouge_l),
        calibration=calibration(checked) if is_ours else None,
        seconds_per_sample=seconds / len(records) if seconds else None,
        tokens_per_second=sum(map(len, texts)) / seconds if seconds else None,
        evaluations=calls[setting] if is_ours and suite not in FROM_TEXT else None,
    )  # fmt: skip


def share_by_target(records: Sequence[Record], passed: Sequence[float]) -> Estimate | None:
    """The share of texts that passed, with an interval over targets."""
    return share(*by_target(records, passed))


def estimate_by_target(records: Sequence[Record], values: Sequence[float]) -> Estimate | None:
    """The mean of values with an interval over targets: samples of one target are not independent."""
    return estimate(*by_target(records, values))


def by_target(records: Sequence[Record], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The sum of each target's values, and how many it has."""
    of_targets: dict[int, list[float]] = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        of_targets[record.target].append(value)
    return [sum(of) for of in of_targets.values()], [float(len(of)) for of in of_targets.values()]


def shares_by_name(found: Mapping[str, Sequence[tuple[Record, float]]]) -> dict[str, Estimate]:
    """The share of each name's texts that passed, with its interval over targets."""
    estimates = {name: share_by_target(*zip(*pairs, strict=True)) for name, pairs in found.items()}
    return {name: e for name, e in estimates.items() if e is not None}


def parts_right(records: Sequence[Record]) -> Estimate | None:
    """Share of words (pos) or of brackets (tree) that are right, of oracles that count them."""
    top: dict[int, float] = defaultdict(float)
    bottom: dict[int, float] = defaultdict(float)
    for record in records:
        for verdict in record.verdicts:
            if verdict.correct is not None:
                top[record.target] += verdict.correct * verdict.parts
                bottom[record.target] += verdict.parts
    return share(list(top.values()), list(bottom.values()))


def success_by_control(records: Sequence[Record], asked: Asked) -> dict[str, Estimate]:
    """Where several controls are asked for at once, the success of each kind of them."""
    found: dict[str, list[tuple[Record, float]]] = defaultdict(list)
    for record in records:
        controls = asked.requests[record.target].controls
        if len(controls) > 1:
            for control, verdict in zip(controls, record.verdicts, strict=False):
                if verdict.success is not None:
                    found[control.classifier.kind].append((record, float(verdict.success)))
    return shares_by_name(found)


def further_tests(records: Sequence[Record], asked: Asked) -> dict[str, Estimate]:
    """Tests beside the oracle's that the field reports."""
    found: dict[str, list[tuple[Record, float]]] = defaultdict(list)
    for record in records:
        for verdict in record.verdicts:
            for name, passed in verdict.also.items():
                found[name].append((record, float(passed)))
        for name, value in record.figures.items():
            found[name].append((record, value))
    estimates = shares_by_name(found)
    ending = [
        r for r in records if asked.targets[r.target].newline and r.verdicts and r.verdicts[0].correct is not None
    ]
    if ending:  # Diffusion-LM counts the newline token as well; no text here ends in one
        right = [(r.verdicts[0].correct or 0.0) * r.verdicts[0].parts for r in ending]
        with_newline = share(right, [r.verdicts[0].parts + 1 for r in ending])
        if with_newline is not None:
            estimates["with the newline token"] = with_newline
    return estimates


def gap(records: Sequence[Record], human: Sequence[Record], costs: Mapping[Words, float]) -> Estimate | None:
    """Mean cost above human text of the same targets."""
    of_people: dict[int, list[float]] = defaultdict(list)
    for record in human:
        if record.tokens:
            of_people[record.target].append(costs[tuple(record.tokens)])
    with_people = [record for record in records if of_people[record.target] and record.tokens]
    return estimate_by_target(
        with_people, [costs[tuple(record.tokens)] - mean(of_people[record.target]) for record in with_people]
    )


def optional_self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    try:
        return metrics.self_bleu(texts)
    except CtrlgenError:  # left empty where sacrebleu is not installed, as the install hint of a verdict
        return None


def against_references(records: Sequence[Record], asked: Asked, measure: Any) -> float | None:
    """The mean of a measure of text and reference, for infilling."""
    if asked.suite != INFILL or records[0].system == HUMAN:
        return None
    pairs = [(r.tokens, asked.targets[r.target].references[0]) for r in records if asked.targets[r.target].references]
    try:
        return mean(measure(text, reference) for text, reference in pairs)
    except CtrlgenError:
        return None


def calibration(records: Sequence[Record]) -> metrics.Calibration | None:
    pairs = [
        (score, bool(verdict.success))
        for record in records
        for score, verdict in zip(record.scores or (), record.verdicts, strict=False)
    ]
    return metrics.calibrate([score for score, _ in pairs], [success for _, success in pairs]) if pairs else None


def evaluations(settings: Settings, fixed_length: bool) -> int:
    """Calls of the denoiser for one sample, at most: steps, the Adagrad steps of the paper's guidance, sweeps of
    correction, and the levels at which candidates are scored.

    Not counted are those on clean text, without a gradient, where the guides choose between drafts or corrections.
    """
    paper = settings.guidance.moves_draws
    moving = settings.guidance.paper_steps * (settings.steps - 1) if paper else 0
    correcting = 0 if paper or fixed_length else STRIDE * settings.corrections
    scoring = SCORED_LEVELS if settings.candidates > 1 and settings.select == "score" else 0
    redrafts = 0 if paper or fixed_length else settings.redrafts
    reading = STRIDE if redrafts else 0
    once = settings.steps + moving + correcting
    return settings.candidates * (once + scoring) + reading + redrafts * (once + reading)
