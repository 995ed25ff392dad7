"""Other ways to write text under control, for the same requests on the same cores in the same seconds.

rejection   the plain language model; of what it draws, the best by the diffusion model's own guides
fudge       the language model, each next word reweighted by a prefix classifier (Yang and Klein 2021)
finetuned   the language model trained further on controls with their texts: what training for controls can do
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.evaluation.baselines.best_of import BestOf
from ctrlgen.evaluation.baselines.finetuned import make_finetuned
from ctrlgen.evaluation.baselines.fudge import make_fudge
from ctrlgen.evaluation.baselines.rejection import Rejection
from ctrlgen.evaluation.baselines.training import Corpus, read_corpus
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.evaluation.systems import Writer
from ctrlgen.generation.generator import Generator

TRAINED: dict[str, Callable[[LanguageModel, Corpus], BestOf]] = {
    "fudge": make_fudge,
    "finetuned": make_finetuned,
}
PEERS = (Rejection.name, *TRAINED)


def make_peers(generator: Generator, names: Sequence[str], training_data: str | None) -> list[Writer]:
    """The peers named, trained on `training_data` where that has not been done before.

    Raises UsageError for a name that is none and where training data is needed, CtrlgenError where the model has no
    language model.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--baseline {name!r}: use {', '.join(PEERS)}.{did_you_mean(name, PEERS)}")
        if name in TRAINED and training_data is None:
            raise UsageError(f"--baseline {name} is trained before it writes: give --training-data")
    lm = LanguageModel.load(generator.model)
    corpus = read_corpus(generator, training_data) if training_data and not TRAINED.keys().isdisjoint(names) else None
    return [TRAINED[name](lm, corpus) if corpus and name in TRAINED else Rejection(generator, lm) for name in names]
