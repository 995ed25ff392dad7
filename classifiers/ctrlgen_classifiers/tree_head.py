"""The guide of tree and span controls: what a noised text says of every span of its words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.blocks import LEAST_WIDTH, TIME_FEATURES, Block, rotary
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.precision import precise
from ctrlgen.training.heads import Head, mix_layers
from ctrlgen_classifiers.brackets import Bracketing
from ctrlgen_classifiers.chart import EMPTY, OPEN, Labels, SpanScorer, upper

HEADS = 4  # of attention


class TreeHead(Head):
    """log p(class | x_t) of every span: blocks like the denoiser's own, then an MLP over the span's ends."""

    allowed: Tensor
    no_time: Tensor

    def __init__(self, labels: Labels, trunk_layers: int, trunk_width: int, words: nn.Module, width: int, layers: int):
        """words: p(w | x_t) (B, n, V) -> (B, n, width), see `word_vectors.make_averaged`."""
        super().__init__()
        self.labels = labels
        self.register_buffer("allowed", labels.allowed(), persistent=False)
        self.register_buffer("no_time", torch.zeros(1, TIME_FEATURES), persistent=False)  # hidden states know it
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.input = nn.Linear(trunk_width, width)
        self.words = words
        self.blocks = nn.ModuleList(Block(width, HEADS) for _ in range(layers))
        self.scorer = SpanScorer(width, width, len(labels))

    def forward(self, denoised: Denoised, wanted: Tensor | None = None) -> Tensor:
        """(B, wanted spans, classes), see `SpanScorer`; meaningless where a span ends beyond its row."""
        mixed = mix_layers(self.layer_mix, denoised)
        h = self.input(mixed) + self.words(denoised.known_probs)  # (B, n, width)
        n = h.shape[1]
        h = F.pad(h, (0, 0, 0, max(0, LEAST_WIDTH - n)))  # see `Denoiser.widened`
        inside = F.pad(denoised.mask, (0, h.shape[1] - n))
        rotation = rotary(h.shape[1], h.shape[2] // HEADS, h)
        for block in self.blocks:
            h = block(h, self.no_time, rotation, inside[:, None, None])
        h = F.layer_norm(h, h.shape[-1:]) * inside[..., None]
        return self.scorer(h[:, :n], wanted).log_softmax(-1)

    def log_prob(self, denoised: Denoised, encoded: Tensor, empty_weight: float = 1.0) -> Tensor:
        """encoded: asks (B, n, n), see `Labels` -> (B,)"""
        asked = upper(encoded)
        wanted = (asked != OPEN).any(0)  # by any row
        asked = asked[:, wanted]
        log_p = self(denoised, wanted).masked_fill(~self.allowed[asked], -torch.inf).logsumexp(-1)  # (B, wanted)
        weight = (asked != OPEN) + (empty_weight - 1.0) * (asked == EMPTY)
        return precise(weight * log_p).sum(1).to(log_p)

    def accuracy(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """F1 of the classes guessed for each span alone, the chart being asks for exactly one class."""
        guess, asked = EMPTY + self(denoised).argmax(-1), upper(encoded)
        there, guessed = asked > EMPTY, (guess > EMPTY) & (asked != OPEN)
        found = (there & (guess == asked)).sum(1)
        return 2 * found / (there.sum(1) + guessed.sum(1)).clamp(min=1)

    def encode(self, targets: Sequence[Bracketing], lengths: Sequence[int]) -> Tensor:
        return self.labels.chart(targets, max(lengths))
