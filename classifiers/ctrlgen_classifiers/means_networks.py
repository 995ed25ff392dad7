"""The networks behind `means:`: what a noised text says, and what a clean one says, as vectors of one space.

They are trained contrastively (van den Oord et al. 2018, InfoNCE; Radford et al. 2021): of all the texts of a batch,
the guide is to find the one that says what the noised text says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.training.heads import Example, Head, mix_layers

if TYPE_CHECKING:
    from ctrlgen.diffusion.bert import AnyDenoiser

BANK = 2048  # training texts among which a text is told apart when it guides
NOTHING = -1  # instead of a word, behind the last
RARE_WORDS = 2.0  # how much an unlikely word counts that says much of a feature; 0 would take the mean
LEAST_UNLIKE = 1e-6  # 1 - cosine of texts that mean the same
BUCKETS, COMPARED = 1024, 2048  # of words, where texts are compared by them; texts at a time
MOST_LIKENED = 2000  # texts with which each is compared by its words
SHARPNESS = 10.0  # nats at first between codes that agree and codes that have nothing in common


@dataclass(frozen=True)
class Meaning:
    """A text to be told apart from others, and which of those say the same."""

    words: tuple[int, ...]  # ids
    group: int
    others: tuple[tuple[int, ...], ...] = ()  # texts that say something else in much the same words


@dataclass(frozen=True)
class Meanings:
    """A batch of them."""

    words: Tensor  # (B, m), NOTHING behind the last
    group: Tensor  # (B,)
    others: Tensor  # (B, K, m)


class Summary(nn.Module):
    """Features of a text's words: two convolutions, then each feature looks for the words that tell most of it.

    Nothing beyond a text's end is read.
    """

    def __init__(self, width: int):
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.attention = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, n, width), mask bool (B, n) -> (B, width)"""
        for filters in self.filters:
            x = x * mask[..., None]
            x = x + F.gelu(filters(F.layer_norm(x, x.shape[-1:]).mul(mask[..., None]).transpose(1, 2))).transpose(1, 2)
        x = F.layer_norm(x, x.shape[-1:])
        weights = self.attention(x).masked_fill(~mask[..., None], -torch.inf).softmax(1)  # (B, n, width)
        return (weights * self.value(x)).sum(1)


class MeansHead(Head):
    """log p(this text, of all those of a bank and of some that differ from it in one place, says what x_t says).

    One network summarises noised and clean texts, by the denoiser's own vectors of words; of a noised one it reads the
    denoiser's hidden states as well.
    """

    bank: Tensor
    vectors: Tensor

    def __init__(self, vectors: Tensor, longest: int, trunk_layers: int, trunk_width: int, width: int, size: int):
        """vectors: of the vocabulary's words (V, k), which stay as they are."""
        super().__init__()
        self.register_buffer("vectors", F.layer_norm(vectors, vectors.shape[-1:]), persistent=False)
        self.from_words = nn.Linear(vectors.shape[1], width)
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.from_trunk = nn.Linear(trunk_width, width)
        self.summary = Summary(width)
        self.noised, self.clean = nn.Linear(width, size), nn.Linear(width, size)
        nn.init.zeros_(self.from_trunk.weight)  # so that at first a noised text is read as a clean one is
        nn.init.zeros_(self.from_trunk.bias)
        self.noised.load_state_dict(self.clean.state_dict())
        self.sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        ids = torch.int16 if len(vectors) < 2**15 else torch.int32
        self.register_buffer("bank", torch.full((BANK, longest), NOTHING, dtype=ids))
        self._bank_codes: Tensor | None = None

    def code(self, words: Tensor) -> Tensor:
        """Codes of clean texts (B, m), NOTHING behind the last word, of length one. (B, size)"""
        x = F.embedding(words.clamp(min=0).long(), self.from_words(self.vectors))
        return F.normalize(self.clean(self.summary(x, words != NOTHING)), dim=-1)

    def reading(self, denoised: Denoised) -> Tensor:
        """What a noised text says. Its length is how sure the guide is. (B, size)"""
        of_words = RARE_WORDS * self.from_words(self.vectors)  # (V, width)
        x = (denoised.known_probs @ of_words.exp()).clamp(min=1e-9).log() / RARE_WORDS
        x = x + self.from_trunk(mix_layers(self.layer_mix, denoised))
        return self.noised(self.summary(x, denoised.mask))

    def log_prob(self, denoised: Denoised, encoded: Meanings | Tensor) -> Tensor:
        """Against the other texts of the batch in training, else, given codes, against the bank. -> (B,)

        codes (B, 1 + K, size): of what is asked for, and of K texts that differ from it in one place. Each text speaks
        against it by 1 - the cosine of their directions: not at all where both mean the same.
        """
        said = self.sharpness.exp() * self.reading(denoised)
        if isinstance(encoded, Meanings):
            return self.among(said, encoded).log_softmax(-1).diagonal()
        directions = self.directions(encoded)
        own, like = encoded[:, :1], encoded[:, 1:]
        unlike_bank = 1 - directions[:, 0] @ self.directions(self.bank_codes).T  # (B, BANK)
        unlike = 1 - (directions[:, :1] * directions[:, 1:]).sum(-1)  # (B, K)
        weights = torch.cat([unlike_bank, unlike], -1).clamp(LEAST_UNLIKE, 1).log()
        others = torch.cat([said @ self.bank_codes.T, (like @ said[..., None]).squeeze(-1)], -1)
        asked = (own @ said[..., None]).squeeze(-1)  # (B, 1)
        return asked.squeeze(-1) - torch.cat([asked, weights + others], -1).logsumexp(-1)

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
        self.bank[: rows.shape[0], : rows.shape[1]] = rows.to(self.bank.dtype)

    def nearest_in_bank(self, words: Sequence[int], count: int) -> list[list[int]]:
        """The bank's texts with the most of these words and the fewest others, best first."""
        bank = self.bank.long()
        known = torch.isin(bank, torch.tensor(words, device=bank.device))
        alike = known.sum(-1) - 0.5 * (bank != NOTHING).sum(-1)
        alike = alike.masked_fill(bank[:, 0] == NOTHING, -torch.inf)
        best = alike.argsort(descending=True, stable=True)[: min(count, int(alike.isfinite().sum()))]
        return [[word for word in row if word != NOTHING] for row in bank[best].tolist()]


def vectors_of_words(denoiser: AnyDenoiser) -> Tensor:
    """What a denoiser knows of its words: their embeddings, and what its output knows them by. (V, k)"""
    if isinstance(denoiser, Denoiser) and denoiser.config.output == "tied":
        return denoiser.vocabulary().both.detach()
    embeddings = denoiser.embeddings()
    if isinstance(denoiser, Denoiser) and denoiser.config.objective == "ce":
        embeddings = torch.cat([embeddings, denoiser.output.weight], -1)
    return embeddings.detach()


def most_alike(texts: Sequence[Sequence[int]], groups: Sequence[int], seed: int, count: int = 3) -> list[list[int]]:
    """For each text the `count` texts of other groups that share the most words with it, rare ones above all.

    Looked for among MOST_LIKENED of them, by their numbers. Without such negatives whatever tells most texts apart,
    such as names, would be all that a code holds.
    """
    bags = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for bag, words in zip(bags, texts, strict=True):
        bag[np.asarray(words) % BUCKETS] = 1.0
    bags *= np.log(len(texts) / (1.0 + bags.sum(0)) + 1.0)
    bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-6)
    numbers, chosen = np.asarray(groups), np.random.default_rng(seed).permutation(len(texts))[:MOST_LIKENED]
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
