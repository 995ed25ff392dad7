"""Training a small language model of a model's own words: `ctrlgen train-lm`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, save_tensors
from ctrlgen.data.texts import fitting, read_texts, texts_fingerprint
from ctrlgen.errors import CtrlgenError
from ctrlgen.files import write_text
from ctrlgen.text.joining import detokenize
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.heads import MOST_HELD_OUT, hold_out

if TYPE_CHECKING:
    from ctrlgen.training.fit import Progress, TrainingConfig

from ctrlgen.evaluation.language_model import (
    LanguageModel,
    mean_costs,
    new_lm,
    next_token_costs,
    size_of,
)
from ctrlgen.generation.slips import FEWEST_TEXTS, SlipBound
from ctrlgen.generation.small_lm import SmallLM, vocabulary_fingerprint

log = logging.getLogger(__name__)


class NextWordLoss(nn.Module):
    """Next-word cross-entropy. Without the output layer, which is the embeddings: a checkpoint holds them once."""

    def __init__(self, lm: LlamaForCausalLM):
        super().__init__()
        self.trunk = lm.model

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, n) -> loss (B,), no statistics"""
        hidden = self.trunk(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state  # (B, n - 1, d)
        logits = F.linear(hidden, self.trunk.embed_tokens.weight)
        return next_token_costs(logits, tokens[:, 1:]), hidden.new_zeros(0)

    def lm(self) -> LlamaForCausalLM:
        """A copy of what has been learned, as the whole model."""
        lm = LlamaForCausalLM(self.trunk.config).to(self.trunk.device)
        lm.model.load_state_dict(self.trunk.state_dict())
        return lm


class LanguageModelTask:
    """The `Task` behind `ctrlgen train-lm`. Sentences are token ids without <end>."""

    def __init__(
        self,
        lm: LlamaForCausalLM,
        tokenizer: WordTokenizer,
        sentences: Sequence[Sequence[int]],
        held_out: Sequence[Sequence[int]],
        config: TrainingConfig,
    ):
        self.tokenizer = tokenizer
        self.module = NextWordLoss(lm)
        self.batches = LengthBatches([self.ended(s) for s in sentences], config.tokens_per_batch, config.seed)
        self.held_out = [self.ended(s) for s in held_out]

    def ended(self, sentence: Sequence[int]) -> list[int]:
        return [self.tokenizer.end_id, *sentence, self.tokenizer.end_id]

    def steps(self, epoch: int) -> list[list[list[int]]]:
        return self.batches.steps(epoch)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Tensor, ...], int]:
        tokens = self.batches.tokens(indices)  # (B, n)
        return (tokens[rows],), tokens[:, 1:].numel()

    def observe(self, statistics: Tensor) -> None:
        pass

    def validate(self, module: nn.Module) -> dict[str, Any]:
        """Nats a token of the held-out texts, and a few samples."""
        assert isinstance(module, NextWordLoss)
        model = LanguageModel(module.lm(), self.tokenizer)
        counts = [len(sentence) - 1 for sentence in self.held_out]
        nats = [c * n for c, n in zip(mean_costs(model.lm, self.held_out), counts, strict=True)]
        return {
            "validation_cost": sum(nats) / sum(counts),
            "samples": [detokenize(words) for words in model.draw(range(4))],
        }

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        assert isinstance(module, NextWordLoss)
        save_lm(module.lm(), directory)


def learn_slips(
    directory: Path,
    tokenizer: WordTokenizer,
    training: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    device: torch.device,
) -> SlipBound:
    """What counts as a slip under the language model in a directory, written beside it.

    Raises CtrlgenError where there are too few held-out texts to say.
    """
    lm = SmallLM(directory, tokenizer, device)
    counts = torch.tensor([id for sentence in training for id in sentence]).bincount(minlength=len(tokenizer))
    end = tokenizer.end_id
    costs = [lm.nats([end, *sentence, end])[:-1] for sentence in held_out]
    bound = SlipBound.fit(counts, held_out, costs, tokenizer.unk_id)
    if bound is None:
        found = f"{len(held_out)} held-out texts are too few, {FEWEST_TEXTS} are needed"
        raise CtrlgenError(f"{found}; --validation gives more")
    bound.save(directory)
    return bound


def save_lm(lm: LlamaForCausalLM, directory: Path) -> None:
    """Write config.json and model.safetensors as float16, as transformers would, but each takes its name only when it
    is whole, and a killed run leaves nothing else."""
    lm = lm.half()
    lm.config.dtype, lm.config.architectures = lm.dtype, [type(lm).__name__]
    weights = {name: tensor for name, tensor in lm.state_dict().items() if name not in lm._tied_weights_keys}
    save_tensors(directory / WEIGHTS, weights, {"format": "pt"})
    write_text(directory / CONFIG, lm.config.to_json_string())


def split_ids(
    model: DiffusionLM, data: str, validation: str | None, text_column: str | None
) -> tuple[list[list[int]], list[list[int]]]:
    """The texts to learn from and the held-out ones, as ids; a share of the former where there is no `validation`.

    That share is the same whatever the seed of a training, and no text of it is learned from.
    """

    def sentences(source: str) -> list[list[int]]:
        encoded = model.tokenizer.encode_training(read_texts(source, text_column))
        return fitting(encoded, 1, model.config.max_length, model.tokenizer.unk_id, source)

    training = sentences(data)
    if validation:
        return training, sentences(validation)[:MOST_HELD_OUT]
    different = len(set(map(tuple, training)))
    if different < FEWEST_TEXTS:
        raise CtrlgenError(
            f"{data}: only {different} different usable texts: a language model needs at least {FEWEST_TEXTS}"
        )
    return hold_out(training, text=tuple)


def train_lm(
    model: DiffusionLM,
    data: str,
    validation: str | None,
    text_column: str | None,
    config: TrainingConfig,
    directory: Path,
    *,
    resume: bool = False,
) -> Iterator[Progress]:
    """Train a language model of `model`'s words on the texts of `data` and leave its files in `directory`.

    It is trained on the model's device. Without `validation` a share of the texts is held out.
    """
    from ctrlgen.training.fit import fit  # only training needs accelerate

    training, held_out = split_ids(model, data, validation, text_column)
    config = replace(config, matrix_lr=0.0)
    torch.manual_seed(config.seed)
    task = LanguageModelTask(
        new_lm(model.tokenizer, model.config.max_length), model.tokenizer, training, held_out, config
    )
    texts = texts_fingerprint([*training, *held_out], model.tokenizer.words)
    made_of = {"texts": texts, "size": size_of(model.tokenizer), "vocabulary": vocabulary_fingerprint(model.tokenizer)}
    yield from fit(task, config, directory, resume=resume, fingerprint=made_of, device=model.device)
    try:
        learn_slips(directory, model.tokenizer, training, held_out, model.device)
    except CtrlgenError as error:
        log.warning("no text will be said to have a slip: %s", error)
