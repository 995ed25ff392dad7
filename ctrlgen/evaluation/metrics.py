"""What is computed from finished texts: variety, intervals, calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctrlgen.errors import CtrlgenError

Words = Sequence[str]
Array = NDArray[np.float64]

Z = 1.96  # standard deviations of a 95% interval
DRAWS = 1000  # of the bootstrap
BINS = 10  # of the reliability plot
TEMPERATURES = np.geomspace(0.1, 10.0, 201)
MOST_COMPARED = 200  # texts compared with one another by self-BLEU


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[Words], n: int) -> float | None:
    """Share of different n-grams among all n-grams (Li et al. 2016), None where there are none."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Words]) -> float | None:
    """Mean BLEU-4 of each text against all others, 0 to 100 (Zhu et al. 2018). Low is varied. None for one text."""
    joined = [" ".join(words) for words in texts[:MOST_COMPARED]]
    if len(joined) < 2:
        return None
    others = [joined[:i] + joined[i + 1 :] for i in range(len(joined))]
    return mean(sentence_bleu(text, rest) for text, rest in zip(joined, others, strict=True))


def sentence_bleu(text: str, references: Sequence[str]) -> float:
    """BLEU-4, 0 to 100. Raises CtrlgenError where sacrebleu is not installed."""
    try:
        from sacrebleu import BLEU
    except ImportError as error:
        raise CtrlgenError("sacrebleu is not installed: pip install sacrebleu") from error
    return BLEU(effective_order=True, tokenize="none").sentence_score(text, list(references)).score


def rouge_l(text: Words, reference: Words) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    if not text or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in text:
        before = row[:]
        for j, other in enumerate(reference, 1):
            row[j] = before[j - 1] + 1 if word == other else max(before[j], row[j - 1])
    return 2 * row[-1] / (len(text) + len(reference))


def repeats_a_pair(words: Words) -> bool:
    """Whether two neighbouring words stand in a text twice: `It is It is`."""
    pairs = ngrams(words, 2)
    return len(set(pairs)) < len(pairs)


def entropy(texts: Sequence[Words]) -> float | None:
    """Of a word drawn from all words of all texts, nats; None where there are none."""
    counts = np.asarray(list(Counter(word for words in texts for word in words).values()), dtype=float)
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum()) if len(counts) else None


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval over targets."""

    mean: float
    low: float
    high: float


def estimate(sums: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0) -> Estimate | None:
    """sum of `sums` over sum of `weights`, one entry a target; None without targets.

    Percentile bootstrap (Efron 1979): targets are drawn anew, with replacement.
    """
    top = np.asarray(sums, dtype=float)
    if not len(top):
        return None
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=float)
    if bottom.sum() == 0:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(top), (DRAWS, len(top)))
    ratios = top[drawn].sum(1) / np.maximum(bottom[drawn].sum(1), 1e-12)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def share(sums: Sequence[float], weights: Sequence[float]) -> Estimate | None:
    """sum of `sums` over sum of `weights`, successes and tries of each target; None without tries.

    Wilson's interval (1927), in which 10 of 10 is 72% to 100%. Tries of one target are not independent: they count for
    as many as would give the variance between targets (Kish 1965), and never for fewer than there are targets.
    """
    top, bottom = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    tries, targets = float(bottom.sum()), int((bottom > 0).sum())
    if not tries:
        return None
    p = float(top.sum() / tries)
    variance = float(((top - p * bottom) ** 2).sum()) / tries**2
    n = min(max(p * (1 - p) / variance, targets), tries) if variance > 0 else targets
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(max(0.0, p * (1 - p)) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Estimate(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


@dataclass(frozen=True)
class Calibration:
    """The guide's probability against the oracle's verdict."""

    error: float  # expected calibration error on every second score
    temperature: float  # of the log-odds, fitted to the other half
    error_after: float
    bins: list[tuple[float, float, int]]  # mean probability, share of successes, how many


def calibrate(scores: Sequence[float], successes: Sequence[bool]) -> Calibration | None:
    """Guo et al. 2017: expected calibration error, and the temperature that makes every other verdict likeliest."""
    p, right = np.clip(np.asarray(scores, dtype=float), 1e-6, 1 - 1e-6), np.asarray(successes, dtype=float)
    if len(p) < 2 * BINS:
        return None
    first, second = slice(None, None, 2), slice(1, None, 2)
    losses = [cross_entropy(tempered(p[first], t), right[first]) for t in TEMPERATURES]
    best = float(TEMPERATURES[int(np.argmin(losses))])
    after = tempered(p[second], best)
    return Calibration(
        error=calibration_error(p[second], right[second]),
        temperature=best,
        error_after=calibration_error(after, right[second]),
        bins=reliability(p, right),
    )


def tempered(p: Array, temperature: float) -> Array:
    return 1 / (1 + np.exp(-np.log(p / (1 - p)) / temperature))


def cross_entropy(p: Array, right: Array) -> float:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(-(right * np.log(p) + (1 - right) * np.log(1 - p)).mean())


def reliability(p: Array, right: Array) -> list[tuple[float, float, int]]:
    """Equal bins of probability: mean probability, share that is right, how many; empty ones left out."""
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    return [
        (float(p[which == b].mean()), float(right[which == b].mean()), int((which == b).sum()))
        for b in range(BINS)
        if (which == b).any()
    ]


def calibration_error(p: Array, right: Array) -> float:
    """Mean distance of probability and share over the bins, weighted by how many each holds."""
    return sum(count * abs(probability - share) for probability, share, count in reliability(p, right)) / len(p)
