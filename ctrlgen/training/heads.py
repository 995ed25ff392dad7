"""Training attribute classifiers: heads that read the frozen denoiser's hidden states of noised text.

A head learns log p(target | x_t) at every noise level, so that its gradient can steer every step. It sees the denoiser
as sampling does, told of more noise than there is (`TimeOffsets`). Which targets there are and how they are
scored is the head's; noise, batches and the loop are here.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, read_config, read_weights, write_weights
from ctrlgen.controls.encoded import Encoded, on_device, take_rows
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.losses import denoise
from ctrlgen.diffusion.process import draw_noise, q_sample
from ctrlgen.errors import CtrlgenError
from ctrlgen.files import write_text
from ctrlgen.training.batches import LengthBatches

if TYPE_CHECKING:
    from ctrlgen.training.fit import Progress, TrainingConfig

Target = TypeVar("Target")
Item = TypeVar("Item")
AnyModule = TypeVar("AnyModule", bound=nn.Module)
NOISE_EDGES = (0.5, 1.0, 2.0, 4.0, 8.0)  # sigma/alpha borders of the accuracy report
HELD_OUT_SHARE, MOST_HELD_OUT, HELD_OUT_SEED = 0.05, 1024, 0  # the same texts in every training
FEWEST_TEXTS = 20


@dataclass(frozen=True)
class Example(Generic[Target]):
    """A training text with its attribute."""

    tokens: list[int]
    target: Target


@dataclass(frozen=True)
class TimeOffsets:
    """By how much the log-SNR that the denoiser is told of differs from the true one, while a head is trained.

    Sampling tells it of such offsets (`Settings.time_offset`), so a head learns under all between these two.
    """

    least: float = -1.5
    most: float = 0.0
    validation: float = -1.0  # at which held-out texts are read

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """(count,), uniform."""
        return self.most + (self.least - self.most) * torch.rand(count, generator=rng)


Augment = Callable[[Sequence[Example[Any]]], list[Example[Any]]]


class Head(nn.Module, ABC):
    """log p(target | x_t) from what the denoiser knows. Kept float32-small: its file lies beside the model's."""

    @abstractmethod
    def log_prob(self, denoised: Denoised, encoded: Encoded) -> Tensor:
        """log p(target | x_t) in nats, differentiable in x_t. (B,)"""

    @abstractmethod
    def accuracy(self, denoised: Denoised, encoded: Encoded) -> Tensor:
        """Share of each row's target that the head's own best guess gets right, in [0, 1]. (B,)"""

    @abstractmethod
    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Encoded:
        """Targets with first dimension B, see `Classifier.encode`."""

    def count(self, examples: Sequence[Example[Any]]) -> None:
        """Take in, before training, what can be counted in the texts that are learned from."""


class HeadLoss(nn.Module):
    """A head with its frozen trunk: negative log-probability of the targets at random noise levels."""

    def __init__(self, head: Head, model: DiffusionLM):
        super().__init__()
        self.head = head
        self._model = (model,)  # hidden from parameters(): the trunk is neither trained nor saved

    def denoise(self, tokens: Tensor, t: Tensor, offset: Tensor, eps: Tensor, self_condition: Tensor) -> Denoised:
        """What the denoiser says of noised tokens, told a log-SNR that is off by `offset` (B,)."""
        (model,) = self._model
        with torch.no_grad():
            log_snr = model.schedule.log_snr(t)
            x_t = q_sample(model.denoiser.embed(tokens), eps, log_snr)
            told = log_snr if model.fixed_length else log_snr + offset
            return denoise(model.denoiser, x_t, told, None, bool(self_condition))

    def forward(
        self, tokens: Tensor, encoded: Encoded, t: Tensor, offset: Tensor, eps: Tensor, self_condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        denoised = self.denoise(tokens, t, offset, eps, self_condition).text
        return -self.head.log_prob(denoised, encoded) / tokens.shape[1], t.new_zeros(0)


class HeadTask:
    """The `Task` behind `ctrlgen train-classifier`."""

    def __init__(
        self,
        model: DiffusionLM,
        head: Head,
        examples: Sequence[Example[Any]],
        config: TrainingConfig,
        augment: Augment | None = None,
        counts: bool = False,
    ):
        """counts: whether the head first takes in what can be counted (`Head.count`), as a new one does."""
        self.model, self.offsets = model, TimeOffsets()
        examples = [e for e in examples if len(e.tokens) <= model.longest]
        if len({tuple(e.tokens) for e in examples}) < FEWEST_TEXTS:
            raise CtrlgenError(f"fewer than {FEWEST_TEXTS} different usable texts: too few to train a classifier")
        learned, held_out = hold_out(examples)
        if augment is not None:  # never of what is held out
            learned = [*learned, *(e for e in augment(learned) if len(e.tokens) <= model.longest)]
        if counts:
            head.count(learned)
        self.examples, self.held_out = self.framed(learned), self.framed(held_out)
        self.module = HeadLoss(head, model)
        self.best: dict[str, Any] | None = None  # validation, that of the head which is saved
        self.batches = LengthBatches([e.tokens for e in self.examples], config.tokens_per_batch, config.seed)

    def framed(self, examples: Sequence[Example[Any]]) -> list[Example[Any]]:
        """Examples as the model sees their texts."""
        if not self.model.fixed_length:
            return list(examples)
        rows = self.model.rows([e.tokens for e in examples])
        return [replace(e, tokens=row) for e, row in zip(examples, rows, strict=True)]

    def encode(self, examples: Sequence[Example[Any]], length: int) -> Encoded:
        """The targets of texts in rows of `length`."""
        size = length - len(self.model.tokenizer.opening)
        return self.module.head.encode([e.target for e in examples], [size] * len(examples))

    def steps(self, epoch: int) -> list[list[list[int]]]:
        return self.batches.steps(epoch)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Any, ...], int]:
        tokens = self.batches.tokens(indices)
        batch, length = tokens.shape
        noise = draw_noise(batch, length, self.model.config.embedding_dim, rng)
        encoded = self.encode([self.examples[i] for i in indices], length)
        offset = self.offsets.draw(batch, rng)
        by_row = (take_rows(part, rows) for part in (tokens, encoded, noise.t, offset, noise.eps))
        return (*by_row, noise.self_condition), tokens.numel()

    def observe(self, statistics: Tensor) -> None:
        pass

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, Any]:
        """Held-out accuracy at one time offset, overall and by noise level sigma/alpha."""
        assert isinstance(module, HeadLoss)
        rng = torch.Generator().manual_seed(0)
        batches = LengthBatches([e.tokens for e in self.held_out], 4096, seed=0)
        by_level: dict[str, list[float]] = defaultdict(list)
        costs = []
        for indices in batches.epoch(0):
            tokens = batches.tokens(indices)
            batch, length = tokens.shape
            noise = draw_noise(batch, length, self.model.config.embedding_dim, rng)
            device = self.model.device
            encoded = on_device(self.encode([self.held_out[i] for i in indices], length), device)
            offset = torch.full((batch,), self.offsets.validation)
            parts = [p.to(device) for p in (tokens, noise.t, offset, noise.eps, torch.tensor(True))]
            denoised = module.denoise(*parts).text
            costs += (-module.head.log_prob(denoised, encoded) / tokens.shape[1]).tolist()
            right = module.head.accuracy(denoised, encoded)
            log_snrs = self.model.schedule.log_snr(noise.t.to(device)).tolist()
            for log_snr, share in zip(log_snrs, right.tolist(), strict=True):
                by_level[noise_label(math.exp(-log_snr / 2))].append(share)
        everything = [share for shares in by_level.values() for share in shares]
        levels = {label: sum(by_level[label]) / len(by_level[label]) for label in noise_labels() if by_level[label]}
        accuracy = sum(everything) / len(everything)
        return {"accuracy": accuracy, "validation_loss": sum(costs) / len(costs), "accuracy_by_noise": levels}

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        """Early stopping: the head to which held-out targets are likeliest is kept."""
        assert isinstance(module, HeadLoss)
        if self.best is None or validation["validation_loss"] < self.best["validation_loss"]:
            self.best = validation
            write_weights(directory / WEIGHTS, module.head.state_dict())


def hold_out(
    items: Sequence[Item],
    share: float = HELD_OUT_SHARE,
    most: int = MOST_HELD_OUT,
    seed: int = HELD_OUT_SEED,
    text: Callable[[Any], Sequence[int]] = attrgetter("tokens"),
) -> tuple[list[Item], list[Item]]:
    """What to learn from, and that of a share of the different texts, `most` at most, which is kept away.

    text: the ids of an item's text.
    """
    of_items = [tuple(text(item)) for item in items]
    different = sorted(set(of_items))
    kept = set(Random(seed).sample(different, min(most, max(1, int(len(different) * share)))))
    apart = [of_item in kept for of_item in of_items]
    return [item for item, out in zip(items, apart, strict=True) if not out], list(compress(items, apart))


def noise_labels() -> list[str]:
    edges = [f"{edge:g}" for edge in NOISE_EDGES]
    return [f"< {edges[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(edges)), f"> {edges[-1]}"]


def noise_label(noise: float) -> str:
    return noise_labels()[sum(noise >= edge for edge in NOISE_EDGES)]


def train_head(
    model: DiffusionLM,
    head: Head,
    examples: Sequence[Example[Any]],
    config: TrainingConfig,
    directory: Path,
    description: dict[str, Any],
    augment: Augment | None = None,
) -> Iterator[Progress]:
    """Train a head and leave its files in `directory`. `description` becomes its config.json.

    `augment` gives more examples for those that are learned from.

    Where `config.init` is the directory of a classifier, the head starts from that one's weights.
    """
    from ctrlgen.training.fit import fit  # only training needs accelerate

    start = starting_point(config, description["kind"])
    if start is not None:
        fill(head, start.directory)
        description = description | {"started_from": {key: start.said(key) for key in ("trained_on", "training")}}
    task = HeadTask(model, head, examples, config, augment, counts=start is None)
    description = description | {"time_offsets": asdict(task.offsets)}
    for progress in fit(task, config, directory, device=model.device):
        if progress.validation and progress.validation is task.best:
            training = asdict(replace(config, init=None))  # `started_from` says what is not a matter of paths
            text = json.dumps(description | {"measured": progress.validation, "training": training}, indent=2)
            write_text(directory / CONFIG, text + "\n")
        yield progress


def mix_layers(layer_mix: Tensor, denoised: Denoised) -> Tensor:
    """The denoiser's hidden states, normalised, in a learned mixture. layer_mix (layers,) -> (B, n, width)"""
    weights = layer_mix.softmax(0)
    return sum(w * F.layer_norm(h, h.shape[-1:]) for w, h in zip(weights, denoised.hidden, strict=True))


@dataclass(frozen=True)
class Start:
    """A trained classifier from which another one starts."""

    directory: Path
    config: dict[str, Any]  # its config.json

    def said(self, *keys: str) -> Any:
        """What its config.json says under these keys, one within another. Raises CtrlgenError where it says nothing."""
        value: Any = self.config
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise CtrlgenError(f"{self.directory / CONFIG}: says nothing of {'.'.join(keys)}")
            value = value[key]
        return value


def starting_point(config: TrainingConfig, kind: str) -> Start | None:
    """What `config.init` is the directory of. Raises CtrlgenError where that is no classifier of this kind."""
    if config.init is None:
        return None
    start = Start(Path(config.init), read_config(Path(config.init) / CONFIG))
    if start.config.get("kind") != kind:
        raise CtrlgenError(f"{start.directory}: is no {kind} classifier to start from")
    return start


def fill(module: AnyModule, directory: Path, file: str = WEIGHTS) -> AnyModule:
    """Give a head, or the oracle beside it, its saved weights. Raises CtrlgenError where they do not fit."""
    try:
        module.load_state_dict(read_weights(directory / file))
    except RuntimeError as error:
        raise CtrlgenError(f"{directory / file}: does not fit {CONFIG}") from error
    return module


def load_head(module: AnyModule, directory: Path, file: str = WEIGHTS) -> AnyModule:
    """The same for use, not for training."""
    return fill(module, directory, file).eval().requires_grad_(False)
