"""What an oracle, and the head of trees, knows of words: a matrix of its own, or the denoiser's vectors of words.

A matrix of its own has a row for each word of the vocabulary, learned from the texts of the classifier alone. The
vectors of a tied denoiser, e_w and u_w (`ctrlgen.diffusion.words`), are frozen and read through one learned projection:
what the denoiser knows of a word from all its texts, as pretrained word vectors are used elsewhere (Turian et al.
2010). So the network is small, learns from few texts, and reads words that the vocabulary lacks, by their spelling.
config.json says which it is, under `words`; one that says nothing has a matrix of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.data.texts import fitting
from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.diffusion.words import WordVectors
from ctrlgen.text.tokenizer import SPECIAL, WordTokenizer
from ctrlgen.training.heads import Example, Target

OWN, MODEL = "own", "model"


def source_for(model: DiffusionLM) -> str:
    """What a new classifier reads: the model's vectors, where new words have such as well."""
    return MODEL if model.opens else OWN


class ModelVectors(nn.Module):
    """The frozen denoiser's vectors [e_w; u_w] of words, projected to `dim` numbers."""

    def __init__(self, model: DiffusionLM, dim: int):
        """Raises ValueError where the model's output is not tied."""
        super().__init__()
        if not (model.opens and isinstance(model.denoiser, Denoiser)):
            raise ValueError("only a model with a tied output has vectors of words")
        self._denoiser = (model.denoiser,)  # hidden from parameters(): neither trained nor saved
        self.projection = nn.Linear(model.denoiser.config.embedding_dim + model.denoiser.config.output_dim, dim)

    @torch.no_grad()
    def known(self) -> WordVectors:
        """Of the vocabulary."""
        return self._denoiser[0].vocabulary()

    @torch.no_grad()
    def of_new(self, words: Sequence[str]) -> Tensor:
        """Of words that the vocabulary lacks, by their spelling. (k, d + u)"""
        return self._denoiser[0].words.of_new(words).both.to(self.projection.weight.device)

    def forward(self, ids: Tensor, new: Tensor | None = None) -> Tensor:
        """ids (B, n), from V on those of `new` (k, d + u) -> (B, n, dim)"""
        size = self._denoiser[0].config.vocab_size
        known = self.known()
        inside = ids.clamp(max=size - 1).to(known.embedding.device)
        vectors = WordVectors(*(part[inside] for part in known)).both.to(ids.device)
        if new is not None:
            vectors = torch.where((ids < size)[..., None], vectors, F.embedding((ids - size).clamp(min=0), new))
        return self.projection(vectors)


class AveragedVectors(ModelVectors):
    """Their mean over p(w | x_t), for heads."""

    def forward(self, probs: Tensor, new: None = None) -> Tensor:  # type: ignore[override]
        """probs (B, n, V) -> (B, n, dim)"""
        return self.projection(probs @ self.known().both)


class OwnVectors(nn.Embedding):
    """A learned row for each word of the vocabulary. New words are read as unknown ones."""

    def forward(self, ids: Tensor, new: Tensor | None = None) -> Tensor:
        """ids (B, n) -> (B, n, dim)"""
        return super().forward(ids)


def make_vectors(model: DiffusionLM, oracle: Mapping[str, Any]) -> OwnVectors | ModelVectors:
    """Those of an oracle, from what config.json says of it. Raises ValueError where the model has none such."""
    dim = oracle["size"]["dim"]
    return OwnVectors(len(model.tokenizer), dim) if is_own(oracle) else ModelVectors(model, dim)


def make_averaged(model: DiffusionLM, head: Mapping[str, Any]) -> nn.Module:
    """p(w | x_t) (B, n, V) -> (B, n, width), for a head of which config.json says this. Raises ValueError likewise."""
    if not is_own(head):
        return AveragedVectors(model, head["width"])
    words = nn.Linear(len(model.tokenizer), head["width"], bias=False)
    nn.init.normal_(words.weight, std=1.0)
    return words


def is_own(said: Mapping[str, Any]) -> bool:
    """Whether config.json says of a network that its words are a matrix of its own."""
    source = said.get("words", OWN)
    if source not in (OWN, MODEL):
        raise ValueError(f"unknown source of word vectors {source!r}: use {OWN} or {MODEL}")
    return bool(source == OWN)


class WordReader(nn.Module):
    """A network over the words of clean texts: an oracle."""

    def __init__(self, embedding: OwnVectors | ModelVectors):
        super().__init__()
        self.embedding = embedding
        self.new: Tensor | None = None  # vectors of new words (k, d + u), whose ids follow the vocabulary's

    @property
    def reads_model(self) -> bool:
        """Whether it reads the model's vectors, and so new words; with another model's it would read nonsense."""
        return isinstance(self.embedding, ModelVectors)

    def vectors(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, dim)"""
        return self.embedding(ids, self.new)

    def with_words(self, words: Sequence[str]) -> Self:
        """The same network for ids of these words as well, from V on. Weights are shared."""
        if not words or not isinstance(self.embedding, ModelVectors):
            return self
        wider = copy.copy(self)
        wider.new = self.embedding.of_new(words)
        return wider

    def reading(self, texts: Sequence[Sequence[str]], tokenizer: WordTokenizer) -> tuple[Self, list[list[int]]]:
        """The network that knows the words of these texts, and their ids."""
        if not self.reads_model:
            return self, [tokenizer.ids(words) for words in texts]
        ids, new = ids_with_new(texts, tokenizer)
        return self.with_words(new), ids


def ids_with_new(texts: Sequence[Sequence[str]], tokenizer: WordTokenizer) -> tuple[list[list[int]], list[str]]:
    """The ids of texts, and the words that the vocabulary lacks: their ids follow its own."""
    new: dict[str, int] = {}
    size, unknown = len(tokenizer), tokenizer.unk_id

    def id_of(word: str, id: int) -> int:
        return new.setdefault(word, size + len(new)) if id == unknown and word not in SPECIAL else id

    ids = [[id_of(word, id) for word, id in zip(words, tokenizer.ids(words), strict=True)] for words in texts]
    return ids, list(new)


def training_ids(texts: Sequence[Sequence[str]], model: DiffusionLM, source: str) -> tuple[list[list[int]], list[str]]:
    """The same for texts to learn from; no words are new to a model that cannot make vectors of them.

    Raises CtrlgenError where almost nothing can be used.
    """
    ids, new = ids_with_new(texts, model.tokenizer)
    known = [known_ids(of_text, model.tokenizer) for of_text in ids]
    fitting(known, 1, model.config.max_length, model.tokenizer.unk_id, source)
    return (ids, new) if model.opens else (known, [])


def known_ids(ids: Sequence[int], tokenizer: WordTokenizer) -> list[int]:
    """Ids as the vocabulary alone has them: new words are unknown."""
    return [id if id < len(tokenizer) else tokenizer.unk_id for id in ids]


def with_known_ids(example: Example[Target], tokenizer: WordTokenizer) -> Example[Target]:
    """An example without new words, for heads."""
    return Example(known_ids(example.tokens, tokenizer), example.target)
