"""A model and the heads of its labels from one recipe, the same each time, and going on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, from_pretrained, read_config
from ctrlgen.controls.registry import check_new_name, classifier_kinds, new_classifier_directory, weights_fingerprint
from ctrlgen.data.labels import read_labels
from ctrlgen.data.texts import find_text_column, is_held_out, load_data, remaining
from ctrlgen.errors import CtrlgenError, UsageError, shown
from ctrlgen.files import write_text
from ctrlgen.training.classifiers import head_config, train_into
from ctrlgen.training.denoising import DataConfig, Recipe, Show, train
from ctrlgen.training.fit import RESUME, Progress
from ctrlgen.training.recipe import read_recipe
from ctrlgen.training.shipped import to_toml
from ctrlgen.training.trained import TrainedClassifier

if TYPE_CHECKING:
    from datasets import Dataset

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Part:
    """One training of several."""

    name: str
    events: Iterator[Progress]
    resumable: bool


def keep_recipe(recipe: Recipe, directory: Path) -> None:
    """Write it beside the model: `ctrlgen train DIRECTORY/recipe.toml` makes the same model again."""
    write_text(directory / RECIPE, to_toml(recipe))


def kept_recipe(directory: Path, overrides: dict[str, Any]) -> Recipe:
    """The recipe that an earlier run wrote there."""
    if not (directory / RECIPE).exists():
        raise CtrlgenError(f"{directory}: nothing to resume, {RECIPE} is missing")
    return read_recipe(directory / RECIPE, overrides)


def kind_for_labels() -> type[TrainedClassifier]:
    """The installed kind of classifier that learns a column of labels. Raises CtrlgenError where there is none."""
    kinds = classifier_kinds().values()
    found = [kind for kind in kinds if issubclass(kind, TrainedClassifier) and kind.learns_column]
    if not found:
        raise CtrlgenError("no installed classifier learns a column of labels")
    return found[0]


def check_labels(data: DataConfig) -> None:
    """Raises UsageError, before anything is trained, where a column is missing, cannot name a control, or has too few
    texts; CtrlgenError where its labels cannot be learned."""
    if not data.labels:
        return
    kind = kind_for_labels()
    rows, texts = split_rows(data, held_out=False)
    for column in data.labels:
        find_text_column(rows.column_names, column, data.train)
        if column == texts:
            raise UsageError(f"the column {shown(column)} cannot hold both the texts and their labels")
        check_new_name(column, kind.kind)
        pairs = zip(rows[texts], read_labels(rows, column), strict=True)
        labelled = {text.strip() for text, label in pairs if isinstance(text, str) and label}
        if len(labelled) < kind.fewest_texts:
            raise UsageError(
                f"{data.train}: only {len(labelled)} different texts to learn {shown(column)} from: at least "
                f"{kind.fewest_texts} are needed"
            )
        kind.refuse_labels(column, rows, texts, column)


def make(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = False,
    log_with: str | None = None,
    show: Show | None = None,
    device: torch.device,
) -> Iterator[Part]:
    """Train the denoiser, then a head and an oracle for each column of labels. What is finished is not done again."""
    if resume and (directory / RECIPE).exists() and not (directory / RESUME).exists():
        resume = False  # it was killed before its first checkpoint
        (directory / WEIGHTS).unlink(missing_ok=True)
    yield Part("model", train(recipe, directory, resume=resume, log_with=log_with, show=show, device=device), True)
    if not recipe.data.labels:
        return
    model = from_pretrained(str(directory), device)
    rows, column = split_rows(recipe.data, held_out=False)
    for label in recipe.data.labels:
        place = new_classifier_directory(model, label, kind_for_labels().kind)
        if not is_trained(place, model):
            yield Part(label, train_label(recipe, model, label, rows, column, place), False)


def split_rows(data: DataConfig, held_out: bool) -> tuple[Dataset, str]:
    """The rows that are held out, or all others, and the column of their texts."""
    source = data.validation if held_out and data.validation else data.train
    rows, column = load_data(source, data.text_column)
    rows = remaining(rows, data.leave_out)
    if data.validation:
        return rows, column
    texts = [text.strip() if isinstance(text, str) else "" for text in rows[column]]
    return rows.select([i for i, text in enumerate(texts) if is_held_out(text, data.held_out) == held_out]), column


def is_trained(place: Path, model: DiffusionLM) -> bool:
    return (place / CONFIG).exists() and read_config(place / CONFIG).get("trained_on") == weights_fingerprint(model)


def train_label(
    recipe: Recipe, model: DiffusionLM, label: str, rows: Dataset, column: str, place: Path
) -> Iterator[Progress]:
    heads, training = recipe.heads, recipe.training
    config = head_config(
        heads.steps, tokens_per_batch=heads.tokens_per_batch, seed=training.seed, precision=training.precision
    )
    return train_into(place, kind_for_labels(), model, label, rows, column, label, config)


def labels_of(rows: Dataset, columns: Sequence[str]) -> list[dict[str, str]]:
    """The labels that each row has."""
    by_column = {column: read_labels(rows, column) for column in columns}
    return [{c: values[i] for c, values in by_column.items() if values[i]} for i in range(len(rows))]
