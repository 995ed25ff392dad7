"""The denoiser: a small transformer from x_t to a distribution over the vocabulary at every position.

Design choices, with the reasons in docs/decisions/model.md:
- embeddings normalised to length sqrt(d), so that x_0 has unit variance and cannot collapse (CDCD, Plaid)
- `ce`: the output is p(w | x_t) and x0_hat its mean embedding; the Gaussian skip adds what x_t alone says
- `tied`: output and skip are both linear in the embeddings, so one product serves both, and any word that has an
  embedding can be read and written (`diffusion.words`)
- true length: no padding is diffused; every position is counted from both ends
- the time enters as log-SNR, by adaptive normalisation in every block (Peebles and Xie 2022)
- self-conditioning and clean positions are two more inputs; earlier sentences stand before the text, clean as well
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.blocks import LEAST_WIDTH, TIME_FEATURES, Block, rotary
from ctrlgen.diffusion.rounding import gaussian_word_logits, rounding_logits
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.diffusion.words import NO_ROW, WordTable, WordVectors
from ctrlgen.keys import Key


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser's size and objective. The defaults of the keys from `output` on are those of version 0.1.0.

    `ce` predicts words and normalises the embeddings; `mse` predicts x_0, as Diffusion-LM does; its output is `full`.
    `tied` makes the logits of a word from its vectors, `full` has a row of weights for each word.
    """

    embedding_dim: Annotated[int, Key("d, the size of the embedding that is diffused", least=1)] = 16
    width: Annotated[int, Key("of the transformer's blocks; a multiple of twice the heads", least=1)] = 256
    layers: Annotated[int, Key("blocks", least=1)] = 6
    heads: Annotated[int, Key("attention heads of each block", least=1)] = 4
    max_length: Annotated[int, Key("the longest text, in words", least=1)] = 64
    dropout: Annotated[float, Key("in the blocks, in training", most=1)] = 0.0
    objective: Annotated[Literal["ce", "mse"], Key("`ce` predicts words; `mse` x_0, as Diffusion-LM does")] = "ce"
    output: Annotated[
        Literal["full", "tied"],
        Key("`full`: a row of weights for each word; `tied`: logits from the words' vectors, an open vocabulary"),
    ] = "full"
    output_dim: Annotated[int, Key("tied: size of the vector of each word that only the output sees")] = 0
    pieces: Annotated[int, Key("tied: how many vectors of pieces of spellings there are, 2 to 32767")] = 0
    context: Annotated[int, Key("how many words of earlier sentences can stand before a text")] = 0


@dataclass(frozen=True)
class DenoiserConfig(ModelConfig):
    """What a recipe says of the model, and how many words it knows."""

    vocab_size: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.embedding_dim, self.layers, self.heads, self.max_length) < 1:
            raise ValueError("vocab_size, embedding_dim, layers, heads and max_length must be positive")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.objective not in ("ce", "mse"):
            raise ValueError(f"unknown objective {self.objective!r}: use ce or mse")
        if self.output not in ("full", "tied"):
            raise ValueError(f"unknown output {self.output!r}: use full or tied")
        if min(self.output_dim, self.context) < 0:
            raise ValueError("output_dim and context must not be negative")
        if self.output == "tied" and (self.objective == "mse" or not 1 < self.pieces < 2**15):
            raise ValueError("a tied output needs the objective ce and 2 to 32767 pieces")
        if self.context and self.objective == "mse":
            raise ValueError("the objective mse knows no context")


@dataclass(frozen=True)
class Denoised:
    """What one call of the denoiser knows. Classifiers and samplers read this and nothing else."""

    x_t: Tensor  # (B, n, d)
    log_snr: Tensor  # (B,), or (1,) where all rows have the same
    logits: Tensor  # (B, n, V)
    x0_hat: Tensor  # (B, n, d)
    hidden: tuple[Tensor, ...]  # each block's output, (B, n, width)
    row_lengths: Tensor | None = None  # (B,) where rows are filled up to n, None where all are n long
    neighbours: Tensor | None = None  # (k, V) where the last k words are new: what each reads as
    opening: int = 0  # places in front of the text

    @property
    def lengths(self) -> Tensor:
        """How many words each row has, n at most. (B,)"""
        if self.row_lengths is not None:
            return self.row_lengths
        return torch.full((len(self.logits),), self.logits.shape[1], device=self.logits.device)

    @property
    def mask(self) -> Tensor:
        """Whether a position is one of its row's words. bool (B, n)"""
        position = torch.arange(self.logits.shape[1], device=self.logits.device)
        return position < self.lengths[:, None]

    @property
    def text(self) -> "Denoised":
        """What is known of the places of the text itself; classifiers are given this."""
        if self.opening == 0:
            return self
        x_t, logits, x0_hat, *hidden = (
            part[:, self.opening :] for part in (self.x_t, self.logits, self.x0_hat, *self.hidden)
        )
        return Denoised(x_t, self.log_snr, logits, x0_hat, tuple(hidden))

    @property
    def probs(self) -> Tensor:
        """p(w | x_t), (B, n, V), new words included."""
        return self.logits.softmax(-1)

    @property
    def known_probs(self) -> Tensor:
        """p(w | x_t) of the trained vocabulary alone, where a new word counts as its neighbours. (B, n, V)

        For heads that were trained before the word came.
        """
        if self.neighbours is None:
            return self.probs
        known, new = self.probs.split([self.neighbours.shape[1], self.neighbours.shape[0]], -1)
        return known + new @ self.neighbours

    def for_new_words(self, table: Tensor) -> Tensor:
        """Probabilities of each word of the trained vocabulary, (V, c), with those of its neighbours for new words."""
        if self.neighbours is None:
            return table
        return torch.cat([table, self.neighbours @ table])


class Context(NamedTuple):
    """The words before a text, clean."""

    x_0: Tensor  # (B, m, d)
    present: Tensor  # bool (B, m), False in front of shorter ones


class Denoiser(nn.Module):
    """p(w | x_t) for every position. Called as denoiser(x_t, log_snr, self_condition, clean, lengths, context)."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        width, dim = config.width, config.embedding_dim
        if config.output == "tied":
            self.words = WordTable(config.vocab_size, dim, config.output_dim, config.pieces)
        else:
            self.word_embedding = nn.Parameter(torch.randn(config.vocab_size, dim))
        self.input = nn.Linear(2 * dim, width)
        self.from_start = nn.Embedding(config.max_length, width)
        self.from_end = nn.Embedding(config.max_length, width)
        self.is_clean = nn.Parameter(torch.zeros(width))
        self.time_in = nn.Linear(TIME_FEATURES, TIME_FEATURES)
        self.time_out = nn.Linear(TIME_FEATURES, TIME_FEATURES)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        if config.output == "tied":
            self.output = nn.Linear(width, dim + config.output_dim)
        else:
            self.output = nn.Linear(width, config.vocab_size if config.objective == "ce" else dim)
        positions = [self.from_start, self.from_end]
        if config.context:
            self.in_context = nn.Embedding(config.context, width)
            positions.append(self.in_context)
        for position in positions:
            nn.init.normal_(position.weight, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.new_words: tuple[str, ...] = ()
        self.new_like: tuple[int, ...] = ()  # ids of known words whose vectors they take, NO_ROW for none
        self._vocabulary: tuple[Any, WordVectors] | None = None  # of weights that do not change, made once

    @property
    def device(self) -> torch.device:
        return self.input.weight.device

    def embeddings(self) -> Tensor:
        """The embedding of every word, (V, d). Norm sqrt(d) under `ce`, free under `mse`."""
        if self.config.output == "tied":
            return self.vocabulary().embedding
        if self.config.objective == "ce":
            return F.normalize(self.word_embedding, dim=-1) * math.sqrt(self.config.embedding_dim)
        return self.word_embedding

    def vocabulary(self) -> WordVectors:
        """The vectors of every word of a tied output, the new ones last."""
        weights = (self.words.own, self.words.pieces)
        learning = torch.is_grad_enabled() and self.words.own.requires_grad
        state = [(p.device, p.data_ptr(), p._version) for p in weights]
        if learning or self._vocabulary is None or self._vocabulary[0] != state:
            vectors = self.words.of_vocabulary()
            if self.new_words:
                new = self.words.of_new(self.new_words, self.new_like)
                vectors = WordVectors(*(torch.cat(parts) for parts in zip(vectors, new, strict=True)))
            if learning:
                return vectors
            self._vocabulary = state, vectors
        return self._vocabulary[1]

    def with_words(self, words: Sequence[str], like: Sequence[int] = ()) -> "Denoiser":
        """The same denoiser with words that its vocabulary lacks, in ids from V on. Weights are shared.

        `like`: for each word the id of a known one whose vectors it takes, or NO_ROW, which is so without this.
        """
        if self.config.output != "tied":
            raise ValueError("only a denoiser with a tied output can take in new words")
        wider = copy.copy(self)
        wider.new_words, wider._vocabulary = (*self.new_words, *words), None
        wider.new_like = (*self.new_like, *(like or [NO_ROW] * len(words)))
        return wider

    def neighbours(self) -> Tensor:
        """How likely each new word, with as much noise as signal, would be taken for each known one. (k, V)"""
        known, new = self.embeddings().split([self.config.vocab_size, len(self.new_words)])
        level = torch.zeros(len(new), device=new.device)  # log-SNR
        alpha, sigma = alpha_sigma(level)
        return gaussian_word_logits((alpha[:, None] * new)[:, None], known, alpha, sigma)[:, 0].softmax(-1)

    def rounding_logits(self, x_0: Tensor) -> Tensor:
        """log p(w | x_0) up to a constant, where x_0 is what is predicted (`mse`). (B, n, d) -> (B, n, V)"""
        return rounding_logits(x_0, self.embeddings())

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
        context: Tensor | None = None,
    ) -> Denoised:
        """x_t (B, n, d), log_snr (B,) or (1,), self_condition: an earlier x0_hat (B, n, d), clean: bool (B, n).

        Sentences of several lengths share a batch when `lengths` (B,) says how long each is; what stands beyond a
        sentence's end is never attended to, and meaningless in the result. context: ids of the words before the text
        (B, m), m at most `config.context`, NO_ROW in front of shorter ones.
        """
        length = x_t.shape[1]
        if not self.training and length < min(LEAST_WIDTH, self.config.max_length):
            return self.widened(x_t, log_snr, self_condition, clean, lengths, context)
        words = self.vocabulary() if self.config.output == "tied" else None
        embeddings = words.embedding if words is not None else self.embeddings()
        if context is not None:  # of one width, or sums depend on the batch's longest
            context = F.pad(context, (self.config.context - context.shape[1], 0), value=NO_ROW)
        before = None if context is None else Context(F.embedding(context.clamp(min=0), embeddings), context != NO_ROW)
        hidden = self.hidden_states(x_t, log_snr, self_condition, clean, lengths, before)
        if self.config.objective == "mse":
            x0_hat = self.output(F.layer_norm(hidden[-1], hidden[-1].shape[-1:])).to(embeddings.dtype)
            with torch.autocast(x_t.device.type, enabled=False):
                return Denoised(x_t, log_snr, self.rounding_logits(x0_hat), x0_hat, hidden, lengths)
        logits = self.word_logits(x_t, log_snr, hidden[-1], words)
        with torch.autocast(x_t.device.type, enabled=False):
            x0_hat = logits.softmax(-1) @ embeddings
            neighbours = self.neighbours() if self.new_words else None
        return Denoised(x_t, log_snr, logits, x0_hat, hidden, lengths, neighbours)

    def hidden_states(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        self_condition: Tensor | None = None,
        clean: Tensor | None = None,
        lengths: Tensor | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, ...]:
        """Each block's output at the words of the text, (B, n, width)."""
        batch, length, _ = x_t.shape
        if length > self.config.max_length:
            raise ValueError(f"length {length} is beyond the model's maximum of {self.config.max_length}")
        if self_condition is None:
            self_condition = torch.zeros_like(x_t)
        position = torch.arange(length, device=x_t.device)
        time = self.time(log_snr)
        h = self.input(torch.cat([x_t, self_condition], -1))  # (B, n, width)
        to_end = length - 1 - position if lengths is None else (lengths[:, None] - 1 - position).clamp(min=0)
        h = h + self.from_start(position) + self.from_end(to_end)
        mask = None if lengths is None else position < lengths[:, None]  # (B, n)
        if clean is not None:
            h = h + clean[..., None] * self.is_clean
        before = 0
        if context is not None:
            before = context.x_0.shape[1]
            h = torch.cat([self.read_context(context), h], 1)  # (B, m + n, width)
            text = x_t.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
            mask = torch.cat([context.present, text], 1)
        rotation = rotary(before + length, self.config.width // self.config.heads, h)
        mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, m + n)
        hidden = []
        for block in self.blocks:
            h = block(h, time, rotation, mask)
            hidden.append(h[:, before:] if before else h)  # a view would add gradients up in another order
        return tuple(hidden)

    def read_context(self, context: Context) -> Tensor:
        """The words before the text as the blocks' input, counted from the text backwards. (B, m, width)"""
        backwards = torch.arange(context.x_0.shape[1] - 1, -1, -1, device=context.x_0.device)
        h = self.input(torch.cat([context.x_0, torch.zeros_like(context.x_0)], -1))
        return h + self.is_clean + self.in_context(backwards)

    def word_logits(self, x_t: Tensor, log_snr: Tensor, hidden: Tensor, words: WordVectors | None = None) -> Tensor:
        """log p(w | x_t) up to a constant, in float32: at low noise it reaches hundreds. (B, n, V)

        hidden (B, n, width): the last block's output. `words` are those of a tied output. What the network adds to
        the Gaussian skip alpha x_t . e_w / sigma^2 is W h . e_w there, so both are one product:

            logits = (W h + alpha x_t / sigma^2) . e_w + U h . u_w + b_w
        """
        output = self.output(F.layer_norm(hidden, hidden.shape[-1:])).to(x_t.dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            alpha, sigma = alpha_sigma(log_snr)
            if words is None:
                return output + gaussian_word_logits(x_t, self.embeddings(), alpha, sigma)
            point, wide = output.split([self.config.embedding_dim, self.config.output_dim], -1)
            point = point + (alpha / sigma**2)[:, None, None] * x_t
            return F.linear(torch.cat([point, wide], -1), words.both, words.bias)

    def widened(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        self_condition: Tensor | None,
        clean: Tensor | None,
        lengths: Tensor | None,
        context: Tensor | None,
    ) -> Denoised:
        """`forward` on sentences filled up to LEAST_WIDTH, where sums no longer depend on the batch's longest."""
        batch, length, _ = x_t.shape
        more = min(LEAST_WIDTH, self.config.max_length) - length
        if lengths is None:
            lengths = torch.full((batch,), length, device=x_t.device)
        clean = F.pad(clean, (0, more)) if clean is not None else None
        self_condition = torch.zeros_like(x_t) if self_condition is None else self_condition
        wide_x_t, self_condition = (F.pad(x, (0, 0, 0, more)) for x in (x_t, self_condition))
        wide = self.forward(wide_x_t, log_snr, self_condition, clean, lengths, context)
        logits, x0_hat, *hidden = (x[:, :length] for x in (wide.logits, wide.x0_hat, *wide.hidden))
        return Denoised(x_t, log_snr, logits, x0_hat, tuple(hidden), lengths, wide.neighbours)

    def time(self, log_snr: Tensor) -> Tensor:
        """Features of the noise level: sines and cosines of log(sigma/alpha) / 4, then an MLP. (B,) -> (B, 64)"""
        frequency = torch.exp(torch.linspace(0.0, math.log(100.0), TIME_FEATURES // 2, device=log_snr.device))
        angle = (-log_snr / 8.0)[:, None] * frequency
        features = torch.cat([angle.sin(), angle.cos()], -1)
        return F.silu(self.time_out(F.silu(self.time_in(features))))
