"""Charts: a score for every label of every span of words, and the best tree in them.

Cell (i, j) of a chart is the span of words i to j. Its class is 0 where no constituent stands there, else a chain of
labels (see `classifiers.brackets`). Scores are kept only of the n (n + 1) / 2 cells where i <= j, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen_classifiers.brackets import Bracketing, Chain, Constituent, parts

OPEN = 0  # an ask that every class fulfils
EMPTY = 1  # an ask for class 0: no constituent


class Labels:
    """The classes of a chart's cell, and what may be asked of it.

    The asks are numbered: OPEN, then for each class that class alone, then for each part of a chain any chain that has
    it (asked for a VP, S+VP is right; the empty part asks for any constituent).
    """

    def __init__(self, chains: Sequence[str]):
        self.chains: list[Chain] = [(), *(tuple(chain.split("+")) for chain in chains)]
        self.classes = {chain: id for id, chain in enumerate(self.chains)}
        every_part = sorted({part for chain in self.chains for part in parts(chain)})
        self.asks_for = {part: 1 + len(self.chains) + i for i, part in enumerate(every_part)}
        self.names = {label.casefold(): label for chain in self.chains for label in chain}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Labels:
        """Those that a config.json lists under `chains`."""
        return cls([str(chain) for chain in config["chains"]])

    def __len__(self) -> int:
        return len(self.chains)

    def allowed(self) -> Tensor:
        """Whether a class fulfils an ask. bool (asks, classes)"""
        has_part = [[bool(chain) and part in parts(chain) for chain in self.chains] for part in self.asks_for]
        exactly = torch.eye(len(self), dtype=torch.bool)
        return torch.cat([torch.ones(1, len(self), dtype=torch.bool), exactly, torch.tensor(has_part)])

    def class_of(self, chain: Chain) -> int:
        """The class of a chain; of a rare one, that of its longest known beginning."""
        while chain not in self.classes:
            chain = chain[:-1]
        return self.classes[chain]

    def chart(self, trees: Sequence[Bracketing], length: int) -> Tensor:
        """Trees as asks for exactly their classes. (B, n, n)"""
        cells = [[(c.start, c.end, EMPTY + self.class_of(c.chain)) for c in tree.constituents] for tree in trees]
        return fill_chart(cells, [len(tree.leaves) for tree in trees], length)


def fill_chart(cells: Sequence[Sequence[tuple[int, int, int]]], closed: Sequence[int], length: int) -> Tensor:
    """Asks as a chart, from (start, end, ask) for each row; cells beyond `length` words are left out.

    The other cells of a row's first `closed` words ask for no constituent; all the rest is OPEN. (B, n, n)
    """
    inside = torch.arange(length) < torch.tensor(closed)[:, None]
    chart = (EMPTY * inside[:, None]).expand(-1, length, -1).triu()
    given = [(row, start, end - 1, ask) for row, of_row in enumerate(cells) for start, end, ask in of_row]
    fitting = [cell for cell in given if cell[2] < length]
    if fitting:
        rows, starts, lasts, asks = torch.tensor(fitting).T
        chart[rows, starts, lasts] = asks
    return chart


def ends(n: int, device: torch.device) -> Tensor:
    """First and last word of every span of n words, in the order of scores. (2, spans)"""
    return torch.triu_indices(n, n, device=device)


def upper(chart: Tensor) -> Tensor:
    """The cells of a square chart that are spans. (B, n, n) -> (B, spans)"""
    first, last = ends(chart.shape[1], chart.device)
    return chart[:, first, last]


def square(cells: Tensor, n: int) -> Tensor:
    """The square chart of n words that has these spans, 0 elsewhere. (B, spans) -> (B, n, n)"""
    first, last = ends(n, cells.device)
    chart = cells.new_zeros(len(cells), n, n)
    chart[:, first, last] = cells
    return chart


def batch_invariant(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer` of x (B, n, features), to the last bit whatever B: a CPU multiplies up to three rows in another order."""
    return layer(F.pad(x, (0, 0, 0, 3)))[:, : x.shape[1]] if x.shape[:-1].numel() < 4 else layer(x)


class SpanScorer(nn.Module):
    """Scores of every class for every span: an MLP over the two ends, each with its neighbour (Stern et al. 2017).

    The first layer is a sum over the ends, so it is computed once a word; what remains for a span is one layer.
    """

    def __init__(self, width: int, hidden: int, classes: int):
        super().__init__()
        self.left = nn.Linear(2 * width, hidden)
        self.right = nn.Linear(2 * width, hidden, bias=False)
        self.output = nn.Linear(hidden, classes)

    def forward(self, h: Tensor, wanted: Tensor | None = None) -> Tensor:
        """h (B, n, width), 0 beyond a row's end; wanted: bool (spans,), None for all -> (B, wanted spans, classes)"""
        before, after = F.pad(h, (0, 0, 1, 0))[:, :-1], F.pad(h, (0, 0, 0, 1))[:, 1:]
        left = batch_invariant(self.left, torch.cat([before, h], -1))  # (B, n, hidden)
        right = batch_invariant(self.right, torch.cat([h, after], -1))
        spans = ends(h.shape[1], h.device)
        first, last = spans if wanted is None else spans[:, wanted]
        hidden = F.relu(left.index_select(1, first) + right.index_select(1, last))  # (B, wanted spans, hidden)
        return batch_invariant(self.output, hidden)


def best_trees(log_p: Tensor, labels: Labels) -> list[tuple[Constituent, ...]]:
    """The likeliest constituents that do not cross, by the CKY algorithm. log_p (B, spans, classes), of one length."""
    # relative to no constituent everywhere, a tree's log-probability is the sum of its constituents' gains
    gain, best_class = (log_p - log_p[..., :1]).max(-1)  # (B, spans)
    batch, n = len(gain), math.isqrt(2 * gain.shape[1])
    gain, best_class = square(gain, n), square(best_class, n)  # (B, n, n)
    starting = gain.new_zeros(batch, n + 1, n + 1)  # [i, w]: the best of the w words from i on
    ending = gain.new_zeros(batch, n + 1, n + 1)  # [j, w]: the best of the w words before j
    split = torch.zeros(batch, n + 1, n + 1, dtype=torch.long)  # [i, w]: the size of its left part
    for w in range(1, n + 1):
        best = gain.diagonal(w - 1, 1, 2)  # (B, n - w + 1)
        if w > 1:
            halves = starting[:, : n - w + 1, 1:w] + ending[:, w:, 1:w].flip(-1)  # (B, n - w + 1, w - 1)
            of_halves, at = halves.max(-1)
            best = best + of_halves
            split[:, : n - w + 1, w] = at + 1
        starting[:, : n - w + 1, w] = best
        ending[:, w:, w] = best
    return [
        follow(of_row, classes, labels) for of_row, classes in zip(split.tolist(), best_class.tolist(), strict=True)
    ]


def follow(split: list[list[int]], best_class: list[list[int]], labels: Labels) -> tuple[Constituent, ...]:
    """The constituents of the tree whose spans are divided as `split` says, top down."""
    constituents = []
    waiting = [(0, len(best_class))]
    while waiting:
        start, end = waiting.pop()
        found = best_class[start][end - 1]
        if found:
            constituents.append(Constituent(start, end, labels.chains[found]))
        if end - start > 1:
            middle = start + split[start][end - start]
            waiting += [(middle, end), (start, middle)]
    return tuple(constituents)
