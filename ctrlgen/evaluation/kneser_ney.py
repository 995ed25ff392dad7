"""An interpolated Kneser-Ney n-gram model: a cost model that shares nothing with the texts' writer.

Chen and Goodman 1999, section 3, with one discount an order: D = n1 / (n1 + 2 n2). Counts are sorted arrays, looked up
by bisection: 5 million tokens take seconds, and some hundred bytes a token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

START, END, UNSEEN = 0, 1, 2  # ids before those of words
NOWHERE = -1  # the number of an n-gram that was never seen


@dataclass(frozen=True)
class Grams:
    """The different n-grams of one order, by a number: their place in `keys`, which are sorted."""

    keys: Ids  # the number of all words but one, times `base`, plus the id of that one
    base: int

    def find(self, rest: Ids, word: Ids) -> Ids:
        """The number of each n-gram, given that of the rest and the id of the other word, or NOWHERE."""
        wanted = rest * self.base + word
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((rest != NOWHERE) & (self.keys[places] == wanted), places, NOWHERE)


@dataclass(frozen=True)
class Order:
    """The counts of one order n: of n-grams w, and of the contexts that are their first n - 1 words."""

    grams: Grams  # a word in front of the (n - 1)-gram that the rest is
    contexts: Grams  # a word in front of the context of order n - 1
    discount: float
    counts: Ids  # of each n-gram: how often, at the highest order; elsewhere after how many different words
    totals: Ids  # of each context: the sum of its n-grams' counts
    followers: Ids  # of each context: how many different words follow it


class KneserNey:
    """p(word | the n - 1 words before it), learned from sentences given as words."""

    def __init__(self, sentences: Iterable[Sequence[str]], order: int = 5):
        self.order = order
        self.id_of: dict[str, int] = {}
        windows = self.windows([self.learned(words) for words in sentences])  # (N, order), the predicted word last
        self.base = len(self.id_of) + UNSEEN + 1
        self.frequencies = np.bincount(windows[:, -1], minlength=self.base)
        self.orders = self.counted(windows)
        self.vocabulary = len(self.orders[0].counts) + 1

    def learned(self, words: Sequence[str]) -> list[int]:
        return [self.id_of.setdefault(sys.intern(word), len(self.id_of) + UNSEEN + 1) for word in words]

    def windows(self, sentences: Sequence[Sequence[int]]) -> Ids:
        """Every word and every end of a sentence, with the order - 1 words before it. -> (N, order)"""
        before = [START] * (self.order - 1)
        flat = np.fromiter(
            (id for ids in sentences for part in (before, ids, (END,)) for id in part),
            dtype=np.int32,
            count=sum(len(ids) + self.order for ids in sentences),
        )
        predicted = np.flatnonzero(flat != START)
        offsets = np.arange(1 - self.order, 1)
        return flat[predicted[:, None] + offsets]

    def counted(self, windows: Ids) -> list[Order]:
        """The counts of order 1, 2, …"""
        count = len(windows)
        gram, context = np.zeros(count, np.int64), np.zeros(count, np.int64)
        found: list[tuple[Grams, Grams, Ids, Ids]] = []
        for n in range(1, self.order + 1):
            if n > 1:
                contexts, context, _ = numbered(context, windows[:, -n], self.base)
            else:
                contexts = Grams(np.zeros(1, np.int64), self.base)
            grams, gram, first = numbered(gram, windows[:, -n], self.base)
            found.append((grams, contexts, np.bincount(gram), context[first]))
        orders = []
        for n, (grams, contexts, occurrences, context_of) in enumerate(found, 1):
            counts = occurrences
            if n < self.order:  # continuation counts: in how many contexts an n-gram occurs
                counts = np.bincount(found[n][0].keys // self.base, minlength=len(occurrences))
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            totals = np.bincount(context_of, counts, minlength=len(contexts.keys)).astype(np.int64)
            followers = np.bincount(context_of, minlength=len(contexts.keys))
            discount = once / (once + 2 * twice) if once else 0.5
            orders.append(Order(grams, contexts, discount, counts, totals, followers))
        return orders

    def probabilities(self, windows: Ids) -> Floats:
        """p of each window's last word given those before it. (N, order) -> (N,)"""
        gram, context = np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
        p = np.full(len(windows), 1.0 / self.vocabulary)
        for n, order in enumerate(self.orders, 1):
            word = windows[:, -n].astype(np.int64)
            if n > 1:
                context = order.contexts.find(context, word)
            gram = order.grams.find(gram, word)
            seen = context != NOWHERE
            total = np.where(seen, order.totals[context], 1)
            count = np.where(gram != NOWHERE, order.counts[gram], 0)
            kept = np.maximum(count - order.discount, 0.0) / total
            p = np.where(seen, kept + order.discount * order.followers[context] / total * p, p)
        return p

    def costs(self, sentences: Sequence[Sequence[str]]) -> list[Floats]:
        """What each word of each sentence costs, and its end: nats, (n + 1,) each."""
        windows = self.windows([self.ids(words) for words in sentences])
        ends = np.cumsum([len(words) + 1 for words in sentences])[:-1]
        return np.split(-np.log(self.probabilities(windows)), ends) if len(sentences) else []

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.id_of.get(word, UNSEEN) for word in words]


def numbered(rest: Ids, word: Ids, base: int) -> tuple[Grams, Ids, Ids]:
    """The different pairs of a number and a word; the number of each pair, (N,); where each was first seen."""
    keys, first, numbers = np.unique(rest * base + word, return_index=True, return_inverse=True)
    return Grams(keys, base), numbers, first
