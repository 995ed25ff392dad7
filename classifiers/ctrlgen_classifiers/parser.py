"""A small constituency parser of clean text: the oracle of tree and span controls. It never guides.

Vectors of words (`word_vectors`), a bidirectional LSTM, a score for every label of every span, and the best tree by CKY
(Stern et al. 2017; labels are learned each span for itself, as in Teng and Zhang 2018).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.heads import Example, hold_out
from ctrlgen.training.small import train_small
from ctrlgen_classifiers.brackets import Bracketing, Constituent, labelled_f1
from ctrlgen_classifiers.chart import Labels, SpanScorer, best_trees, upper
from ctrlgen_classifiers.word_vectors import ModelVectors, OwnVectors, WordReader

if TYPE_CHECKING:
    from ctrlgen.text.tokenizer import WordTokenizer
    from ctrlgen.training.fit import Progress

TOKENS = 2048
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 1000
UNKNOWN_SHARE = 0.03  # of the words, hidden in training, so that unknown ones can be read where none are made of pieces


class CleanParser(WordReader):
    """log p(class | words) of every span, and the trees they make."""

    def __init__(self, labels: Labels, embedding: OwnVectors | ModelVectors, unk_id: int, dim: int, width: int):
        super().__init__(embedding)
        self.labels, self.unk_id = labels, unk_id
        self.lstm = nn.LSTM(dim, width, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.dropout = nn.Dropout(0.2)
        self.scorer = SpanScorer(2 * width, width, len(labels))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, n) -> (B, spans, classes)"""
        if self.training and not self.reads_model:
            tokens = tokens.masked_fill(torch.rand(tokens.shape) < UNKNOWN_SHARE, self.unk_id)
        h, _ = self.lstm(self.dropout(self.vectors(tokens)))
        return self.scorer(self.dropout(h)).log_softmax(-1)

    def parse_texts(self, texts: Sequence[Sequence[str]], tokenizer: WordTokenizer) -> list[tuple[Constituent, ...]]:
        """The constituents of each text of words."""
        reading, ids = self.reading(texts, tokenizer)
        return reading.parse(ids)

    @torch.no_grad()
    def parse(self, sentences: Sequence[Sequence[int]]) -> list[tuple[Constituent, ...]]:
        """The constituents of each sentence."""
        trees: list[tuple[Constituent, ...]] = [()] * len(sentences)
        batches = LengthBatches([s or [self.unk_id] for s in sentences], TOKENS, seed=0)
        for indices in batches.epoch(0):
            for index, tree in zip(indices, best_trees(self(batches.tokens(indices)), self.labels), strict=True):
                trees[index] = tree
        return trees


def train_parser(
    parser: CleanParser, examples: Sequence[Example[Bracketing]], seed: int
) -> Generator[Progress, None, dict[str, float]]:
    """Train on clean texts, yielding progress; returns the agreement with trees held out, whose texts it never saw."""
    examples, held_out = hold_out(examples, HELD_OUT_SHARE, MOST_HELD_OUT, seed)

    def loss_of(tokens: Tensor, indices: Sequence[int]) -> Tensor:
        asked = upper(parser.labels.chart([examples[i].target for i in indices], tokens.shape[1]))  # (B, spans)
        log_p = parser(tokens)[asked > 0]  # (spans, classes)
        return -log_p.gather(-1, asked[asked > 0][:, None] - 1).sum() / tokens.numel()

    yield from train_small(parser, loss_of, LengthBatches([e.tokens for e in examples], TOKENS, seed))
    return agreement(parser, held_out)


def agreement(parser: CleanParser, examples: Sequence[Example[Bracketing]]) -> dict[str, float]:
    """How far the parser finds the trees given: labelled F1 (mean over texts), and the share without any difference."""
    parsed = parser.parse([e.tokens for e in examples])
    wanted = [e.target.constituents for e in examples]
    pairs = list(zip(wanted, parsed, strict=True))
    return {
        "f1": mean(labelled_f1(one, other)[0] for one, other in pairs),
        "exact": mean(set(one) == set(other) for one, other in pairs),
        "sentences": len(pairs),
    }
