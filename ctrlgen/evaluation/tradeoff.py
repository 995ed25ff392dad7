"""Fluency against control, where control begins to cost much; and fluency against variety, beside human text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN, OURS
from ctrlgen.evaluation.targets import UNGUIDED

KNEE = (
    "The knee is the setting nearest to the corner of lowest cost and highest success, both axes scaled to the range "
    "of the sweep."
)


@dataclass(frozen=True)
class Point:
    """One setting: nats a token above human text, and success."""

    setting: str
    gap: float
    success: float


def curves(results: Results) -> dict[str, list[Point]]:
    """The points of every suite that was swept, in the order of the sweep, under the first cost model."""
    first = next(iter(results.cost_models), None)
    points: dict[str, list[Point]] = defaultdict(list)
    for row in results.rows:
        if row.system == OURS and row.setting and row.success and first in row.gap:
            points[row.suite].append(Point(row.setting, row.gap[first].mean, row.success.mean))
    return {suite: of_suite for suite, of_suite in points.items() if len(of_suite) > 1}


def knee(points: Sequence[Point]) -> Point | None:
    """The point that KNEE describes; the first of equals, None without points."""
    if not points:
        return None
    cheapest, dearest = min(point.gap for point in points), max(point.gap for point in points)
    worst, best = min(point.success for point in points), max(point.success for point in points)

    def distance(point: Point) -> float:
        cost = (point.gap - cheapest) / (dearest - cheapest or 1.0)
        failure = (best - point.success) / (best - worst or 1.0)
        return math.hypot(cost, failure)

    return min(points, key=distance)


def knees(results: Results) -> list[str]:
    """The knee of every sweep, in words."""
    found = {suite: knee(points) for suite, points in curves(results).items()}
    return [f"{suite}: the knee of the sweep is {point.setting}" for suite, point in found.items() if point is not None]


@dataclass(frozen=True)
class Variety:
    """What unguided texts of one setting, or human ones, cost, and how varied they are."""

    name: str
    cost: float  # nats a token
    distinct: float | None  # share of different ones among their 4-grams
    entropy: float | None  # of their words, nats


def frontier(results: Results, cost_model: str) -> list[Variety]:
    """Unguided texts by setting, in the order of their cost, then human ones; empty for one setting."""
    rows = [row for row in results.rows if row.suite == UNGUIDED and cost_model in row.cost]
    ours = sorted((row for row in rows if row.system == OURS), key=lambda row: row.cost[cost_model].mean)
    human = [row for row in rows if row.system == HUMAN]
    if len(ours) < 2:
        return []
    return [
        Variety(row.setting or row.system, row.cost[cost_model].mean, row.distinct.get("4"), row.entropy)
        for row in [*ours, *human]
    ]
