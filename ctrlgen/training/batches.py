"""Batches of sentences of one length, with and without the sentences before them, and the steps that they make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from ctrlgen.diffusion.words import NO_ROW


class LengthBatches:
    """Batches of sentences of one length, so that nothing is padded.

    A batch holds about `tokens_per_batch` tokens. The order of an epoch depends on the seed and the epoch alone.
    Sentences with a context, the words before them, have batches of their own, `context_share` of all; the contexts
    of a batch are filled up in front to `context_width`.
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[int]],
        tokens_per_batch: int,
        seed: int,
        contexts: Mapping[int, Sequence[int]] | None = None,
        context_width: int = 0,
        context_share: float = 0.0,
    ):
        """contexts: by index of the sentence."""
        self.sentences = sentences
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.contexts, self.context_width = contexts or {}, context_width
        self.by_length: dict[int, list[int]] = defaultdict(list)
        self.with_context: dict[int, list[int]] = defaultdict(list)
        for index, sentence in enumerate(sentences):
            (self.with_context if index in self.contexts else self.by_length)[len(sentence)].append(index)
        plain = sum(-(-len(indices) // self.size(length)) for length, indices in self.by_length.items())
        self.context_batches = round(plain * context_share / (1.0 - context_share)) if self.contexts else 0

    def size(self, length: int, before: int = 0) -> int:
        """Sentences in a batch."""
        return max(1, self.tokens_per_batch // (before + length))

    def epoch(self, number: int) -> list[list[int]]:
        """Indices of the sentences of each batch."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        batches = self.shuffled(self.by_length, 0, rng)
        if self.context_batches:
            batches += self.shuffled(self.with_context, self.context_width, rng)[: self.context_batches]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng)]

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """The batches of an epoch, several to a step where they are small, as few texts have few of each length.

        Which lengths share a step is the same in every epoch. Batches with a context stand alone.
        """
        steps, small = [], []
        for batch in self.epoch(epoch):
            words = len(batch) * len(self.sentences[batch[0]])
            if batch[0] in self.contexts or 2 * words > self.tokens_per_batch:
                steps.append([batch])
            else:
                small.append((len(self.sentences[batch[0]]), words, batch))
        room = 0
        for _, words, batch in sorted(small):
            if words > room:
                steps.append([])
                room = self.tokens_per_batch
            steps[-1].append(batch)
            room -= words
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch + 1)
        return [steps[i] for i in torch.randperm(len(steps), generator=rng)]

    def shuffled(self, by_length: Mapping[int, list[int]], before: int, rng: torch.Generator) -> list[list[int]]:
        """Batches of each length; those with a context in random order, as an epoch takes the first of them."""
        batches = []
        for length, indices in sorted(by_length.items()):
            order = [indices[i] for i in torch.randperm(len(indices), generator=rng)]
            size = self.size(length, before)
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng)] if before else batches

    def tokens(self, indices: Sequence[int]) -> torch.Tensor:
        """(B, n)"""
        return torch.tensor([self.sentences[i] for i in indices])

    def context(self, indices: Sequence[int]) -> torch.Tensor:
        """The words before each sentence, NO_ROW in front of shorter ones. (B, context_width), or (B, 0)"""
        if indices[0] not in self.contexts:
            return torch.zeros(len(indices), 0, dtype=torch.int64)
        rows = torch.full((len(indices), self.context_width), NO_ROW)
        for row, index in zip(rows, indices, strict=True):
            before = self.contexts[index]
            row[self.context_width - len(before) :] = torch.tensor(before)
        return rows
