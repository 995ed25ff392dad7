"""Language models that say what texts cost. They guide nothing; only the difference from human text means anything."""

from __future__ import annotations

from collections.abc import Sequence

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.evaluation.kneser_ney import KneserNey
from ctrlgen.evaluation.language_model import CausalLM, LanguageModel
from ctrlgen.evaluation.metrics import Training
from ctrlgen.tokenizer import UNK, detokenize


class DomainJudge:
    """The autoregressive LM that `ctrlgen train-lm` made of the model's domain, over the model's own words.

    Raises CtrlgenError where there is none.
    """

    name = "domain LM"

    def __init__(self, model: DiffusionLM):
        self.lm = LanguageModel.load(model)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return self.lm.costs(texts)


class NgramJudge:
    """A Kneser-Ney 5-gram model of the training texts, over the model's own words: nothing neural in it."""

    name = "5-gram"

    def __init__(self, model: DiffusionLM, training: Training):
        self.tokenizer = model.tokenizer
        self.ngrams = KneserNey([self.known(words) for words in training.sentences])

    def known(self, words: Sequence[str]) -> list[str]:
        return [word if word in self.tokenizer else UNK for word in words]

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return [self.ngrams.cost(self.known(words)) for words in texts]


class NamedJudge:
    """Any causal LM by hub id or path, on text as people write it."""

    def __init__(self, name: str):
        self.name = name
        self.lm = CausalLM.load(name)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return self.lm.costs([detokenize(words) for words in texts])
