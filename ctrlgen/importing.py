"""Checkpoints of the original Diffusion-LM (Li et al. 2022) as models of ours: `ctrlgen import`.

A folder as its `scripts/train.py` leaves it: `training_args.json`, `vocab.json`, weights in `ema_RATE_STEP.pt` or
`modelSTEP.pt`, and `random_emb.torch`. Nothing in it is executed: weights are read by torch's restricted unpickler.
The sizes are read off the weights, for the folder does not say them; only the number of attention heads cannot be.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlgen.checkpoint import CARD, WEIGHTS, DiffusionConfig, DiffusionLM, read_config, save_pretrained
from ctrlgen.diffusion.bert import BertDenoiser, BertDenoiserConfig
from ctrlgen.diffusion.schedule import DISCRETE, SIMPLE, DiscreteSchedule
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.files import write_text
from ctrlgen.text.tokenizer import END, PAD, START, UNK, WordTokenizer

ARGUMENTS, VOCABULARY, FIRST_EMBEDDINGS = "training_args.json", "vocab.json", "random_emb.torch"
WEIGHTS_NAME = re.compile(r"(?:ema_(?P<rate>\d*\.?\d+)_|model)(?P<step>\d+)\.pt")
HEAD_WIDTH = 64  # of an attention head, in BERT
NAMES = {"START": START, "END": END, "UNK": UNK, "PAD": PAD}  # the original's special words, and ours
RENAMED = {  # tensors; BERT's layers are renamed by their prefix
    "lm_head.weight": "word_embedding",
    "lm_head.bias": "word_bias",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}
LAYER, OUR_LAYER = "input_transformers.layer.", "layers."
NOT_KEPT = ("position_ids", "word_embedding.weight")  # the latter is lm_head.weight, see `rename`

# What other checkpoints of the same code can be, by argument: the values that are understood, and what others mean.
UNDERSTOOD: dict[str, tuple[tuple[Any, ...], str]] = {
    "experiment_mode": (("lm",), "a conditional model (conditional_gen) needs a source text"),
    "model_arch": (("transformer",), "a U-Net, as for images, is no BERT encoder"),
    "training_mode": (("e2e", "e2e-simple"), "its embeddings were not trained with it"),
    "class_cond": ((False, None), "a model conditioned on classes"),
    "learn_sigma": ((False, None), "a model that predicts variances"),
    "predict_xstart": ((True,), "a model that predicts the noise, not x_0"),
    "logits_mode": ((1, None), "a model that rounds by distance, not by its lm_head"),
    "use_bert_tokenizer": (("no", None), "a model of word pieces, not words"),
    "noise_schedule": (tuple(SIMPLE), "a noise schedule that is not known here"),
    "padding_mode": (("pad", "block"), "a way of padding that is not known here"),
}


@dataclass(frozen=True)
class Original:
    """A folder of the original, read and found whole."""

    directory: Path
    weights: Path
    arguments: dict[str, Any]  # training_args.json
    words: list[str]
    state: dict[str, Tensor]  # float32, with the original's names


def import_checkpoint(directory: Path, heads: int | None = None, weights: str | None = None) -> tuple[DiffusionLM, str]:
    """The model in a folder of the original's, and a card that says where it comes from.

    heads: of attention; hidden size / 64 unless given. weights: the name of one of the folder's weight files; the EMA
    weights of the last step unless given. Raises CtrlgenError in one line where anything is missing, damaged, or of a
    kind that is not understood.
    """
    original = read_original(directory, weights)
    config = read_sizes(original, heads)
    steps = whole_number(original, "diffusion_steps")
    name = original.arguments["noise_schedule"]
    try:
        schedule = DiscreteSchedule(name, steps)
    except ValueError as error:
        raise CtrlgenError(f"{directory / ARGUMENTS}: diffusion_steps: {error}") from error
    with torch.device("meta"):  # compared before memory is taken
        denoiser = BertDenoiser(config, schedule)
    state = rename(original.state)
    refuse_other_tensors(original.weights, state, denoiser.state_dict())
    denoiser.load_state_dict(state, assign=True)
    tokenizer = make_tokenizer(directory / VOCABULARY, original.words)
    diffusion = DiffusionConfig(schedule=DISCRETE + name, steps=steps)
    model = DiffusionLM(denoiser.eval().requires_grad_(False), schedule, tokenizer, diffusion)
    return model, card(original, config, steps)


def save_imported(model: DiffusionLM, text: str, directory: Path) -> None:
    """Write an imported model's files, its weights in float32 or they would no longer be the original's."""
    save_pretrained(model, directory, half=False)
    write_text(directory / CARD, text)


def read_original(directory: Path, weights: str | None = None) -> Original:
    """Read a folder and refuse what is not understood, by name."""
    if not directory.is_dir():
        raise CtrlgenError(f"{directory}: no such directory")
    if (directory / WEIGHTS).exists():
        raise CtrlgenError(f"{directory}: is a model of ctrlgen already; use it with --model")
    arguments = read_config(directory / ARGUMENTS)
    for key, (known, otherwise) in UNDERSTOOD.items():
        value = arguments.get(key)
        if not any(value is one or (value == one and isinstance(value, type(one))) for one in known):
            raise CtrlgenError(f"{directory / ARGUMENTS}: {key} is {value!r}: {otherwise}; it cannot be imported")
    file = find_weights(directory, weights)
    words = read_vocabulary(directory / VOCABULARY)
    state = read_tensors(file)
    if (directory / FIRST_EMBEDDINGS).exists():
        read_tensors(directory / FIRST_EMBEDDINGS)  # the embeddings before training: only refused where damaged
    return Original(directory, file, arguments, words, state)


def find_weights(directory: Path, name: str | None) -> Path:
    """The file of that name, or the EMA weights of the last step, or plain ones where there are none."""
    found = {path.name: match for path in directory.iterdir() if (match := WEIGHTS_NAME.fullmatch(path.name))}
    if name is not None:
        if name in found:
            return directory / name
        listed = ", ".join(sorted(found)) or "none"
        raise UsageError(f"{directory}: no weights called {name!r}; there are {listed}")
    if not found:
        raise CtrlgenError(f"{directory}: holds no weights: neither ema_RATE_STEP.pt nor modelSTEP.pt")

    def preference(name: str) -> tuple[bool, int, float]:
        rate, step = found[name]["rate"], int(found[name]["step"])
        return rate is not None, step, float(rate or 0.0)

    return directory / max(found, key=preference)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file, as float32. What holds anything else, code above all, is refused unread."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise CtrlgenError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CtrlgenError(f"{path}: no weights alone; what else it holds, such as code, is never run") from error
    except Exception as error:  # torch and zipfile raise many kinds, all meaning the same here
        raise CtrlgenError(f"{path}: truncated or not a file of weights") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CtrlgenError(f"{path}: not a dictionary of weights")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CtrlgenError(f"{path}: {name!r} is no plain tensor")
        if tensor.is_floating_point():
            tensors[name] = tensor.detach().float().contiguous()
            if not tensors[name].isfinite().all():
                raise CtrlgenError(f"{path}: {name!r} has values that are not finite")
    return tensors


def read_vocabulary(path: Path) -> list[str]:
    """The words by their ids, which must be 0, 1, 2, … without a gap; the special ones with our names."""
    vocabulary = read_config(path)
    ids = list(vocabulary.values())
    if any(type(id) is not int for id in ids) or sorted(ids) != list(range(len(ids))):
        raise CtrlgenError(f"{path}: not a vocabulary: words must have the ids from 0 to {len(ids) - 1}")
    for name in NAMES:
        if name not in vocabulary:
            raise CtrlgenError(f"{path}: has no word {name}; is it the original's vocabulary?")
    for name in NAMES.values():
        if name in vocabulary:
            raise CtrlgenError(f"{path}: the word {name} has a meaning of its own here, so it cannot be imported")
    return [NAMES.get(word, word) for word in sorted(vocabulary, key=vocabulary.__getitem__)]


def make_tokenizer(path: Path, words: list[str]) -> WordTokenizer:
    try:
        return WordTokenizer.of_words(words)
    except Exception as error:  # tokenizers raises plain Exception, of a word that is no Unicode text
        raise CtrlgenError(f"{path}: holds a word that is not Unicode text") from error


def read_sizes(original: Original, heads: int | None) -> BertDenoiserConfig:
    """The network's sizes, off the shapes of its weights."""
    vocab_size, dim = shape_of(original, "lm_head.weight")
    _, time_features = shape_of(original, "time_embed.0.weight")
    positions, width = shape_of(original, "position_embeddings.weight")
    intermediate, _ = shape_of(original, f"{LAYER}0.intermediate.dense.weight")
    numbers = {int(n) for name in original.state if (n := name.removeprefix(LAYER).split(".")[0]).isdecimal()}
    if len(original.words) != vocab_size:
        count = f"{len(original.words)} words, {original.weights.name} {vocab_size}"
        raise CtrlgenError(f"{original.directory / VOCABULARY}: has {count}")
    if heads is None and width % HEAD_WIDTH:
        raise UsageError(f"{original.directory}: hidden size {width} is no multiple of {HEAD_WIDTH}: give --heads")
    steps = whole_number(original, "diffusion_steps")
    rescaled = original.arguments.get("rescale_timesteps", True)
    dropout = original.arguments.get("dropout", 0.0)
    try:
        return BertDenoiserConfig(
            vocab_size=vocab_size,
            embedding_dim=dim,
            width=width,
            layers=len(numbers),
            heads=heads or width // HEAD_WIDTH,
            intermediate=intermediate,
            positions=positions,
            time_features=time_features,
            time_scale=1000.0 / steps if rescaled else 1.0,
            max_length=whole_number(original, "image_size") ** 2,
            dropout=float(dropout),
            padding=original.arguments["padding_mode"],
        )
    except (TypeError, ValueError) as error:
        raise CtrlgenError(f"{original.directory}: {error}") from error


def shape_of(original: Original, name: str) -> tuple[int, int]:
    """The shape of a matrix."""
    if name not in original.state:
        raise CtrlgenError(f"{original.weights}: has no {name}; is it a Diffusion-LM of the original's?")
    shape = tuple(original.state[name].shape)
    if len(shape) != 2:
        raise CtrlgenError(f"{original.weights}: {name} is no matrix")
    return shape


def whole_number(original: Original, key: str) -> int:
    value = original.arguments.get(key)
    if type(value) is not int or value < 1:
        raise CtrlgenError(f"{original.directory / ARGUMENTS}: {key} must be a whole number, got {value!r}")
    return value


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names.

    The original shares one matrix between `word_embedding` and `lm_head`, yet EMA files have it under both names and
    average only the first; loading them, the original ends with what stands under the last, and so does this.
    """
    kept = {name: tensor for name, tensor in state.items() if name not in NOT_KEPT}
    return {
        RENAMED.get(name, OUR_LAYER + name.removeprefix(LAYER) if name.startswith(LAYER) else name): tensor
        for name, tensor in kept.items()
    }


def refuse_other_tensors(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in wanted:
        if name not in state:
            raise CtrlgenError(f"{path}: the tensor {name} is missing")
        if state[name].shape != wanted[name].shape:
            shapes = f"{list(state[name].shape)} instead of {list(wanted[name].shape)}"
            raise CtrlgenError(f"{path}: the tensor {name} has the shape {shapes}")
    unknown = sorted(set(state) - set(wanted))
    if unknown:
        raise CtrlgenError(f"{path}: has a tensor {unknown[0]}, which no Diffusion-LM of the original's has")


def card(original: Original, config: BertDenoiserConfig, steps: int) -> str:
    """Where the model comes from."""
    digest = hashlib.sha256(original.weights.read_bytes()).hexdigest()
    arguments = json.dumps(original.arguments, indent=2, ensure_ascii=False)
    return CARD_TEXT.format(
        name=original.directory.resolve().name,
        weights=original.weights.name,
        digest=digest,
        config=config,
        steps=steps,
        arguments=arguments,
    )


CARD_TEXT = """\
# {name}

A Diffusion-LM checkpoint (Li et al. 2022, *Diffusion-LM Improves Controllable Text Generation*, arXiv 2205.14217),
imported from the original's format by `ctrlgen import`. The weights are unchanged, in float32. ctrlgen did not train
this model and knows nothing of its data or its licence: ask whoever published the checkpoint.

| | |
|---|---|
| file | `{weights}`, SHA-256 `{digest}` |
| network | BERT encoder: {config.layers} layers, hidden size {config.width}, {config.heads} heads, \
embeddings of {config.embedding_dim} |
| words | {config.vocab_size} |
| positions | {config.max_length}, padding `{config.padding}` |
| noise | {steps} levels |

Its `training_args.json`:

```json
{arguments}
```
"""
