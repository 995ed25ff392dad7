"""The networks behind labels: the guide, which reads noised text, and the oracle, which reads words."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.heads import Example, Head, hold_out, mix_layers
from ctrlgen.training.small import train_small
from ctrlgen_classifiers.labelled import OPEN, Ids, counterfactuals
from ctrlgen_classifiers.word_vectors import ModelVectors, OwnVectors, WordReader

if TYPE_CHECKING:
    from ctrlgen.training.fit import Progress

SMOOTHING = 2.0
ORACLE_TOKENS, ORACLE_HELD_OUT = 1024, 0.1


def by_field(logits: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Log-probabilities that sum to one within each field. (B, values of all fields) -> K times (B, values)"""
    return [part.log_softmax(-1) for part in logits.split(list(sizes), -1)]


def joint_log_prob(log_p: Sequence[Tensor], ids: Tensor) -> Tensor:
    """The sum over the fields asked for; given x_t, fields count as independent. ids (B, K) -> (B,)"""
    each = [field.gather(-1, id.clamp(min=0)[:, None]).squeeze(-1) for field, id in zip(log_p, ids.T, strict=True)]
    return (torch.stack(each, -1) * (ids != OPEN)).sum(-1)


def likeliest(log_p: Sequence[Tensor]) -> Tensor:
    """The best value of each field. (B, K)"""
    return torch.stack([field.argmax(-1) for field in log_p], -1)


class LabelHead(Head):
    """log p(value | x_t) of every field: its frequency, the strongest word for it and the strongest against it.

    What the word at one position says is log sum_w p(w | x_t) p(value | w) / p(value), from a lexicon counted in the
    training texts, corrected by an MLP over the denoiser's hidden states.
    """

    def __init__(self, sizes: Sequence[int], vocab_size: int, trunk_layers: int, trunk_width: int, width: int):
        super().__init__()
        self.sizes = sizes
        self.frequency = nn.Parameter(torch.zeros(sum(sizes)))  # log p(value)
        self.lexicon = nn.Parameter(torch.zeros(vocab_size, sum(sizes)))  # log p(value | word) / p(value)
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.hidden = nn.Sequential(nn.Linear(trunk_width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.correction = nn.Linear(width, sum(sizes))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def evidence(self, denoised: Denoised) -> Tensor:
        """What each position says of each value. (B, n, values of all fields)"""
        mixed = mix_layers(self.layer_mix, denoised)
        of_words = (denoised.known_probs @ self.lexicon.exp()).clamp(min=1e-6).log()
        return of_words + self.correction(self.hidden(mixed))

    def forward(self, denoised: Denoised) -> list[Tensor]:
        """log p(value | x_t): for each of the K fields, (B, values)."""
        evidence = self.evidence(denoised)
        beyond = ~denoised.mask[..., None]  # (B, n, 1)
        speaks_for = evidence.masked_fill(beyond, -torch.inf).amax(1)
        speaks_against = evidence.masked_fill(beyond, torch.inf).amin(1)
        return by_field(self.frequency + speaks_for + speaks_against, self.sizes)

    @torch.no_grad()
    def count(self, examples: Sequence[Example[Ids]]) -> None:
        """Frequencies and lexicon of the training texts, as if each word had been seen SMOOTHING times more."""
        starts = [sum(self.sizes[:field]) for field in range(len(self.sizes))]
        counts = torch.zeros_like(self.lexicon)
        for example in examples:
            values = [start + id for start, id in zip(starts, example.target, strict=True) if id != OPEN]
            counts[torch.tensor(sorted(set(example.tokens)))[:, None], torch.tensor(values)] += 1
        log_p = Frequencies.of(examples, self.sizes).log_p()
        ratios = []
        for seen, prior in zip(counts.split(list(self.sizes), -1), log_p, strict=True):
            given_word = (seen + SMOOTHING * prior.exp()) / (seen.sum(-1, keepdim=True) + SMOOTHING)
            ratios.append(given_word.log() - prior)
        self.lexicon.copy_(torch.cat(ratios, -1))
        self.frequency.copy_(torch.cat(log_p))

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """encoded: value ids (B, K), OPEN where a field is not asked for -> (B,)"""
        return joint_log_prob(self(denoised), encoded)

    def accuracy(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        asked = encoded != OPEN
        right = likeliest(self(denoised)) == encoded
        return (right & asked).sum(-1) / asked.sum(-1).clamp(min=1)

    def encode(self, targets: Sequence[Ids], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(targets)


@dataclass(frozen=True)
class Frequencies:
    """How often each field has each value: what a guess without reading the text is worth."""

    counts: list[Tensor]  # for each field, (values,)

    @classmethod
    def of(cls, examples: Sequence[Example[Ids]], sizes: Sequence[int]) -> Frequencies:
        ids = torch.tensor([e.target for e in examples])  # (N, K)
        return cls([torch.bincount(id[id != OPEN], minlength=size) for id, size in zip(ids.T, sizes, strict=True)])

    def log_p(self) -> list[Tensor]:
        """Smoothed by one, so that nothing is impossible."""
        return [((seen + 1) / (seen + 1).sum()).log() for seen in self.counts]

    def accuracies(self) -> list[float]:
        """In each field, how often its commonest value is right."""
        return [float(seen.max() / seen.sum().clamp(min=1)) for seen in self.counts]

    def loss(self, examples: Sequence[Example[Ids]]) -> float:
        """Measured as a head's validation loss is: nats a word, averaged over texts."""
        log_p = [field.expand(len(examples), -1) for field in self.log_p()]
        joint = joint_log_prob(log_p, torch.tensor([e.target for e in examples]))
        return float(-(joint / torch.tensor([len(e.tokens) for e in examples])).mean())


class CleanClassifier(WordReader):
    """The oracle: a convolution over words, the strongest answer of each filter, a linear layer (Kim 2014)."""

    def __init__(self, sizes: Sequence[int], embedding: OwnVectors | ModelVectors, dim: int, width: int):
        super().__init__(embedding)
        self.sizes = sizes
        self.filters = nn.Conv1d(dim, width, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(width, sum(sizes))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """log p(value | words), words (B, n): for each of the K fields, (B, values)."""
        h = self.filters(self.vectors(tokens).transpose(1, 2)).relu().amax(-1)  # (B, width)
        return by_field(self.output(self.dropout(h)), self.sizes)


def train_oracle(
    oracle: CleanClassifier, examples: Sequence[Example[Ids]], phrases: Sequence[dict[int, Ids]], seed: int
) -> Generator[Progress, None, list[float]]:
    """Train on clean texts and on their counterfactuals, yielding progress; returns the accuracy in each field on texts
    held out.

    The oracle must know the examples' new words (`WordReader.with_words`).
    """
    examples, held_out = hold_out(examples, ORACLE_HELD_OUT, len(examples), seed)
    examples += counterfactuals(examples, phrases, seed)

    def loss_of(tokens: Tensor, indices: Sequence[int]) -> Tensor:
        return -joint_log_prob(oracle(tokens), torch.tensor([examples[i].target for i in indices])).mean()

    yield from train_small(oracle, loss_of, LengthBatches([e.tokens for e in examples], ORACLE_TOKENS, seed))
    wanted = torch.tensor([e.target for e in held_out])
    got = torch.cat([likeliest(oracle(torch.tensor([e.tokens]))) for e in held_out])
    asked = wanted != OPEN
    return (((got == wanted) & asked).sum(0) / asked.sum(0).clamp(min=1)).tolist()
