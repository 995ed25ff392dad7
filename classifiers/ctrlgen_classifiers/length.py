"""Length control: `length: 12` or `length: 10-15`, counted in words and marks as the model writes them.

The model denoises exactly as many vectors as there are words, so this control needs no guide: it chooses n. A model of
fixed length (`mse`, as Diffusion-LM's) is guided towards `<end>` in the right place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import UsageError

TOLERANCE = 2  # words; Diffusion-LM counts such lengths as right
RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


class Length(Classifier):
    kind = "length"
    summary = "the number of words"
    syntax = "length: N, or length: FROM-TO"
    example = "length: 10-15"
    oracle = "counting"
    trained: ClassVar[bool] = False
    structural: ClassVar[bool] = True
    suite: ClassVar[str | None] = "length"
    task: ClassVar[str | None] = "length"

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Length:
        return GuidedLength(model.tokenizer.end_id) if model.fixed_length else cls()

    def parse(self, value: str) -> range:
        found = RANGE.fullmatch(value.strip())
        if not found:
            raise UsageError(f"length: {value!r} is not a length; write a number or a range, such as 12 or 10-15")
        fewest = int(found[1])
        most = int(found[2] or fewest)
        if not 1 <= fewest <= most:
            raise UsageError(f"length: {value!r} is no range; it must rise from at least 1")
        return range(fewest, most + 1)

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        return [str(len(words)) for words in texts]

    def asks(self, target: range) -> Asks:
        """Nothing but a length, which `allows_length` tells."""
        return Asks()

    def value_at(self, target: range, length: int) -> str:
        return str(length)

    def allows_length(self, target: range, length: int) -> bool:
        return length in target

    def encode(self, targets: Sequence[range], lengths: Sequence[int]) -> Tensor:
        return torch.tensor([length in target for target, length in zip(targets, lengths, strict=True)])

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return encoded.to(denoised.x_t).log()

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[range]) -> list[Verdict]:
        return [self.verdict(len(words), target) for words, target in zip(texts, targets, strict=True)]

    def verdict(self, length: int, target: range) -> Verdict:
        within = target.start - TOLERANCE <= length < target.stop + TOLERANCE
        detail = None if length in target else f"{length} words"
        return Verdict(length in target, detail, also={f"within {TOLERANCE}": within})


class GuidedLength(Length):
    """The length of a text that ends at the first `<end>`, words being independent given x_t:

    p(k words | x_t) = p(<end> at k) * prod_{i < k} (1 - p(<end> at i)), positions counted from 0.
    """

    structural: ClassVar[bool] = False

    def __init__(self, end_id: int):
        self.end_id = end_id

    def encode(self, targets: Sequence[range], lengths: Sequence[int]) -> Tensor:
        """Whether so many words are asked for. bool (B, n)"""
        return torch.tensor([[k in target for k in range(max(lengths))] for target in targets])

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        log_p = denoised.logits.float().log_softmax(-1)  # (B, n, V)
        end = log_p[..., self.end_id]  # (B, n)
        no_end = log_p.index_fill(-1, torch.tensor(self.end_id, device=log_p.device), -torch.inf).logsumexp(-1)
        log_p = end + no_end.cumsum(1) - no_end
        return log_p.masked_fill(~encoded.to(log_p.device), -torch.inf).logsumexp(1)
