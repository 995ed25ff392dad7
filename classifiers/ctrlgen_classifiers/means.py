"""Meaning: `means: The Vaults is a cheap pub .` asks for what a text says and leaves the words free.

The guide is a head that tells, at any noise, what a text says; an encoder of clean texts says what it should say
(`means_networks.py`). Its oracle is a sentence encoder that this project did not train.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Verdict
from ctrlgen.data.labels import read_labels
from ctrlgen.data.texts import find_text_column
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.text.alignment import changed, changes
from ctrlgen.text.joining import detokenize
from ctrlgen.training.heads import Example
from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData
from ctrlgen_classifiers.means_networks import Meaning, MeansHead, most_alike, rows_of, vectors_of_words
from ctrlgen_classifiers.patterns.syntax import without_quotes
from ctrlgen_classifiers.sentence_encoder import MISSING, is_installed, similarities

HEAD_SIZE = {"width": 128, "size": 128}
LEAST_SIMILAR = 0.65  # cosine, by the oracle, of texts that mean the same
LENGTH_RATE = 0.15  # nats that a text loses for every word that it is longer or shorter
CODED = 512  # texts at a time
MOST_SAME = 16  # texts of a group that are looked at for one that says the same
NEIGHBOURS, COMPARED_WITH = 64, 32  # texts that differ in one place; texts of the bank that they are made of


class Means(TrainedClassifier):
    kind = "means"
    summary = "what a given text says, in any words"
    syntax = "means: TEXT"
    example = "means: The Vaults is a cheap pub ."
    oracle = "a sentence encoder (all-MiniLM-L6-v2): cosine at least 0.65"
    weight: ClassVar[float] = 4.0
    composed_weight: ClassVar[float] = 4.0

    head: MeansHead

    @classmethod
    def examples(cls, model: DiffusionLM, data: TrainingData) -> Lessons:
        """Each text with one that says the same: another of its group, or where there is none itself.

        Negatives are texts of other groups that are like it, and what says the same with one place as in another text.
        """
        texts = [text.strip() if isinstance(text, str) else "" for text in data.rows[data.text_column]]
        encoded = model.tokenizer.encode_training(texts)
        labels = group_labels(data, texts)
        fitting = [
            (tuple(ids), label) for ids, label in zip(encoded, labels, strict=True) if 0 < len(ids) <= model.longest
        ]
        if not fitting:
            raise CtrlgenError(f"the column {data.text_column!r} holds no text that fits")
        groups: dict[str, dict[tuple[int, ...], int]] = {}  # the different texts of each, with their places
        for place, (ids, label) in enumerate(fitting):
            groups.setdefault(label, {})[ids] = place
        numbers = {label: number for number, label in enumerate(groups)}
        alike = most_alike([ids for ids, _ in fitting], [numbers[label] for _, label in fitting], data.seed)
        words, rng = [model.tokenizer.decode(ids) for ids, _ in fitting], Random(data.seed)
        examples = []
        for (ids, label), others in zip(fitting, alike, strict=True):
            same = [other for other in groups[label] if other != ids]
            said = rng.choice(nearer_half(ids, rng.sample(same, min(MOST_SAME, len(same))))) if same else ids
            place = groups[label][said]
            like = [fitting[other][0] for other in others]
            like += [tuple(model.tokenizer.ids(nearer(words[place], words[other], rng))) for other in alike[place]]
            examples.append(Example(list(ids), Meaning(said, numbers[label], tuple(like))))
        return Lessons(
            examples,
            networks={"head": HEAD_SIZE},
            facts={"groups": len(groups), "texts": len(examples)},
        )

    @classmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> MeansHead:
        vectors = vectors_of_words(model.denoiser)
        return MeansHead(vectors, model.longest, model.config.layers, model.config.width, **config["head"])

    def parse(self, value: str) -> tuple[str, ...]:
        words = tuple(self.tokenizer.split(without_quotes(value)))
        if not words:
            raise UsageError(f"{self.name}: no text is given; write for example `{self.example}`")
        if len(words) > self.model.longest:
            raise UsageError(
                f"{self.name}: the text has {len(words)} words; this model reads at most {self.model.longest}"
            )
        return words

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        return [detokenize(words) for words in texts]

    def length_prior(self, target: tuple[str, ...], lengths: Sequence[int]) -> list[float]:
        """About as many words."""
        return [-LENGTH_RATE * abs(length - len(target)) for length in lengths]

    def encode(self, targets: Sequence[tuple[str, ...]], lengths: Sequence[int]) -> Tensor:
        """The codes of each and of texts that differ from it in one place. (B, 1 + NEIGHBOURS, size)"""
        texts = [[own, *self.neighbours(own)] for own in targets]
        texts = [row + row[:1] * (1 + NEIGHBOURS - len(row)) for row in texts]  # itself says nothing against it
        return self.coded([text for row in texts for text in row]).unflatten(0, (len(texts), 1 + NEIGHBOURS))

    def neighbours(self, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The text with one place as in a text of the bank that has much the same words, up to NEIGHBOURS times."""
        near = self.head.nearest_in_bank(self.tokenizer.ids(words), COMPARED_WITH)
        others = [
            tuple(changed(words, [change])) for ids in near for change in changes(words, self.tokenizer.decode(ids))
        ]
        return list(dict.fromkeys(other for other in others if other))[:NEIGHBOURS]

    def codes(self, texts: Sequence[Sequence[str]]) -> Tensor:
        return self.head.directions(self.coded(texts))

    @torch.no_grad()
    def coded(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """(N, size)"""
        device = self.head.bank.device
        encoded = [self.tokenizer.ids(words)[: self.model.longest] or [self.tokenizer.unk_id] for words in texts]
        parts = [self.head.code(rows_of(encoded[i : i + CODED]).to(device)) for i in range(0, len(encoded), CODED)]
        return torch.cat(parts)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[tuple[str, ...]]) -> list[Verdict]:
        if not is_installed():
            return [Verdict(None, f"{self.name} {MISSING}")] * len(texts)
        near = similarities([detokenize(words) for words in texts], [detokenize(words) for words in targets])
        return [
            Verdict(cosine >= LEAST_SIMILAR, f"similarity {cosine:.2f}", correct=max(0.0, cosine)) for cosine in near
        ]


def nearer_half(text: Collection[int], others: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those with the most words in common: the others may well leave out some of what it says."""
    words = set(text)
    by_nearness = sorted(others, key=lambda other: len(words ^ set(other)) / len(words | set(other)))
    return by_nearness[: (len(others) + 1) // 2]


def nearer(words: Sequence[str], other: Sequence[str], rng: Random) -> list[str]:
    """The text with one place as in the other text, drawn at random; the other text where they hardly differ."""
    found = changes(words, other)
    return (changed(words, [rng.choice(found)]) if found else []) or list(other)


def group_labels(data: TrainingData, texts: Sequence[str]) -> list[str]:
    """Which texts mean the same: those of an equal label, or else equal ones."""
    if data.label_column is None:
        return list(texts)
    column = find_text_column(data.rows.column_names, data.label_column, "the data")
    return [label or text for label, text in zip(read_labels(data.rows, column), texts, strict=True)]
