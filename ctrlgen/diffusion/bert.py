"""Diffusion-LM's own denoiser (Li et al. 2022): transformers' BERT encoder between two projections.

Equal to the original's number for number, so that published checkpoints can be used (`ctrlgen import`). It predicts x_0
and rounds it by a linear layer that shares its weights with the embeddings. Its time input is the index of a discrete
noise level, found from the log-SNR, so that samplers and guidance see no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.diffusion.schedule import DiscreteSchedule

MAX_PERIOD = 10_000.0  # of the time's sines and cosines


@dataclass(frozen=True)
class BertDenoiserConfig:
    """The sizes of a published checkpoint; the defaults are those of the original's E2E model.

    A sample has `max_length` positions: START, the text, END, then PAD or, with padding `block`, more texts.
    """

    vocab_size: int
    embedding_dim: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    positions: int = 512
    time_features: int = 128
    time_scale: float = 0.5  # noise level i has the time time_scale * i; the original's is 1000 / steps
    max_length: int = 64
    dropout: float = 0.1
    padding: Literal["pad", "block"] = "pad"
    objective: Literal["mse"] = "mse"
    architecture: Literal["bert"] = "bert"

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.embedding_dim, self.width, self.layers, self.heads, self.intermediate)
        if min(*sizes, self.positions, self.max_length) < 1 or self.time_features < 2 or self.time_features % 2:
            raise ValueError("every size must be positive, time_features even")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.max_length > self.positions:
            raise ValueError(f"max_length {self.max_length} is beyond the {self.positions} positions")
        if self.padding not in ("pad", "block") or self.objective != "mse" or self.architecture != "bert":
            raise ValueError("use padding pad or block, objective mse, architecture bert")


class BertDenoiser(nn.Module):
    """x0_hat from x_t, called as our own `Denoiser` is. It knows neither self-conditioning nor clean positions."""

    def __init__(self, config: BertDenoiserConfig, schedule: DiscreteSchedule):
        super().__init__()
        self.config = config
        self.schedule = schedule
        width, dim = config.width, config.embedding_dim
        bert = BertConfig(
            hidden_size=width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate,
            hidden_dropout_prob=config.dropout,
        )
        bert._attn_implementation = "eager"
        self.word_embedding = nn.Parameter(torch.randn(config.vocab_size, dim))
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.time_embed = nn.Sequential(
            nn.Linear(config.time_features, 4 * config.time_features),
            nn.SiLU(),
            nn.Linear(4 * config.time_features, width),
        )
        self.input_up_proj = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width))
        self.position_embeddings = nn.Embedding(config.positions, width)
        self.norm = nn.LayerNorm(width, eps=bert.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(BertLayer(bert) for _ in range(config.layers))
        self.output_down_proj = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))

    @property
    def device(self) -> torch.device:
        return self.word_embedding.device

    def embeddings(self) -> Tensor:
        """The embedding of every word, (V, d), of any norm."""
        return self.word_embedding

    def embed(self, tokens: Tensor) -> Tensor:
        """x_0 of token ids: (B, n) -> (B, n, d)."""
        return F.embedding(tokens, self.word_embedding)

    def rounding_logits(self, x_0: Tensor) -> Tensor:
        """log p(w | x_0) up to a constant: x_0 . e_w + b_w. (B, n, d) -> (B, n, V)"""
        return F.linear(x_0, self.word_embedding, self.word_bias)

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        self_condition: Tensor | None = None,
        clean: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Denoised:
        """x_t (B, n, d), log_snr (B,) or (1,). Every row is n long; `self_condition` and `clean` tell it nothing."""
        if lengths is not None:
            raise ValueError("the rows of a published checkpoint all have one length")
        with torch.autocast(x_t.device.type, enabled=False):  # in float32, as the original computes
            x0_hat, hidden = self.predict(x_t, self.config.time_scale * self.schedule.level(log_snr))
            return Denoised(x_t, log_snr, self.rounding_logits(x0_hat), x0_hat, hidden, opening=1)

    def predict(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The network itself, called by the time as in the original. x_t (B, n, d), time (B,) or (1,)

        -> x0_hat (B, n, d) and each layer's output (B, n, width).
        """
        length = x_t.shape[1]
        if length > self.config.positions:
            raise ValueError(f"length {length} is beyond the model's {self.config.positions} positions")
        time = self.time_embed(time_features(time, self.config.time_features).to(x_t.dtype))[:, None]  # (B, 1, width)
        position = torch.arange(length, device=x_t.device)
        h = self.dropout(self.norm(self.input_up_proj(x_t) + self.position_embeddings(position) + time))
        hidden = []
        for layer in self.layers:
            h = layer(h)
            hidden.append(h)
        return self.output_down_proj(h), tuple(hidden)


AnyDenoiser: TypeAlias = Denoiser | BertDenoiser


def time_features(time: Tensor, count: int) -> Tensor:
    """Cosines and sines of the time at falling frequencies (Vaswani et al. 2017). (B,) -> (B, count)"""
    half = count // 2
    frequency = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=time.device))
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
