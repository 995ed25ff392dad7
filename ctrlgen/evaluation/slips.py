"""Slips: words that hardly anybody would write there. The mean cost of a text hides them.

A slip is a text whose costliest word under the 5-gram cost model is costlier than that of 95% of human texts. Where the
vocabulary is large, what a word costs by its frequency alone is taken off, or every rare word would be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ctrlgen.evaluation.cost_models import NgramModel
from ctrlgen.evaluation.kneser_ney import END
from ctrlgen.evaluation.targets import Words
from ctrlgen.generation.slips import FEWEST_TEXTS, LARGE_VOCABULARY, SHARE, usual_costs


@dataclass(frozen=True)
class Slips:
    """What counts as one."""

    model: NgramModel
    threshold: float  # nats
    human_texts: int  # that the threshold is of

    @classmethod
    def fit(cls, model: NgramModel, human: Sequence[Words]) -> Slips | None:
        """None where there are too few human texts to say what is rare among them."""
        human = [words for words in human if words]
        if len(human) < FEWEST_TEXTS:
            return None
        return cls(model, float(np.quantile(worst_costs(model, human), SHARE)), len(human))

    def found(self, texts: Sequence[Words]) -> list[bool]:
        """Whether each text has a slip."""
        return [worst > self.threshold for worst in worst_costs(self.model, texts)]

    def as_json(self) -> dict[str, Any]:
        taken_off = is_large(self.model)
        return {"threshold": self.threshold, "human texts": self.human_texts, "unigram cost taken off": taken_off}


def is_large(model: NgramModel) -> bool:
    return model.ngrams.vocabulary > LARGE_VOCABULARY


def worst_costs(model: NgramModel, texts: Sequence[Words]) -> list[float]:
    """The cost of each text's costliest word, its end counted as one: nats."""
    words = [model.known(of) for of in texts]
    costs = model.ngrams.costs(words)
    if is_large(model):
        usual = usual_costs(torch.from_numpy(model.ngrams.frequencies).double()).numpy()
        costs = [nats - usual[[*model.ngrams.ids(of), END]] for nats, of in zip(costs, words, strict=True)]
    return [float(nats.max()) for nats in costs]
