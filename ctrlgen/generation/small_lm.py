"""The small language model beside a model, in `lm/`: what each word of a text costs.

`ctrlgen train-lm` makes it, a Llama of the model's own words. It is computed here without `transformers`, whose import
takes longer than writing a few texts. `evaluation/language_model.py` draws from it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, directories_of, read_config, read_weights
from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.slips import SlipBound
from ctrlgen.text.tokenizer import WordTokenizer

log = logging.getLogger(__name__)


class SmallLM:
    """p(word | words before). <end> stands in front of a text and ends it."""

    def __init__(self, directory: Path, tokenizer: WordTokenizer, device: torch.device):
        """Raises CtrlgenError where the directory holds no language model of these words."""
        config = read_lm_config(directory, tokenizer)
        state = read_weights(directory / WEIGHTS)
        self.weights = {name.removeprefix("model."): tensor.to(device) for name, tensor in state.items()}
        self.tokenizer, self.device = tokenizer, device
        self.slips: SlipBound | None = None
        try:
            self.layers, self.heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
            self.longest = int(config["max_position_embeddings"])  # texts that it learned from, with their <end>
            self.eps, self.theta = float(config["rms_norm_eps"]), float(config["rope_parameters"]["rope_theta"])
            with torch.no_grad():
                self.logits(torch.tensor([[tokenizer.end_id]], device=device))
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise CtrlgenError(f"{directory}: its weights do not fit its {CONFIG}") from error

    @classmethod
    def of(cls, model: DiffusionLM) -> SmallLM | None:
        """The language model of this model's words, None where it has none."""
        directory = lm_directory(model)
        if directory is None:
            return None
        lm = cls(directory, model.tokenizer, model.device)
        try:
            lm.slips = SlipBound.load(directory, len(model.tokenizer))
        except CtrlgenError as error:
            log.warning(
                "%s; no text is said to have a slip: learn it again with `ctrlgen train-lm --only-slips`", error
            )
        return lm

    def costs(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Nats of each word of each text, and of its end behind them. A word that it does not know counts as <unk>."""
        end = self.tokenizer.end_id
        return [self.nats([end, *self.tokenizer.ids(words), end]) for words in texts]

    @torch.no_grad()
    def nats(self, row: Sequence[int]) -> list[float]:
        """Nats of each id but the first. Each text alone, so that no other text changes it."""
        ids = torch.tensor(row, device=self.device)
        return F.cross_entropy(self.logits(ids[None, :-1])[0], ids[1:], reduction="none").tolist()

    def logits(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, V), as Touvron et al. 2023 describe Llama."""
        embeddings = self.weights["embed_tokens.weight"]  # (V, d), tied
        x = embeddings[ids]  # (B, n, d)
        rotation = self.rotation(ids.shape[1], x.shape[-1] // self.heads)
        for layer in range(self.layers):
            at = f"layers.{layer}."
            x = x + self.attention(self.norm(x, f"{at}input_layernorm"), f"{at}self_attn.", rotation)
            h = self.norm(x, f"{at}post_attention_layernorm")
            gated = F.silu(self.linear(h, f"{at}mlp.gate_proj")) * self.linear(h, f"{at}mlp.up_proj")
            x = x + self.linear(gated, f"{at}mlp.down_proj")
        return self.norm(x, "norm") @ embeddings.T

    def attention(self, h: Tensor, at: str, rotation: Tensor) -> Tensor:
        """(B, n, d) -> (B, n, d)"""
        query, key, value = (  # (B, heads, n, d / heads)
            self.linear(h, f"{at}{name}_proj").unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv"
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.linear(read.transpose(1, 2).flatten(2), f"{at}o_proj")

    def rotation(self, n: int, width: int) -> Tensor:
        """The angles by which positions turn the halves of queries and keys (Su et al. 2021). (n, width / 2)"""
        frequencies = self.theta ** -(torch.arange(0, width, 2, device=self.device) / width)
        return torch.arange(n, device=self.device)[:, None] * frequencies

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.eps)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(B, heads, n, width) turned by (n, width / 2)"""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def lm_directory(model: DiffusionLM) -> Path | None:
    """Where this model's language model lies, None where it has none."""
    return next((path for path in directories_of(model, "lm") if (path / CONFIG).exists()), None)


def find_lm(model: DiffusionLM) -> Path:
    """Where this model's language model lies. Raises CtrlgenError where it has none."""
    directory = lm_directory(model)
    if directory is None:
        where = model.directory.name if model.directory else "this model"
        raise CtrlgenError(f"{where} has no language model yet: run `ctrlgen train-lm` first")
    return directory


def read_lm_config(directory: Path, tokenizer: WordTokenizer) -> dict[str, Any]:
    """The config.json of a language model. Raises CtrlgenError where it is one of other words than the tokenizer's."""
    config = read_config(directory / CONFIG)
    if (config.get("vocab_size"), config.get("vocabulary")) != (len(tokenizer), vocabulary_fingerprint(tokenizer)):
        raise CtrlgenError(f"{directory}: is a language model of other words")
    return config


def vocabulary_fingerprint(tokenizer: WordTokenizer) -> str:
    """Identifies the words and their ids."""
    return hashlib.sha256("\n".join(tokenizer.words).encode()).hexdigest()[:16]
