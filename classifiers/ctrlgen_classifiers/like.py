"""Nearness to a given text: `like: The Vaults is a cheap pub .`

The guide is a noisy channel (`channel.py`): how probable it is that the given text was made from the new one by
keeping, replacing, inserting and deleting words. It needs no training. The oracle counts the words kept in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.controls.template import word_ids
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import UsageError
from ctrlgen.text.alignment import common_words
from ctrlgen.text.joining import detokenize
from ctrlgen_classifiers.channel import Channel

LEAST_KEPT = 0.5  # share of the source's words in a text that is like it
LENGTH_RATE = 1.0  # nats that a text loses for every word that it is longer or shorter
BLANK, ANY_WORD = re.compile("_{3,}"), "___"
UNIFORM = 0.001  # share of the prior that every word has alike


@dataclass(frozen=True)
class Source:
    """The words of the given text, None for one that may be any."""

    words: tuple[str | None, ...]


class Like(Classifier):
    kind = "like"
    summary = "as few changes to a given text as the other controls ask for"
    syntax = "like: TEXT"
    example = "like: The Vaults is a cheap pub ."
    oracle = "words kept in order, counted"
    trained: ClassVar[bool] = False

    def __init__(self, model: DiffusionLM):
        self.tokenizer, self.fixed_length = model.tokenizer, model.fixed_length
        self.longest, self.places = model.longest, model.places
        self.channel = Channel(word_frequencies(model))

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Like:
        return cls(model)

    @classmethod
    def value_near(cls, words: Sequence[str | None]) -> str:
        return '"' + " ".join(ANY_WORD if word is None else word for word in words) + '"'

    def new_words(self, value: str) -> dict[str, str | None]:
        unknown = self.tokenizer.unk_id
        words = self.split(value)
        ids = self.source_ids(words)[: len(words)]
        return dict.fromkeys(word for word, id in zip(words, ids, strict=True) if id == unknown)

    def for_model(self, model: DiffusionLM) -> Like:
        return Like(model)

    def split(self, value: str) -> tuple[str, ...]:
        """The words of a text, which may stand in quotes."""
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        return tuple(self.tokenizer.split(value[1:-1] if quoted else value))

    def parse(self, value: str) -> Source:
        words = tuple(None if BLANK.fullmatch(word) else word for word in self.split(value))
        if not words:
            raise UsageError("like: no text is given; write for example `like: The Vaults is a cheap pub .`")
        if len(words) > self.longest:
            raise UsageError(f"like: the text has {len(words)} words; this model writes at most {self.longest}")
        return Source(words)

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        return [detokenize(words) for words in texts]

    def length_prior(self, target: Source, lengths: Sequence[int]) -> list[float]:
        """Near the source's."""
        return [-LENGTH_RATE * abs(length - len(target.words)) for length in lengths]

    def encode(self, targets: Sequence[Source], lengths: Sequence[int]) -> Tensor:
        """The source's size, then its words. (B, 1 + m)"""
        rows = [self.source_ids(target.words) for target in targets]
        encoded = torch.zeros(len(rows), 1 + max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(encoded, rows, strict=True):
            row[: 1 + len(ids)] = torch.tensor([len(ids), *ids])
        return encoded.to(self.channel.prior.device)

    def source_ids(self, words: Sequence[str | None]) -> list[int]:
        """As the model would write the source; an unknown word as <unk>."""
        ids = word_ids(words, self.tokenizer)
        return self.tokenizer.filled(ids, self.places) if self.fixed_length else ids

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        log_q, *rest = self.positions(denoised, encoded)
        return self.channel.log_prob(log_q, *rest)

    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """log p(source | this word here, the other positions as they are). (B, n, V)"""
        return self.channel.word_log_prob(*self.positions(denoised, encoded))

    def positions(self, denoised: Denoised, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p(position i holds the source's word j) (B, n, m), the source (B, m), its size and the text's (B,)."""
        sizes, source = encoded[:, 0], encoded[:, 1:]
        log_p = denoised.logits.log_softmax(-1)
        index = source.clamp(min=0)[:, None].expand(-1, log_p.shape[1], -1)
        log_q = log_p.gather(-1, index)
        unknown = index == self.tokenizer.unk_id  # may stand where it is kept, but nobody can be drawn to it
        log_q = torch.where(unknown, log_q.detach(), log_q)
        return log_q, source, sizes, denoised.lengths

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Source]) -> list[Verdict]:
        return [self.verdict(words, target.words) for words, target in zip(texts, targets, strict=True)]

    def verdict(self, words: Sequence[str], source: Sequence[str | None]) -> Verdict:
        read = [word for word in source if word is not None]
        kept = len(common_words(read, words))
        share = kept / max(1, len(read))
        return Verdict(share >= LEAST_KEPT, f"{kept} of {len(read)} words kept", correct=share, parts=len(read))


@torch.no_grad()
def word_frequencies(model: DiffusionLM) -> Tensor:
    """How frequent each word is, as the denoiser believes when all it is given is noise. (V,)"""
    length = max(model.lengths, key=lambda n: model.lengths[n], default=model.config.max_length)
    noise = torch.zeros(1, length, model.config.embedding_dim, device=model.device)
    noisiest = model.schedule.log_snr(torch.ones(1)).to(model.device)
    frequencies = model.denoiser(noise, noisiest).probs[0].mean(0)
    return (1 - UNIFORM) * frequencies + UNIFORM / len(frequencies)
