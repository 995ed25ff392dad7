"""Train the toy model that most tests share: python tests/make_toy_model.py

It is small enough to be trained within a minute, and is committed in tests/toy_model so that tests need not.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

from toy_grammar import write_toy_data

from ctrlgen.checkpoint import DiffusionConfig, from_pretrained
from ctrlgen.data.texts import load_data
from ctrlgen.diffusion.denoiser import ModelConfig
from ctrlgen.training.denoising import DataConfig, Recipe, train
from ctrlgen.training.fit import METRICS, RESUME, TrainingConfig
from ctrlgen_classifiers import pos

DIRECTORY = Path(__file__).parent / "toy_model"
TOY_MODEL = ModelConfig(embedding_dim=8, width=32, layers=2, heads=2, max_length=12)
TOY_TRAINING = TrainingConfig(
    steps=240, tokens_per_batch=512, warmup_steps=10, lr=0.005, ema=0.98, precision="float32", log_every=60,
    checkpoint_every=10_000, validate_every=240,
)  # fmt: skip


def make_toy_model(data: Path, directory: Path) -> None:
    """A denoiser of toy sentences, and a POS head from their tags."""
    recipe = Recipe(DataConfig(str(data)), TOY_MODEL, DiffusionConfig(), TOY_TRAINING)
    for _ in train(recipe, directory, device="cpu"):
        pass
    model = from_pretrained(str(directory))
    rows, column = load_data(str(data))
    training = dataclasses.replace(TOY_TRAINING, steps=150, validate_every=150, matrix_lr=0.0)
    pos.HEAD_SIZE = {"width": 32}
    for _ in pos.Pos.train(model, "pos", rows, column, None, training, directory / "classifiers" / "pos"):
        pass
    for path in [*directory.rglob(RESUME), *directory.rglob(METRICS)]:
        path.unlink()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "toy"
        make_toy_model(write_toy_data(Path(temporary) / "toy.jsonl"), made)
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        shutil.copytree(made, DIRECTORY)
