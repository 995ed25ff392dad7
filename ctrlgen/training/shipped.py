"""Recipes as text: those that come with ctrlgen, and any recipe written out with a word on every key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.training.denoising import Recipe
from ctrlgen.training.recipe import RECIPES, read_recipe, shipped_recipes

# What each key is for; docs/recipes.md has the same words, and a test that every key is here.
MEANINGS = {
    "data": {
        "train": "training texts: a file or a hub id",
        "validation": "held-out texts, which measure the loss and are never learned from",
        "text_column": "the column that holds the text",
        "min_count": "a word seen less often is not in the vocabulary",
        "max_vocab": "the most words of the vocabulary, special tokens included",
        "min_length": "a shorter text is left out, in words",
        "documents": "files of texts as lists of sentences, for a model with context",
        "leave_out": '{column = ["value", …]}: rows with one of these values are not read',
        "held_out": "share of the training texts held out, where validation names none; equal texts stay together",
        "labels": "columns of labels, each of which becomes a control",
    },
    "model": {
        "embedding_dim": "d, the size of the embedding that is diffused",
        "width": "of the transformer's blocks; a multiple of twice the heads",
        "layers": "blocks",
        "heads": "attention heads of each block",
        "max_length": "the longest text, in words",
        "dropout": "in the blocks, in training",
        "objective": "ce predicts words; mse predicts x_0, as Diffusion-LM does",
        "output": "full: a row of weights for each word; tied: logits from the words' vectors, an open vocabulary",
        "output_dim": "tied: size of the vector of each word that only the output sees",
        "pieces": "tied: how many vectors of pieces of spellings there are, 2 to 32767",
        "context": "how many words of earlier sentences can stand before a text",
    },
    "diffusion": {
        "schedule": "warp is learned; linear, cosine, sqrt are fixed",
        "min_noise": "σ/α at the clean end, for warp; multiply by √(d / 16) for another d",
        "max_noise": "σ/α at the noisy end, for warp",
        "steps": "discrete times, for the objective mse",
        "temperature": "at which texts are drawn unless told otherwise; lower: likelier, higher: more varied",
    },
    "training": {
        "steps": "training steps; the learning rate falls to zero at the last",
        "tokens_per_batch": "words of a step",
        "matrix_lr": "peak rate of Muon, which trains the blocks' matrices; 0 trains them by AdamW",
        "lr": "peak rate of AdamW, which trains everything else",
        "warmup_steps": "steps in which the rates rise",
        "decay_share": "last part of the run in which they fall",
        "ema": "decay of the average of the weights, which is the model that is saved",
        "clip": "largest norm of the gradient",
        "span_mask_rate": "share of the texts that are given clean outside some spans, for infilling and corrections",
        "mask_spans": "the most spans of such a text",
        "sampled_words": "tied: how many other words a batch tells its own apart from; 0 is all",
        "own_dropout": "tied: share of the words that do without their own vectors in a step",
        "learn": "tied: pieces learns how words are spelled, all else stays, classifiers too",
        "counted_vectors": "tied: the words' vectors start from counts of the words beside them, not from chance",
        "context_share": "share of the batches that have earlier sentences in front",
        "seed": "of weights, order and noise",
        "init": "a model to start from: a name, a directory or a hub id; one with a full output can become a tied one",
        "precision": "float32, bfloat16, or what the processor multiplies fast",
        "compile": "torch.compile: up to a quarter faster with AMX, after minutes of compiling",
        "log_every": "steps between lines of metrics.jsonl",
        "checkpoint_every": "steps between checkpoints, from which --resume goes on",
        "validate_every": "steps between validations, each of which saves the model",
    },
    "heads": {
        "steps": "training steps of each head that reads a column of labels",
        "tokens_per_batch": "words of a step",
        "judged": "texts written for the verdict at the end; 0 judges nothing",
    },
}


def recipe_path(name: str) -> Path:
    """Raises UsageError where no recipe of this name comes with ctrlgen."""
    names = shipped_recipes()
    if name not in names:
        raise UsageError(f"no recipe {name!r}: use {', '.join(names)}.{did_you_mean(name, names)}")
    return RECIPES / f"{name}.toml"


def commented(name: str) -> str:
    """A shipped recipe with every key: those that it leaves as they are stand behind `#`, with their defaults."""
    path = recipe_path(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    about = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(about) + "\n\n" + to_toml(read_recipe(path, fill=False), everything=True)


def to_toml(recipe: Recipe, everything: bool = False) -> str:
    """The keys that differ from their defaults; with `everything` the others too, behind `#`, and what each is for."""
    tables = []
    for table, kind in get_type_hints(Recipe).items():
        values = getattr(recipe, table)
        lines = []
        for key in dataclasses.fields(kind):
            value, default = getattr(values, key.name), default_of(key)
            if value == default and not everything:
                continue
            line = f"{key.name} = {toml(example_of(key) if value is None else value)}"
            line = f"# {line}" if value == default else line
            lines.append(f"{line:<34}  # {MEANINGS[table][key.name]}" if everything else line)
        if lines:
            tables.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(tables) + "\n"


def default_of(key: dataclasses.Field[Any]) -> Any:
    return key.default_factory() if key.default_factory is not dataclasses.MISSING else key.default


def example_of(key: dataclasses.Field[Any]) -> str:
    """What stands for a value that is none, which TOML cannot write."""
    return {"init": "e2e", "validation": "valid.csv", "text_column": "text"}.get(key.name, "")


def toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {toml(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
