"""An interpolated Kneser-Ney n-gram model: a fluency judge that shares nothing with what it judges.

Chen and Goodman 1999, section 3, with one discount an order: D = n1 / (n1 + 2 n2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

START, END = "<s>", "</s>"


class KneserNey:
    """p(word | the n - 1 words before it), learned from sentences given as lists of words."""

    def __init__(self, sentences: Sequence[Sequence[str]], order: int = 5):
        self.order = order
        counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        for sentence in sentences:
            padded = self.pad(sentence)
            counts[order].update(tuple(padded[i : i + order]) for i in range(len(padded) - order + 1))
        for n in range(order - 1, 0, -1):  # continuation counts: in how many contexts an n-gram occurs
            counts[n].update(gram[1:] for gram in counts[n + 1])
        self.counts = counts
        self.totals: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        self.followers: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        self.discounts = [0.0] * (order + 1)
        for n in range(1, order + 1):
            for gram, count in counts[n].items():
                self.totals[n][gram[:-1]] += count
                self.followers[n][gram[:-1]] += 1
            once = sum(count == 1 for count in counts[n].values())
            twice = sum(count == 2 for count in counts[n].values())
            self.discounts[n] = once / (once + 2 * twice) if once else 0.5
        self.vocabulary = len(counts[1]) + 1

    def pad(self, sentence: Sequence[str]) -> list[str]:
        return [START] * (self.order - 1) + list(sentence) + [END]

    def probability(self, gram: tuple[str, ...]) -> float:
        """p of the last word of an n-gram given those before it."""
        p = 1.0 / self.vocabulary
        for n in range(1, self.order + 1):
            context, tail = gram[self.order - n : -1], gram[self.order - n :]
            total = self.totals[n].get(context, 0)
            if total:
                kept = max(self.counts[n].get(tail, 0) - self.discounts[n], 0.0) / total
                p = kept + self.discounts[n] * self.followers[n][context] / total * p
        return p

    def cost(self, sentence: Sequence[str]) -> float:
        """Mean cost of a sentence's words and its end, nats a token."""
        padded = self.pad(sentence)
        grams = [tuple(padded[i : i + self.order]) for i in range(len(padded) - self.order + 1)]
        return -sum(math.log(self.probability(gram)) for gram in grams) / len(grams)
