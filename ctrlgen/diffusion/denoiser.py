"""The denoiser: a small transformer from x_t to a distribution over the vocabulary at every position.

Design choices, with the reasons in docs/decisions.md:
- embeddings normalised to length sqrt(d), so that x_0 has unit variance and cannot collapse (CDCD, Plaid)
- `ce`: the output is p(w | x_t) and x0_hat its mean embedding; the Gaussian skip adds what x_t alone says
- true length: no padding is diffused; every position is counted from both ends
- the time enters as log-SNR, by adaptive normalisation in every block (Peebles and Xie 2022)
- self-conditioning and clean positions are two more inputs
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.rounding import gaussian_word_logits, rounding_logits
from ctrlgen.diffusion.schedule import alpha_sigma

TIME_FEATURES = 64
LEAST_WIDTH = 16  # words; a CPU adds up fewer numbers than a vector register holds in another order


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser's size and objective.

    `ce` predicts words and normalises the embeddings; `mse` predicts x_0, as Diffusion-LM does.
    """

    vocab_size: int
    embedding_dim: int = 16
    width: int = 256
    layers: int = 6
    heads: int = 4
    max_length: int = 64
    dropout: float = 0.0
    objective: Literal["ce", "mse"] = "ce"

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.embedding_dim, self.layers, self.heads, self.max_length) < 1:
            raise ValueError("vocab_size, embedding_dim, layers, heads and max_length must be positive")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.objective not in ("ce", "mse"):
            raise ValueError(f"unknown objective {self.objective!r}: use ce or mse")


@dataclass(frozen=True)
class Denoised:
    """What one call of the denoiser knows. Classifiers and samplers read this and nothing else."""

    x_t: Tensor  # (B, n, d)
    log_snr: Tensor  # (B,), or (1,) where all rows have the same
    logits: Tensor  # (B, n, V)
    x0_hat: Tensor  # (B, n, d)
    hidden: tuple[Tensor, ...]  # each block's output, (B, n, width)
    lengths: Tensor | None = None  # (B,) where rows are filled up to n, None where all are n long

    @property
    def probs(self) -> Tensor:
        """p(w | x_t), (B, n, V)."""
        return self.logits.softmax(-1)


class Block(nn.Module):
    """Pre-norm attention and MLP, both modulated by the time."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.modulation = nn.Linear(TIME_FEATURES, 4 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for zero in (self.modulation.weight, self.modulation.bias, self.attention_out.weight, self.mlp_out.weight):
            nn.init.zeros_(zero)

    def forward(self, h: Tensor, time: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """h (B, n, width), time (B, TIME_FEATURES), mask: bool (B, 1, 1, n) or None -> (B, n, width)"""
        scale_1, shift_1, scale_2, shift_2 = self.modulation(time)[:, None].chunk(4, -1)  # each (B, 1, width)
        h = h + self.dropout(self.attend(modulate(h, scale_1, shift_1), rotation, mask))
        return h + self.dropout(self.mlp_out(F.gelu(self.mlp_in(modulate(h, scale_2, shift_2)))))

    def attend(self, h: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        batch, length, width = h.shape
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, head_dim)
        q, k = rotate(q, rotation), rotate(k, rotation)
        # Written out: for sentences of tens of words this is faster on a CPU than the fused kernel, whose
        # backward pass alone costs as much as the rest of the block.
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, n, n)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if not self.training:  # whole vector registers, or the gradient's last bit depends on the batch's longest
            scores = F.pad(scores, (0, -length % LEAST_WIDTH), value=-torch.inf)
        weights = scores.softmax(-1)[..., :length].to(v.dtype)
        return self.attention_out((weights @ v).transpose(1, 2).reshape(batch, length, width))


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Adaptive normalisation (adaLN): normalised h, scaled and shifted by the time."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1.0 + scale)


def rotary(length: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021), each (length, dim), of `like`'s type."""
    frequency = 1000.0 ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class Denoiser(nn.Module):
    """p(w | x_t) for every position. Called as denoiser(x_t, log_snr, self_condition, clean)."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        width, dim = config.width, config.embedding_dim
        self.word_embedding = nn.Parameter(torch.randn(config.vocab_size, dim))
        self.input = nn.Linear(2 * dim, width)
        self.from_start = nn.Embedding(config.max_length, width)
        self.from_end = nn.Embedding(config.max_length, width)
        self.is_clean = nn.Parameter(torch.zeros(width))
        self.time_in = nn.Linear(TIME_FEATURES, TIME_FEATURES)
        self.time_out = nn.Linear(TIME_FEATURES, TIME_FEATURES)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output = nn.Linear(width, config.vocab_size if config.objective == "ce" else dim)
        for position in (self.from_start, self.from_end):
            nn.init.normal_(position.weight, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def embeddings(self) -> Tensor:
        """The embedding of every word, (V, d). Norm sqrt(d) under `ce`, free under `mse`."""
        if self.config.objective == "ce":
            return F.normalize(self.word_embedding, dim=-1) * math.sqrt(self.config.embedding_dim)
        return self.word_embedding

    def embed(self, tokens: Tensor) -> Tensor:
        """x_0 of token ids: (B, n) -> (B, n, d)."""
        return F.embedding(tokens, self.embeddings())

    def forward(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        self_condition: Tensor | None = None,
        clean: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Denoised:
        """x_t (B, n, d), log_snr (B,) or (1,), self_condition: an earlier x0_hat (B, n, d), clean: bool (B, n).

        Sentences of several lengths share a batch when `lengths` (B,) says how long each is; what stands beyond a
        sentence's end is never attended to, and meaningless in the result.
        """
        length = x_t.shape[1]
        if length > self.config.max_length:
            raise ValueError(f"length {length} is beyond the model's maximum of {self.config.max_length}")
        if self_condition is None:
            self_condition = torch.zeros_like(x_t)
        if not self.training and length < min(LEAST_WIDTH, self.config.max_length):
            return self.widened(x_t, log_snr, self_condition, clean, lengths)
        position = torch.arange(length, device=x_t.device)
        time = self.time(log_snr)
        h = self.input(torch.cat([x_t, self_condition], -1))  # (B, n, width)
        to_end = length - 1 - position if lengths is None else (lengths[:, None] - 1 - position).clamp(min=0)
        h = h + self.from_start(position) + self.from_end(to_end)
        mask = None if lengths is None else (position < lengths[:, None])[:, None, None]  # (B, 1, 1, n)
        if clean is not None:
            h = h + clean[..., None] * self.is_clean
        rotation = rotary(length, self.config.width // self.config.heads, h)
        hidden = []
        for block in self.blocks:
            h = block(h, time, rotation, mask)
            hidden.append(h)
        embeddings = self.embeddings()
        output = self.output(F.layer_norm(h, h.shape[-1:])).to(embeddings.dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            if self.config.objective == "mse":
                return Denoised(x_t, log_snr, rounding_logits(output, embeddings), output, tuple(hidden), lengths)
            alpha, sigma = alpha_sigma(log_snr)
            logits = output + gaussian_word_logits(x_t, embeddings, alpha, sigma)
            x0_hat = logits.softmax(-1) @ embeddings
        return Denoised(x_t, log_snr, logits, x0_hat, tuple(hidden), lengths)

    def widened(
        self, x_t: Tensor, log_snr: Tensor, self_condition: Tensor, clean: Tensor | None, lengths: Tensor | None
    ) -> Denoised:
        """`forward` on sentences filled up to LEAST_WIDTH, where sums no longer depend on the batch's longest."""
        batch, length, _ = x_t.shape
        more = min(LEAST_WIDTH, self.config.max_length) - length
        if lengths is None:
            lengths = torch.full((batch,), length, device=x_t.device)
        clean = F.pad(clean, (0, more)) if clean is not None else None
        wide_x_t, self_condition = (F.pad(x, (0, 0, 0, more)) for x in (x_t, self_condition))
        wide = self.forward(wide_x_t, log_snr, self_condition, clean, lengths)
        logits, x0_hat, *hidden = (x[:, :length] for x in (wide.logits, wide.x0_hat, *wide.hidden))
        return Denoised(x_t, log_snr, logits, x0_hat, tuple(hidden), lengths)

    def time(self, log_snr: Tensor) -> Tensor:
        """Features of the noise level: sines and cosines of log(sigma/alpha) / 4, then an MLP. (B,) -> (B, 64)"""
        frequency = torch.exp(torch.linspace(0.0, math.log(100.0), TIME_FEATURES // 2, device=log_snr.device))
        angle = (-log_snr / 8.0)[:, None] * frequency
        features = torch.cat([angle.sin(), angle.cos()], -1)
        return F.silu(self.time_out(F.silu(self.time_in(features))))
