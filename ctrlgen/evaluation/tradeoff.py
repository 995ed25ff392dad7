"""Fluency against control: what each setting of a sweep costs and reaches, and where control begins to cost much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ctrlgen.evaluation.run import OURS, Results
from ctrlgen.evaluation.tables import judges

KNEE = (
    "The knee is the setting farthest above the straight line from the cheapest setting to the most successful one, "
    "both axes scaled to that line's ends."
)


@dataclass(frozen=True)
class Point:
    """One setting: nats a token above human text, and success."""

    setting: str
    gap: float
    success: float


def curves(results: Results) -> dict[str, list[Point]]:
    """The points of every suite that was swept, in the order of the sweep, under the first judge."""
    first = next(iter(judges(results)), None)
    points: dict[str, list[Point]] = defaultdict(list)
    for row in results.rows:
        if row.method == OURS and row.setting and row.success and first in row.gap:
            points[row.suite].append(Point(row.setting, row.gap[first].mean, row.success.mean))
    return {suite: of_suite for suite, of_suite in points.items() if len(of_suite) > 1}


def knee(points: Sequence[Point]) -> Point | None:
    """The point farthest above the chord (see KNEE); None where no point lies above it.

    Where one setting is the cheapest and the most successful there is nothing to trade, and it is the answer.
    """
    if not points:
        return None
    cheapest = min(points, key=lambda point: (point.gap, -point.success))
    best = max(points, key=lambda point: (point.success, -point.gap))
    if cheapest == best:
        return best
    width, height = best.gap - cheapest.gap, best.success - cheapest.success
    if not width or not height:
        return None

    def above(point: Point) -> float:
        return (point.success - cheapest.success) / height - (point.gap - cheapest.gap) / width

    farthest = max(points, key=above)
    return farthest if above(farthest) > 1e-9 else None
