"""Cost models: language models that say what texts cost. They guide nothing; only the difference from human text means
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Protocol

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation.kneser_ney import KneserNey
from ctrlgen.evaluation.novelty import Training
from ctrlgen.generation.small_lm import SmallLM, find_lm
from ctrlgen.text.joining import detokenize
from ctrlgen.text.tokenizer import UNK


class CostModel(Protocol):
    """A language model that says what texts cost."""

    name: str

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """Nats a token of each text."""
        ...


class DomainModel:
    """The autoregressive LM that `ctrlgen train-lm` made of the model's domain, over the model's own words.

    Raises CtrlgenError where there is none that fits.
    """

    name = "domain LM"

    def __init__(self, model: DiffusionLM):
        self.lm = SmallLM(find_lm(model), model.tokenizer, model.device)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return [mean(nats) for nats in self.lm.costs(texts)]


class NgramModel:
    """A Kneser-Ney 5-gram model of the training texts, over the model's own words: nothing neural in it."""

    name = "5-gram"

    def __init__(self, model: DiffusionLM, training: Training):
        self.tokenizer = model.tokenizer
        self.ngrams = KneserNey(self.known(words) for words in training.sentences)

    def known(self, words: Sequence[str]) -> list[str]:
        return [word if word in self.tokenizer else UNK for word in words]

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return [float(nats.mean()) for nats in self.ngrams.costs([self.known(words) for words in texts])]


class NamedModel:
    """Any causal LM by hub id or path, on text as people write it."""

    def __init__(self, name: str):
        from ctrlgen.evaluation.language_model import CausalLM  # transformers takes a while to import

        self.name = name
        self.lm = CausalLM.load(name)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        return self.lm.costs([detokenize(words) for words in texts])


def cost_models_of(
    model: DiffusionLM, training: Training | None, names: Sequence[str]
) -> tuple[list[CostModel], list[str]]:
    """The model's own autoregressive LM where it has one, 5-grams of the training texts if given, and LMs by name.

    With them, notes about what is missing. Raises CtrlgenError for a name that cannot be loaded.
    """
    cost_models: list[CostModel] = []
    notes = []
    try:
        cost_models.append(DomainModel(model))
    except CtrlgenError as error:
        notes.append(f"cost under the domain's LM is left empty: {error}")
    if training is not None:
        cost_models.append(NgramModel(model, training))
    return cost_models + [NamedModel(name) for name in names], notes
