"""`ctrlgen train-classifier`: teach a model a new control."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, check_place, find_device
from ctrlgen.errors import UsageError
from ctrlgen.training.classifiers import LR, MATRIX_LR, head_config, train_into


def train_classifier(
    kind: Annotated[str, typer.Argument(help="What to train; `ctrlgen controls` lists the kinds.")],
    data: Annotated[str, typer.Option(help="Texts, with labels where the kind needs them: a path or a hub id.")],
    model: ModelOption = "e2e",
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels; for `field`, columns.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="For `means`: the column whose equal values say that texts mean the same.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the control will be called; the kind by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 500,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Words in a batch.")] = 4096,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = LR,
    matrix_lr: Annotated[
        float, typer.Option(min=0.0, help="Of Muon, for matrices of a head's blocks (tree); 0: AdamW.")
    ] = MATRIX_LR,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and noise.")] = 0,
    init: Annotated[
        str | None,
        typer.Option(help="Start from this model's classifier; its oracle stays unless it reads the model's vectors."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory instead of the model's own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a classifier of that name.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a control for a model.

    It is an attribute classifier of noised texts over the frozen denoiser; its accuracy by noise level is printed.

    Example: ctrlgen train-classifier pos --model my-model --data train.jsonl
    """
    from ctrlgen.checkpoint import from_pretrained
    from ctrlgen.cli.display import follow_training
    from ctrlgen.controls.registry import check_name, classifier_directory, find_kind, new_classifier_directory
    from ctrlgen.data.texts import find_columns, load_data

    classifier = find_kind(kind)
    if group_column is not None and label_column is not None:
        raise UsageError("--group-column is a column of labels: leave out --label-column")
    label_column = group_column or label_column
    check_name(name or kind, kind)
    loaded = from_pretrained(model, find_device(device))
    directory = (out or new_classifier_directory(loaded, name or kind, kind)).resolve()
    check_place(directory, force, "classifier", "trained_on", "--name")
    rows, column = load_data(data, text_column)
    if label_column is not None:
        find_columns(rows.column_names, label_column, data)
    start = str(classifier_directory(from_pretrained(init), name or kind)) if init is not None else None
    config = head_config(steps, lr, matrix_lr, tokens_per_batch=tokens_per_batch, seed=seed, init=start)
    what = (loaded, name or kind, rows, column, label_column)
    follow_training(train_into(directory, classifier, *what, config))
    typer.echo(f"classifier written to {directory}", err=True)
