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
from ctrlgen.evaluation.baselines.training import Corpus, Follow, read_corpus, unwatched
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.evaluation.systems import System
from ctrlgen.generation.generator import Generator

__all__ = ["BASELINES", "Follow", "check_baselines", "make_baselines", "unwatched"]

TRAINED: dict[str, Callable[[LanguageModel, Corpus, Follow], BestOf]] = {
    "fudge": make_fudge,
    "finetuned": make_finetuned,
}
BASELINES = (Rejection.name, *TRAINED)


def check_baselines(names: Sequence[str], training_data: str | None) -> None:
    """Raises UsageError for a name that is none, and where training data is needed."""
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"--baseline {name!r}: use {', '.join(BASELINES)}.{did_you_mean(name, BASELINES)}")
        if name in TRAINED and training_data is None:
            raise UsageError(f"--baseline {name} is trained before it writes: give --training-data")


def make_baselines(
    generator: Generator, names: Sequence[str], training_data: str | None, follow: Follow = unwatched
) -> list[System]:
    """The baselines named, trained on `training_data` where that has not been done before.

    Raises UsageError as `check_baselines` does, CtrlgenError where the model has no language model.
    """
    check_baselines(names, training_data)
    if not names:
        return []
    lm = LanguageModel.load(generator.model)
    corpus = read_corpus(generator, training_data) if training_data and not TRAINED.keys().isdisjoint(names) else None
    return [
        TRAINED[name](lm, corpus, follow) if corpus and name in TRAINED else Rejection(generator, lm)
        for name in dict.fromkeys(names)
    ]
