"""How a classifier is trained: behind `ctrlgen train-classifier`, and for the columns of labels of a recipe.

Nothing here imports torch before something is trained, so that `--help` can show the rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrlgen.directories import replacing

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.checkpoint import DiffusionLM
    from ctrlgen.controls.classifier import Classifier
    from ctrlgen.training.fit import Progress, TrainingConfig

LR, MATRIX_LR, EMA = 0.002, 0.006, 0.995
VALIDATIONS = 5  # the best of them is kept


def head_config(steps: int, lr: float = LR, matrix_lr: float = MATRIX_LR, **others: Any) -> TrainingConfig:
    """How a head is trained in so many steps. `others` are further fields of `TrainingConfig`."""
    from ctrlgen.training.fit import TrainingConfig

    # heads do not resume, so a checkpoint at the end is enough
    config = TrainingConfig(steps=steps, lr=lr, matrix_lr=matrix_lr, ema=EMA, checkpoint_every=steps, **others)
    return config.paced(VALIDATIONS)


def train_into(
    directory: Path,
    kind: type[Classifier],
    model: DiffusionLM,
    name: str,
    rows: Dataset,
    text_column: str,
    label_column: str | None,
    config: TrainingConfig,
) -> Iterator[Progress]:
    """Train a classifier, which takes the place of `directory` once it is whole. See `Classifier.train`."""
    from ctrlgen.training.fit import RESUME

    with replacing(directory) as working:
        yield from kind.train(model, name, rows, text_column, label_column, config, working)
        (working / RESUME).unlink(missing_ok=True)
