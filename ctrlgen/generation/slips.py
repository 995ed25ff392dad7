"""Slips of finished texts: words that hardly anybody would write there. The mean cost of a text hides them.

A text has a slip if its worst word, by the model's small language model, is worse than that of 95% of human texts. A
word is as bad as it is costly; where the vocabulary is large, what it costs by its frequency alone is taken off, or
every rare word would be one. `evaluation/slips.py` counts slips, and ends of texts among them, by another model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ctrlgen.checkpoint import read_weights, save_tensors
from ctrlgen.errors import CtrlgenError

FILE = "slips.safetensors"  # beside the language model
SHARE = 0.95  # of human texts that have no slip
LARGE_VOCABULARY = 5_000  # different words
FEWEST_TEXTS = 20  # human ones


@dataclass(frozen=True)
class SlipBound:
    """What counts as a slip."""

    usual: Tensor  # (V,), what each word costs by its frequency, 0 where the vocabulary is small: nats
    bound: float  # nats

    @classmethod
    def fit(
        cls, counts: Tensor, human: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], unknown: int
    ) -> SlipBound | None:
        """Of human texts and what their words cost; `counts` (V,) of each word in the training texts. None where there
        are too few human texts to say what is rare among them."""
        usual = torch.zeros(len(counts))
        if len(counts) > LARGE_VOCABULARY:
            usual = usual_costs(counts)
        found = [worst_word(ids, nats, unknown, usual) for ids, nats in zip(human, costs, strict=True)]
        worst = torch.tensor([nats for _, nats in filter(None, found)])
        return cls(usual, worst.quantile(SHARE).item()) if len(worst) >= FEWEST_TEXTS else None

    def save(self, directory: Path) -> None:
        save_tensors(directory / FILE, {"usual": self.usual, "bound": torch.tensor(self.bound)})

    @classmethod
    def load(cls, directory: Path, words: int) -> SlipBound | None:
        """That of the language model of this many words in a directory; None where it has none."""
        if not (directory / FILE).exists():
            return None
        tensors = read_weights(directory / FILE)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes != {"usual": (words,), "bound": ()} or not all(t.isfinite().all() for t in tensors.values()):
            raise CtrlgenError(f"{directory / FILE}: does not fit the language model")
        return cls(tensors["usual"], tensors["bound"].item())


def usual_costs(counts: Tensor) -> Tensor:
    """What each id costs by how often it occurs, with add-one smoothing. (V,) -> nats (V,)

    V is as many ids as there are counts of: here the words of the model, in `evaluation/slips.py` the words of the
    training texts and the ids of the n-gram model for a start, an end and an unseen word.
    """
    return -((counts + 1) / (counts.sum() + len(counts))).log()


def worst_word(
    ids: Sequence[int],
    nats: Sequence[float],
    unknown: int,
    usual: Tensor | None = None,
    given: Collection[int] = (),
) -> tuple[int, float] | None:
    """The place of the word that costs most beyond what is `usual`, and how much more: nats. Words with the id
    `unknown` and those at the places `given` are not judged; None where there are no others."""
    judged = [place for place, id in enumerate(ids) if id != unknown and place not in given]
    more = [nats[place] - (0.0 if usual is None else usual[ids[place]].item()) for place in judged]
    return max(zip(judged, more, strict=True), key=lambda found: found[1], default=None)
