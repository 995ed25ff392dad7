"""Training the denoiser on sentences: `ctrlgen train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained, save_pretrained
from ctrlgen.data import LengthBatches, fitting, read_texts
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.process import Noise, cross_entropy_loss, draw_noise, simple_loss
from ctrlgen.diffusion.schedule import Schedule, WarpSchedule, make_schedule
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.tokenizer import SPECIAL, WordTokenizer
from ctrlgen.training.fit import Progress, TrainingConfig, differing_keys, fit

VALIDATION_SENTENCES = 2048
VALIDATION_LEVELS = 4  # noise levels seen by each validation sentence


@dataclass(frozen=True)
class DataConfig:
    """Where the texts are (path or hub id) and how they become token ids."""

    train: str
    validation: str | None = None
    text_column: str | None = None
    min_count: int = 2  # a word seen less often becomes <unk>
    max_vocab: int = 30_000
    min_length: int = 2


@dataclass(frozen=True)
class ModelConfig:
    """The denoiser's size; see `DenoiserConfig`."""

    embedding_dim: int = 16
    width: int = 256
    layers: int = 6
    heads: int = 4
    max_length: int = 64
    dropout: float = 0.0
    objective: Literal["ce", "mse"] = "ce"


@dataclass(frozen=True)
class Recipe:
    """A whole training run, as written in a TOML file."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


class DenoisingLoss(nn.Module):
    """The denoiser with its loss, as one module, so that distributed training sees a single forward pass."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, steps: int):
        super().__init__()
        self.denoiser, self.schedule, self.steps = denoiser, schedule, steps

    def forward(self, tokens: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, n) -> loss (B,), the warp's statistics (2, bins), empty for a fixed schedule."""
        drawn = Noise(*noise)
        if self.denoiser.config.objective == "mse":
            loss, log_snr = simple_loss(self.denoiser, self.schedule, tokens, drawn, self.steps)
        else:
            loss, log_snr = cross_entropy_loss(self.denoiser, self.schedule, tokens, drawn)
        if isinstance(self.schedule, WarpSchedule):
            return loss, self.schedule.bin_sums(log_snr, loss.detach().float())
        return loss, loss.new_zeros(0)


class DenoisingTask:
    """Training the denoiser on sentences: the `Task` behind `ctrlgen train`."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        texts = read_texts(recipe.data.train, recipe.data.text_column)
        start = starting_model(recipe)
        if start is None:
            self.tokenizer = WordTokenizer.train(texts, recipe.data.min_count, recipe.data.max_vocab)
            if len(self.tokenizer) == len(SPECIAL):
                raise CtrlgenError(f"{recipe.data.train}: no word is seen {recipe.data.min_count} times")
        else:
            self.tokenizer = start.tokenizer
        self.sentences = self.prepare(texts, recipe.data.train)
        self.batches = LengthBatches(self.sentences, recipe.training.tokens_per_batch, recipe.training.seed)
        held_out = recipe.data.validation
        self.held_out = self.prepare(read_texts(held_out, recipe.data.text_column), held_out) if held_out else []
        torch.manual_seed(recipe.training.seed)
        try:
            denoiser = Denoiser(DenoiserConfig(vocab_size=len(self.tokenizer), **asdict(recipe.model)))
        except RuntimeError as error:  # torch's allocator
            raise CtrlgenError("a model of these sizes does not fit into memory") from error
        if recipe.training.compile:
            torch.fx.experimental._config.use_duck_shape = False  # a length equal to a width is no rule
            denoiser.compile(dynamic=True, options={"fallback_random": True})  # inductor's own dropout is slow on a CPU
        schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.min_noise, recipe.diffusion.max_noise)
        if start is not None:
            denoiser.load_state_dict(start.denoiser.state_dict())
            schedule.load_state_dict(start.schedule.state_dict())
        self.module = DenoisingLoss(denoiser, schedule, recipe.diffusion.steps)

    def prepare(self, texts: Sequence[str], source: str) -> list[list[int]]:
        """Token ids of the texts that fit; of fixed length with <end> and <pad> under `mse`."""
        least, model, tokenizer = self.recipe.data.min_length, self.recipe.model, self.tokenizer
        most = model.max_length if model.objective == "ce" else model.max_length - 1
        sentences = fitting(tokenizer.encode_training(texts), least, most, tokenizer.unk_id, source)
        return sentences if model.objective == "ce" else [tokenizer.filled(s, model.max_length) for s in sentences]

    def epoch(self, number: int) -> list[list[int]]:
        return self.batches.epoch(number)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Tensor, ...], int]:
        tokens = self.batches.tokens(indices)  # (B, n)
        noise = self.draw(tokens, rng)
        return (tokens[rows], *noise.rows(rows).tensors()), tokens.numel()

    def draw(self, tokens: Tensor, rng: torch.Generator) -> Noise:
        recipe = self.recipe
        batch, length = tokens.shape
        discrete = recipe.diffusion.steps if recipe.model.objective == "mse" else None
        rate = 0.0 if discrete else recipe.training.span_mask_rate
        return draw_noise(batch, length, recipe.model.embedding_dim, rng, rate, discrete)

    def observe(self, statistics: Tensor) -> None:
        if isinstance(self.module.schedule, WarpSchedule):
            self.module.schedule.observe(statistics)

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, Any]:
        """Mean held-out loss and a few samples. The noise is the same at every call: the warp has not moved it."""
        from ctrlgen.generation.generator import sample_texts

        assert isinstance(module, DenoisingLoss)
        results: dict[str, Any] = {"samples": sample_texts(self.model(module), count=4, seed=0)}
        if self.held_out:
            diffusion = self.recipe.diffusion
            unlearned = make_schedule(diffusion.schedule, diffusion.min_noise, diffusion.max_noise)
            device = module.denoiser.word_embedding.device
            held_out_loss = DenoisingLoss(module.denoiser, unlearned, diffusion.steps).to(device)
            rng = torch.Generator().manual_seed(0)
            batches = LengthBatches(self.held_out[:VALIDATION_SENTENCES], 4096, seed=0)
            losses = []
            for indices in batches.epoch(0):
                tokens = batches.tokens(indices).repeat(VALIDATION_LEVELS, 1)
                noise = [part.to(device) for part in self.draw(tokens, rng).tensors()]
                losses.append(held_out_loss(tokens.to(device), *noise)[0])
            results["validation_loss"] = float(torch.cat(losses).mean())
        return results

    def model(self, module: DenoisingLoss) -> DiffusionLM:
        lengths = {n: len(rows) for n, rows in self.batches.by_length.items()}
        return DiffusionLM(module.denoiser, module.schedule, self.tokenizer, self.recipe.diffusion, lengths)

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        assert isinstance(module, DenoisingLoss)
        save_pretrained(self.model(module), directory)


def starting_model(recipe: Recipe) -> DiffusionLM | None:
    """The model that `training.init` names. Raises UsageError where the recipe describes another one."""
    if recipe.training.init is None:
        return None
    model = from_pretrained(recipe.training.init)
    wanted = {"model": asdict(recipe.model), "diffusion": asdict(recipe.diffusion)}
    is_so = {key: getattr(model.config, key) for key in wanted["model"]}
    changed = differing_keys({"model": is_so, "diffusion": asdict(model.diffusion)}, wanted)
    changed = [key for key in changed if key != "model.dropout"]
    if changed:
        raise UsageError(f"{recipe.training.init}: cannot start from it: the recipe says another {', '.join(changed)}")
    return model


def train(recipe: Recipe, directory: Path, *, resume: bool = False, log_with: str | None = None) -> Iterator[Progress]:
    """Train a denoiser as `recipe` says. Yields progress; the model is in `directory` when it ends."""
    task = DenoisingTask(recipe)
    made_of = {"sentences": len(task.sentences), "model": asdict(recipe.model), "diffusion": asdict(recipe.diffusion)}
    yield from fit(task, recipe.training, directory, resume=resume, log_with=log_with, fingerprint=made_of)
