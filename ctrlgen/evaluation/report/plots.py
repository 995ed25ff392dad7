"""Plots of an evaluation, drawn without a display. As SVG they take the colour of the text around them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.systems import HUMAN
from ctrlgen.evaluation.tradeoff import Point, Variety, knee
from ctrlgen.files import atomic_file

INK = "#010203"  # becomes the page's own colour of text
BLUE, ORANGE, GREY = "#3b82c4", "#d9822b", "#8a8f98"
SIZE = (6.4, 4.0)
LABEL_WIDTH, LABEL_HEIGHT = 0.28, 0.05  # of the axes
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "grid.color": GREY,
    "grid.alpha": 0.25, "axes.grid": True, "svg.fonttype": "path", "svg.hashsalt": "ctrlgen", "legend.frameon": False,
}  # fmt: skip


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def reliability_plot(row: Row) -> Figure:
    """The guide's probability against the share of texts that the oracle accepts; large points hold many texts."""
    with matplotlib.rc_context(STYLE):
        figure, plot = axes(4.0, 4.0)
        plot.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", zorder=1)
        if row.calibration is not None:
            probabilities, shares, counts = zip(*row.calibration.bins, strict=True)
            largest = max(counts)
            plot.plot(probabilities, shares, color=BLUE, linewidth=1, zorder=2)
            plot.scatter(probabilities, shares, [20 + 160 * c / largest for c in counts], color=BLUE, zorder=3)
        plot.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        plot.set(xlabel="probability that the guide gives", ylabel="share that the oracle accepts")
    return figure


def trade_off_plot(points: Sequence[Point], cost_model: str, human: float | None = None) -> Figure:
    """Success against cost above human text, a labelled point a setting, the knee ringed."""
    with matplotlib.rc_context(STYLE):
        figure, plot = axes(*SIZE)
        gaps, successes = [point.gap for point in points], [100 * point.success for point in points]
        plot.plot(gaps, successes, color=BLUE, linewidth=1.2, zorder=2)
        plot.scatter(gaps, successes, 36, color=BLUE, zorder=3)
        ceiling = [] if human is None else [100 * human]
        at = knee(points)
        if at is not None:
            plot.scatter(
                [at.gap], [100 * at.success], 170, facecolors="none", edgecolors=ORANGE, linewidths=2, zorder=4
            )
        for point, height in zip(points, label_heights(gaps, successes, ceiling), strict=True):
            label = f"{point.setting} (knee)" if point is at else point.setting
            plot.annotate(
                label, (point.gap, 100 * point.success), (14, height), textcoords=("offset points", "axes fraction"),
                fontsize=8, va="center", arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
            )  # fmt: skip
        if human is not None:
            plot.scatter([0], [100 * human], 70, color=GREY, marker="*", zorder=3)
            plot.annotate("human", (0, 100 * human), (6, 5), textcoords="offset points", fontsize=8)
        plot.set(xlim=around([*gaps, 0.0], 0.18), ylim=around([*successes, *ceiling], 0.15))
        plot.set(xlabel=f"nats a token above human text ({cost_model})", ylabel="success, %")
    return figure


def frontier_plot(points: Sequence[Variety], cost_model: str) -> Figure:
    """Cost against variety, by distinct-4 and by entropy; a labelled point a setting, a star for human text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        for plot, name, values in zip(
            figure.subplots(1, 2, sharey=True),
            ("distinct-4", "entropy of words, nats"),
            ([of.distinct for of in points], [of.entropy for of in points]),
            strict=True,
        ):
            for of, value in zip(points, values, strict=True):
                if value is not None:
                    is_human = of.name == HUMAN
                    plot.scatter([value], [of.cost], 70 if is_human else 36, color=GREY if is_human else BLUE,
                                 marker="*" if is_human else "o")  # fmt: skip
                    plot.annotate(of.name, (value, of.cost), (6, 5), textcoords="offset points", fontsize=7)
            plot.set(xlabel=name)
            plot.margins(0.25)
        figure.axes[0].set(ylabel=f"nats a token ({cost_model})")
    return figure


def around(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of values with a margin on both sides, a share of it."""
    width = (max(values) - min(values)) or 1.0
    return min(values) - margin * width, max(values) + margin * width


def label_heights(gaps: Sequence[float], successes: Sequence[float], ceiling: Sequence[float]) -> list[float]:
    """Heights of labels, 0 to 1 of the axes: beside their points, but below others that are near."""
    bottom, top = around([*successes, *ceiling], 0.15)
    left, right = around([*gaps, 0.0], 0.18)
    heights = [0.0] * len(gaps)
    placed: list[tuple[float, float]] = []
    for number in sorted(range(len(gaps)), key=lambda number: -successes[number]):
        place, height = (gaps[number] - left) / (right - left), (successes[number] - bottom) / (top - bottom)
        for other_place, other_height in placed:
            if abs(place - other_place) < LABEL_WIDTH and height > other_height - LABEL_HEIGHT:
                height = other_height - LABEL_HEIGHT
        placed.append((place, height))
        heights[number] = height
    return heights


def svg(figure: Figure) -> str:
    """For inlining in a page: no prolog, no metadata, nothing that refers outside it."""
    with matplotlib.rc_context(STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    return drawn.replace(INK, "currentColor")


def save_png(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary, matplotlib.rc_context(STYLE):
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")
