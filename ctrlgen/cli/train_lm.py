"""`ctrlgen train-lm`: a small language model of the same words, to judge texts by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, check_place, find_device, naming_resume

VALIDATIONS = 5


def train_lm(
    data: Annotated[str, typer.Option(help="Training texts: csv, tsv, jsonl, txt, parquet or a hub id.")],
    model: ModelOption = "e2e",
    validation: Annotated[str | None, typer.Option(help="Held-out texts; a share of the data by default.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 5000,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Words in a batch.")] = 2048,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 0.002,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory instead of the model's own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    only_slips: Annotated[
        bool,
        typer.Option(
            "--only-slips",
            help="Only learn which words are slips, for the language model that is there. It must not have read the "
            "held-out texts.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model's language model.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a language model to measure costs.

    It is small and autoregressive, knows the model's words, and says what a text costs and which words are slips.

    Example: ctrlgen train-lm --model my-model --data train.jsonl
    """
    from ctrlgen.checkpoint import CONFIG, directories_of, from_pretrained
    from ctrlgen.cli.display import follow_training
    from ctrlgen.directories import replacing
    from ctrlgen.errors import UsageError
    from ctrlgen.evaluation.train_language_model import learn_slips, split_ids
    from ctrlgen.evaluation.train_language_model import train_lm as run
    from ctrlgen.training.fit import RESUME, TrainingConfig

    loaded = from_pretrained(model, find_device(device))
    if only_slips:
        directory = out or directories_of(loaded, "lm")[0]
        if not (directory / CONFIG).exists():
            raise UsageError(f"{directory} holds no language model of yours yet: leave out --only-slips")
        if resume or force:
            raise UsageError("--only-slips trains nothing: leave out --resume and --force")
        training, held_out = split_ids(loaded, data, validation, text_column)
        bound = learn_slips(directory, loaded.tokenizer, training, held_out, loaded.device)
        usual = " more than usual" if bound.usual.any() else ""
        typer.echo(f"a slip costs over {bound.bound:.2f} nats{usual}; written to {directory}", err=True)
        return
    directory = (out or directories_of(loaded, "lm")[0]).resolve()
    check_place(directory, force, "language model", "vocabulary", "--out")
    config = TrainingConfig(steps=steps, tokens_per_batch=tokens_per_batch, lr=lr, seed=seed, ema=0.995)
    with naming_resume(), replacing(directory, resume=resume, keep=RESUME) as working:
        events = run(loaded, data, validation, text_column, config.paced(VALIDATIONS), working, resume=resume)
        follow_training(events, resumable=True)
    typer.echo(f"language model written to {directory}", err=True)
