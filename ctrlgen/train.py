"""One training loop for the denoiser and for classifiers, and the denoiser's own task.

`fit` is a generator: it yields what happened and leaves printing to its caller. All randomness of step k comes
from (seed, k) and is drawn for the whole batch before processes take their rows, so a run continues bit for
bit after a kill, and two processes follow the curve of one.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
import torch.fx.experimental._config
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained, save_pretrained
from ctrlgen.data import LengthBatches, read_texts
from ctrlgen.diffusion import Noise, cross_entropy_loss, draw_noise, simple_loss
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.files import atomic_file, make_directory, write_text
from ctrlgen.model import Denoiser, DenoiserConfig
from ctrlgen.optim import has_fast_bfloat16, make_optimizers
from ctrlgen.schedule import Schedule, WarpSchedule, make_schedule
from ctrlgen.tokenizer import WordTokenizer

RESUME, METRICS = "resume.safetensors", "metrics.jsonl"
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
class TrainingConfig:
    """How long and how fast to train. The learning rate is warmed up, held, and decayed linearly to zero."""

    steps: int = 20_000
    tokens_per_batch: int = 4096
    matrix_lr: float = 0.02  # Muon, hidden matrices; 0 trains them by AdamW as well
    lr: float = 0.002  # AdamW, everything else
    warmup_steps: int = 100
    decay_share: float = 0.6  # last part of the run in which the learning rate falls
    ema: float = 0.999
    clip: float = 1.0
    span_mask_rate: float = 0.1  # share of sentences given clean outside one span
    seed: int = 0
    init: str | None = None  # start from this model's weights and words: a bundled name, a directory or a hub id
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False  # torch.compile: a quarter faster after two minutes of compiling
    log_every: int = 10
    checkpoint_every: int = 200
    validate_every: int = 1000

    def learning_rate(self, step: int) -> float:
        """Factor on the peak rates at `step`."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / self.steps
        return warmup * min(1.0, left / self.decay_share if self.decay_share > 0 else 1.0)

    def ema_decay(self, step: int) -> float:
        """The average's memory grows with the run, so that it forgets the random start."""
        return min(self.ema, (step + 1) / (step + 10))


@dataclass(frozen=True)
class Recipe:
    """A whole training run, as written in a TOML file."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


class Task(Protocol):
    """What `fit` needs to know of the thing it trains."""

    @property
    def module(self) -> nn.Module:
        """Called as module(*batch) -> loss (B,), statistics."""
        ...

    def epoch(self, number: int) -> Sequence[Sequence[int]]:
        """Batches of one epoch; their number is the same in every epoch."""
        ...

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Any, ...], int]:
        """This process's rows of a batch, and the number of tokens in the whole of it."""
        ...

    def observe(self, statistics: Tensor) -> None:
        """Take in a batch's statistics, summed over processes."""
        ...

    def validate(self, module: nn.Module) -> dict[str, Any]: ...

    def save(self, module: nn.Module, directory: Path) -> None: ...


@dataclass(frozen=True)
class Progress:
    """One event of a run: a logged step, or a validation with its results."""

    step: int
    steps: int
    epoch: float
    loss: float
    tokens_per_second: float
    eta: float  # seconds
    validation: dict[str, Any] | None = None


def fit(
    task: Task,
    config: TrainingConfig,
    directory: Path,
    *,
    resume: bool = False,
    log_with: str | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Train `task.module`, writing checkpoints and metrics to `directory`, and yield progress.

    With `resume` a run continues from its last checkpoint; one made with another `fingerprint` is refused.
    Raises CtrlgenError where the directory already holds a model, or holds nothing to resume.
    """
    accelerator = Accelerator(log_with=log_with, project_dir=str(directory))
    prepare_directory(directory, resume)
    if log_with:
        accelerator.init_trackers("ctrlgen", config=dict(asdict(config).items()))
    optimizers = make_optimizers(task.module, config.matrix_lr, config.lr)
    average = copy.deepcopy(task.module).eval().requires_grad_(False)
    average.to(accelerator.device)
    module = accelerator.prepare(task.module)
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    state = RunState(task.module, average, optimizers, {"training": asdict(config)} | (fingerprint or {}))
    step = state.load(directory / RESUME) if resume else 0
    if accelerator.is_main_process:
        keep_metrics(directory / METRICS, step)
    per_epoch = len(task.epoch(0))
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    bfloat16 = uses_bfloat16(config, accelerator.device)
    started, tokens_seen, first_step = time.monotonic(), 0, step
    recent: list[float] = []  # losses since the last log
    epoch, order = step // per_epoch, task.epoch(step // per_epoch)

    def progress(validation: dict[str, Any] | None = None) -> Progress:
        elapsed = time.monotonic() - started
        return Progress(
            step, config.steps, step / per_epoch, sum(recent) / len(recent), tokens_seen / max(elapsed, 1e-9),
            elapsed / max(1, step - first_step) * (config.steps - step), validation,
        )  # fmt: skip

    interruption, between_steps = Interruption(), True
    try:
        while step < config.steps:
            between_steps = False
            if epoch != step // per_epoch:
                epoch = step // per_epoch
                order = task.epoch(epoch)
            indices = order[step % per_epoch]
            rng = torch.Generator().manual_seed(config.seed * 1_000_000_007 + step)
            torch.manual_seed(config.seed * 1_000_000_007 + step)  # dropout
            batch, tokens = task.batch(indices, rng, rows)
            batch = tuple(part.to(accelerator.device) for part in batch)
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bfloat16):
                loss, statistics = module(*batch)
            total = loss.sum() / len(indices)  # this process's share of the batch's mean
            accelerator.backward(total * accelerator.num_processes)
            accelerator.clip_grad_norm_(module.parameters(), config.clip)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * config.learning_rate(step)
                optimizer.step()
                optimizer.zero_grad()
            update_average(average, task.module, config.ema_decay(step))
            shared = accelerator.reduce(torch.cat([statistics.detach().flatten(), total.detach()[None]]), "sum")
            task.observe(shared[:-1].view_as(statistics))
            recent.append(float(shared[-1]))
            if not math.isfinite(recent[-1]):
                raise CtrlgenError(f"training diverged at step {step}: lower training.lr and training.matrix_lr")
            step += 1
            tokens_seen += tokens
            between_steps = True
            if step % config.log_every == 0 or step == config.steps:
                yield log(accelerator, directory, progress())
            if step % config.validate_every == 0 or step == config.steps:
                if accelerator.is_main_process:
                    task.save(average, directory)
                yield log(accelerator, directory, progress(task.validate(average)))
            if step % config.log_every == 0:
                recent.clear()
            if accelerator.is_main_process and (step % config.checkpoint_every == 0 or step == config.steps):
                state.save(directory / RESUME, step)
            accelerator.wait_for_everyone()
            if interruption.asked:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if accelerator.is_main_process and between_steps:
            state.save(directory / RESUME, step)
        raise
    finally:
        interruption.stop()
        if log_with:
            accelerator.end_training()


class Interruption:
    """Lets Ctrl-C wait for the end of a training step, so that what is saved is whole; the second one does not wait."""

    def __init__(self) -> None:
        self.asked = False
        self.earlier: Any = None
        if threading.current_thread() is threading.main_thread():
            self.earlier = signal.signal(signal.SIGINT, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def stop(self) -> None:
        if self.earlier is not None:
            signal.signal(signal.SIGINT, self.earlier)


def uses_bfloat16(config: TrainingConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return has_fast_bfloat16(device)
    return config.precision == "bfloat16"


def prepare_directory(directory: Path, resume: bool) -> None:
    """Refuse to overwrite a model, or to resume from nothing."""
    make_directory(directory)
    if resume and not (directory / RESUME).exists():
        raise CtrlgenError(f"{directory}: nothing to resume, {RESUME} is missing")
    if not resume and any((directory / name).exists() for name in (RESUME, "model.safetensors")):
        raise CtrlgenError(f"{directory}: already holds a model; continue it with --resume or choose another --out")


def keep_metrics(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last checkpoint, the last of them perhaps torn."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in itertools.takewhile(lambda line: step_of(line) <= step, lines)))


def step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def log(accelerator: Accelerator, directory: Path, progress: Progress) -> Progress:
    """Append one event to metrics.jsonl and to the trackers."""
    if accelerator.is_main_process:
        record = {k: v for k, v in asdict(progress).items() if v is not None}
        with (directory / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    scalars = {"loss": progress.loss, "tokens_per_second": progress.tokens_per_second}
    scalars |= {k: v for k, v in (progress.validation or {}).items() if isinstance(v, float)}
    accelerator.log(scalars, step=progress.step)
    return progress


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Exponential moving average of parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in module.parameters()], 1.0 - decay)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


class RunState:
    """All that a run needs to continue: weights, average, optimizers and step, in one safetensors file."""

    def __init__(
        self,
        module: nn.Module,
        average: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        fingerprint: dict[str, Any],
    ):
        self.module, self.average, self.optimizers = module, average, optimizers
        self.fingerprint = json.dumps(fingerprint, sort_keys=True)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def save(self, path: Path, step: int) -> None:
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        with atomic_file(path) as temporary:
            save_file(tensors, str(temporary), {"step": str(step), "fingerprint": self.fingerprint})

    def load(self, path: Path) -> int:
        """Restore everything and return the number of steps done."""
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except Exception as error:  # safetensors raises its own and OSError alike
            raise CtrlgenError(f"{path}: truncated or not a checkpoint") from error
        if metadata.get("fingerprint") != self.fingerprint:
            changed = differing_keys(json.loads(metadata.get("fingerprint", "{}")), json.loads(self.fingerprint))
            raise UsageError(f"{path}: was made with another recipe ({', '.join(changed)} changed)")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(part("module."))
        self.average.load_state_dict(part("average."))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in part(f"optimizer.{number}.").items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return int(metadata["step"])


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(f"{prefix}{key}")
    return changed


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
        else:
            self.tokenizer = start.tokenizer
        self.sentences = self.prepare(texts)
        if not self.sentences:
            limits = f"{recipe.data.min_length} to {recipe.model.max_length}"
            raise CtrlgenError(f"{recipe.data.train}: no text of {limits} words")
        self.batches = LengthBatches(self.sentences, recipe.training.tokens_per_batch, recipe.training.seed)
        held_out = recipe.data.validation
        self.held_out = self.prepare(read_texts(held_out, recipe.data.text_column)) if held_out else []
        torch.manual_seed(recipe.training.seed)
        denoiser = Denoiser(DenoiserConfig(vocab_size=len(self.tokenizer), **asdict(recipe.model)))
        if recipe.training.compile:
            torch.fx.experimental._config.use_duck_shape = False  # a length equal to a width is no rule
            denoiser.compile(dynamic=True)
        schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.min_noise, recipe.diffusion.max_noise)
        if start is not None:
            denoiser.load_state_dict(start.denoiser.state_dict())
            schedule.load_state_dict(start.schedule.state_dict())
        self.module = DenoisingLoss(denoiser, schedule, recipe.diffusion.steps)

    def prepare(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts that fit; of fixed length with <end> and <pad> under `mse`."""
        data, model = self.recipe.data, self.recipe.model
        sentences = self.tokenizer.encode_training(texts)
        if model.objective == "ce":
            return [s for s in sentences if data.min_length <= len(s) <= model.max_length]
        ended = [[*s, self.tokenizer.end_id] for s in sentences if data.min_length <= len(s) < model.max_length]
        return [s + [self.tokenizer.pad_id] * (model.max_length - len(s)) for s in ended]

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
        from ctrlgen.pipeline import sample_texts

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

    def save(self, module: nn.Module, directory: Path) -> None:
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
