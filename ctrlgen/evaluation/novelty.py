"""What of a text is copied from training texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of hashes of n-grams, modulo 2^64
NO_WORD, UNKNOWN, FIRST = 0, 1, 2  # between training texts; no word of theirs; ids of words


class Training:
    """The training texts in words."""

    def __init__(self, sentences: Iterable[Sequence[str]]):
        self.sentences = [tuple(map(sys.intern, words)) for words in sentences]
        self.texts = set(self.sentences)

    def copied(self, words: Sequence[str]) -> bool:
        return tuple(words) in self.texts

    def longest_shared(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """How many consecutive words of each text stand in one training text.

        n-grams are compared by hashes of 64 bits, each n among the places where n - 1 words were shared.
        """
        id_of: dict[str, int] = {}
        theirs = [[id_of.setdefault(word, len(id_of) + FIRST) for word in words] for words in self.texts]
        ours = [[id_of.get(word, UNKNOWN) for word in words] for words in texts]
        known, wanted = joined(theirs), joined(ours)
        owner = np.repeat(np.arange(len(texts)), [len(words) + 1 for words in texts])
        longest = np.zeros(len(texts), np.int64)
        known_at, wanted_at = np.flatnonzero(known != NO_WORD), np.flatnonzero(wanted > UNKNOWN)
        known_hash, wanted_hash = np.zeros(len(known_at), np.uint64), np.zeros(len(wanted_at), np.uint64)
        size = 0
        while len(wanted_at):
            known_hash = known_hash * MULTIPLIER + known[known_at + size]
            wanted_hash = wanted_hash * MULTIPLIER + wanted[wanted_at + size]
            is_shared = np.isin(wanted_hash, known_hash) & (wanted[wanted_at + size] > UNKNOWN)
            wanted_at, wanted_hash = wanted_at[is_shared], wanted_hash[is_shared]
            remains = np.isin(known_hash, wanted_hash)
            known_at, known_hash = known_at[remains], known_hash[remains]
            size += 1
            longest[owner[wanted_at]] = size
        return longest.tolist()


def joined(texts: Sequence[Sequence[int]]) -> NDArray[np.uint64]:
    """The ids of all texts with NO_WORD behind each."""
    count = sum(len(ids) + 1 for ids in texts)
    return np.fromiter((id for ids in texts for id in (*ids, NO_WORD)), dtype=np.uint64, count=count)
