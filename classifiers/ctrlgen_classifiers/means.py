"""Meaning: `means: The Vaults is a cheap pub .` asks for what a text says and leaves the words free.

The guide is a head that tells, at any noise, what a text says; an encoder of clean texts says what it should say
(`means_networks.py`). Its oracle is a sentence encoder that this project did not train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Verdict
from ctrlgen.data.labels import read_labels
from ctrlgen.data.texts import find_text_column
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.text.joining import detokenize
from ctrlgen.training.heads import Example
from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData
from ctrlgen_classifiers.means_networks import Meaning, MeansHead, most_alike, rows_of
from ctrlgen_classifiers.patterns.syntax import without_quotes
from ctrlgen_classifiers.sentence_encoder import MISSING, is_installed, similarities

HEAD_SIZE = {"width": 128, "size": 128}
LEAST_SIMILAR = 0.65  # cosine, by the oracle, of texts that mean the same
LENGTH_RATE = 0.15  # nats that a text loses for every word that it is longer or shorter
CODED = 512  # texts at a time


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
        """Each text with one that says the same: another of its group, or where there is none itself."""
        texts = [text.strip() if isinstance(text, str) else "" for text in data.rows[data.text_column]]
        encoded = model.tokenizer.encode_training(texts)
        fitting = [place for place, ids in enumerate(encoded) if 0 < len(ids) <= model.longest]
        if not fitting:
            raise CtrlgenError(f"the column {data.text_column!r} holds no text that fits")
        labels = group_labels(data, texts)
        groups: dict[str, dict[tuple[int, ...], None]] = {}
        for place in fitting:
            groups.setdefault(labels[place], {})[tuple(encoded[place])] = None
        rng = Random(data.seed)
        numbers = {label: number for number, label in enumerate(groups)}
        alike = most_alike([encoded[place] for place in fitting], [numbers[labels[p]] for p in fitting], data.seed)
        examples = []
        for place, others in zip(fitting, alike, strict=True):
            ids, label = tuple(encoded[place]), labels[place]
            same = [other for other in groups[label] if other != ids] or [ids]
            like = tuple(tuple(encoded[fitting[other]]) for other in others)
            examples.append(Example(list(ids), Meaning(rng.choice(same), numbers[label], like)))
        return Lessons(
            examples,
            networks={"head": HEAD_SIZE},
            facts={"groups": len(groups), "texts": len(examples)},
        )

    @classmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> MeansHead:
        return MeansHead(len(model.tokenizer), model.longest, model.config.layers, model.config.width, **config["head"])

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
        """Their codes. (B, size)"""
        return self.coded(targets)

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


def group_labels(data: TrainingData, texts: Sequence[str]) -> list[str]:
    """Which texts mean the same: those of an equal label, or else equal ones."""
    if data.label_column is None:
        return list(texts)
    column = find_text_column(data.rows.column_names, data.label_column, "the data")
    return [label or text for label, text in zip(read_labels(data.rows, column), texts, strict=True)]
