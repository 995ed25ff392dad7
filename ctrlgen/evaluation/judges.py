"""Language models that say what texts cost. They guide nothing; only the difference from human text means anything."""

from __future__ import annotations

from collections.abc import Sequence

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.language_model import CausalLM, LanguageModel
from ctrlgen.tokenizer import detokenize


class DomainJudge:
    """The autoregressive LM that `ctrlgen train-lm` made of the model's domain, over the model's own words.

    Raises CtrlgenError where there is none.
    """

    name = "domain LM"

    def __init__(self, model: DiffusionLM):
        self.lm = LanguageModel.load(model)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return self.lm.costs(texts)


class NamedJudge:
    """Any causal LM by hub id or path, on text as people write it."""

    def __init__(self, name: str):
        self.name = name
        self.lm = CausalLM.load(name)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return self.lm.costs([detokenize(words) for words in texts])
