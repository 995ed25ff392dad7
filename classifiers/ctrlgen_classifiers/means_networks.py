"""The networks behind `means:`: what a noised text says, and what a clean one says, as vectors of one space.

They are trained contrastively (van den Oord et al. 2018, InfoNCE; Radford et al. 2021): of all the texts of a batch,
the guide is to find the one that says what the noised text says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.training.heads import Example, Head, mix_layers

BANK = 2048  # training texts among which a text is told apart when it guides
NOTHING = -1  # instead of a word, behind the last
SAME = 0.9  # cosine from which on texts of the bank may mean the same
BUCKETS, COMPARED = 1024, 2048  # of words, where texts are compared by them; texts at a time
SHARPNESS = 10.0  # nats at first between codes that agree and codes that have nothing in common


@dataclass(frozen=True)
class Meaning:
    """A text to be told apart from others, and which of those say the same."""

    words: tuple[int, ...]  # ids
    group: int
    others: tuple[tuple[int, ...], ...] = ()  # texts of other groups with much the same words


@dataclass(frozen=True)
class Meanings:
    """A batch of them."""

    words: Tensor  # (B, m), NOTHING behind the last
    group: Tensor  # (B,)
    others: Tensor  # (B, K, m)


class Summary(nn.Module):
    """A vector of a text's words: two convolutions and attention pooling. Nothing beyond a text's end is read."""

    def __init__(self, width: int, size: int, heads: int = 4):
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.attention = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, n, width), mask bool (B, n) -> (B, size)"""
        for filters in self.filters:
            x = x * mask[..., None]
            x = x + F.gelu(filters(F.layer_norm(x, x.shape[-1:]).mul(mask[..., None]).transpose(1, 2))).transpose(1, 2)
        weights = self.attention(x).masked_fill(~mask[..., None], -torch.inf).softmax(1)  # (B, n, heads)
        values = self.value(x).unflatten(-1, (weights.shape[-1], -1))  # (B, n, heads, width / heads)
        return self.output((weights[..., None] * values).sum(1).flatten(1))


class MeansHead(Head):
    """log p(this text, of all those of a bank, says what x_t says).

    The guide reads the denoiser's hidden states and the vectors of its words; the encoder reads clean words.
    """

    bank: Tensor

    def __init__(self, vocab_size: int, longest: int, trunk_layers: int, trunk_width: int, width: int, size: int):
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.from_trunk = nn.Linear(trunk_width, width)
        self.guide, self.encoder = Summary(width, size), Summary(width, size)
        self.sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.register_buffer("bank", torch.full((BANK, longest), NOTHING, dtype=torch.int32))
        self._bank_codes: Tensor | None = None

    def code(self, words: Tensor) -> Tensor:
        """Codes of clean texts (B, m), NOTHING behind the last word, of length one. (B, size)"""
        x = F.embedding(words.clamp(min=0).long(), self.words.weight)
        return F.normalize(self.encoder(x, words != NOTHING), dim=-1)

    def reading(self, denoised: Denoised) -> Tensor:
        """What a noised text says. Its length is how sure the guide is. (B, size)"""
        x = self.from_trunk(mix_layers(self.layer_mix, denoised)) + denoised.known_probs @ self.words.weight
        return self.guide(x, denoised.mask)

    def log_prob(self, denoised: Denoised, encoded: Meanings | Tensor) -> Tensor:
        """Against the other texts of the batch in training, else, given codes (B, size), against the bank. -> (B,)"""
        said = self.sharpness.exp() * self.reading(denoised)
        if isinstance(encoded, Meanings):
            return self.among(said, encoded).log_softmax(-1).diagonal()
        own = (said * encoded).sum(-1, keepdim=True)
        same = self.directions(encoded) @ self.directions(self.bank_codes).T > SAME
        others = (said @ self.bank_codes.T).masked_fill(same, -torch.inf)
        return (own - torch.cat([own, others], -1).logsumexp(-1, keepdim=True)).squeeze(-1)

    def among(self, said: Tensor, meanings: Meanings) -> Tensor:
        """How well each noised text goes with each of the texts, but not with others of its own group, and with the
        others that are like it. (B, B + K)"""
        same = meanings.group[:, None] == meanings.group
        same = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        batch = (said @ self.code(meanings.words).T).masked_fill(same, -torch.inf)
        count = meanings.others.shape[1]
        like = self.code(meanings.others.flatten(0, 1)).unflatten(0, (len(said), count))  # (B, K, size)
        return torch.cat([batch, (like @ said[..., None]).squeeze(-1)], -1)

    def accuracy(self, denoised: Denoised, encoded: Meanings) -> Tensor:
        likeliest = self.among(self.reading(denoised), encoded).argmax(-1)
        return (likeliest == torch.arange(len(likeliest), device=likeliest.device)).float()

    def directions(self, codes: Tensor) -> Tensor:
        """Codes seen from the middle of the bank's, of length one. What all have in common tells none apart."""
        return F.normalize(codes - self.bank_codes.mean(0), dim=-1)

    @property
    def bank_codes(self) -> Tensor:
        """Codes of the bank's texts, made once. (BANK or fewer, size)"""
        if self._bank_codes is None or self._bank_codes.device != self.bank.device:
            with torch.no_grad():
                self._bank_codes = self.code(self.bank[self.bank[:, 0] != NOTHING])
        return self._bank_codes

    def encode(self, targets: Sequence[Meaning], lengths: Sequence[int]) -> Meanings:
        count = min(len(target.others) for target in targets)
        others = rows_of([other for target in targets for other in target.others[:count]])
        others = others.unflatten(0, (len(targets), count)) if count else others.new_zeros(len(targets), 0, 1)
        return Meanings(
            rows_of([target.words for target in targets]), torch.tensor([target.group for target in targets]), others
        )

    @torch.no_grad()
    def count(self, examples: Sequence[Example[Meaning]]) -> None:
        """Fill the bank, with texts of as many groups as there are."""
        texts = list({e.target.group: e.target.words for e in examples}.values())
        chosen = [texts[i] for i in torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:BANK]]
        rows = rows_of([words[: self.bank.shape[1]] for words in chosen])
        self.bank[: rows.shape[0], : rows.shape[1]] = rows


def most_alike(
    texts: Sequence[Sequence[int]], groups: Sequence[int], seed: int, pool: int = 2000, count: int = 4
) -> list[list[int]]:
    """For each text the `count` texts of other groups that share the most words with it, rare ones above all.

    Looked for among `pool` of them, by their numbers. Without such negatives whatever tells most texts apart, such as
    names, would be all that a code holds.
    """
    bags = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for bag, words in zip(bags, texts, strict=True):
        bag[np.asarray(words) % BUCKETS] = 1.0
    bags *= np.log(len(texts) / (1.0 + bags.sum(0)) + 1.0)
    bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-6)
    numbers, chosen = np.asarray(groups), np.random.default_rng(seed).permutation(len(texts))[:pool]
    found: list[list[int]] = []
    for start in range(0, len(texts), COMPARED):
        alike = bags[start : start + COMPARED] @ bags[chosen].T
        alike[numbers[start : start + COMPARED, None] == numbers[chosen]] = -1.0
        best = np.argsort(-alike, axis=1)[:, :count]
        found += [[int(chosen[i]) for i in row if sims[i] >= 0] for row, sims in zip(best, alike, strict=True)]
    return found


def rows_of(texts: Sequence[Sequence[int]]) -> Tensor:
    """Word ids in rows of one length, NOTHING behind the last. (B, m)"""
    rows = torch.full((len(texts), max(1, *map(len, texts))), NOTHING)
    for row, words in zip(rows, texts, strict=True):
        row[: len(words)] = torch.tensor(words, dtype=torch.long)
    return rows
