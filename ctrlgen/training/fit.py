"""The training loop: of the denoiser, of classifiers, of language models.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctrlgen.checkpoint import WEIGHTS
from ctrlgen.controls.encoded import on_device
from ctrlgen.diffusion.precision import has_fast_bfloat16
from ctrlgen.errors import CtrlgenError, UsageError, first_line
from ctrlgen.files import append_line, make_directory, read_lines, to_json, write_text
from ctrlgen.keys import Key
from ctrlgen.training.optim import make_optimizers
from ctrlgen.training.run_state import RunState

MAX_SEED = 2**31 - 1  # torch reads 32 bits of a seed: within these no two are one
RESUME, METRICS = "resume.safetensors", "metrics.jsonl"
INTERRUPTIONS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train. The learning rate is warmed up, held, and decayed linearly to zero.

    A head starts from the directory that `init` names.
    """

    steps: Annotated[int, Key("training steps; the learning rate falls to zero at the last", least=1)] = 20_000
    tokens_per_batch: Annotated[int, Key("words of a step", least=1)] = 4096
    matrix_lr: Annotated[float, Key("peak rate of Muon, for the blocks' matrices; 0 trains them by AdamW")] = 0.02
    lr: Annotated[float, Key("peak rate of AdamW, which trains everything else")] = 0.002
    warmup_steps: Annotated[int, Key("steps in which the rates rise")] = 100
    decay_share: Annotated[float, Key("last part of the run in which they fall", most=1)] = 0.6
    ema: Annotated[float, Key("decay of the average of the weights, which is the model that is saved", most=1)] = 0.999
    clip: Annotated[float, Key("largest norm of the gradient")] = 1.0
    span_mask_rate: Annotated[
        float, Key("share of the texts that are given clean outside some spans, for infilling and corrections", most=1)
    ] = 0.1
    mask_spans: Annotated[int, Key("the most spans of such a text", least=1)] = 1
    sampled_words: Annotated[int, Key("tied: how many other words a batch tells its own apart from; 0 is all")] = 0
    own_dropout: Annotated[
        float, Key("tied: share of the words that do without their own vectors in a step", most=1)
    ] = 0.1
    learn: Annotated[
        Literal["all", "network", "pieces"],
        Key("tied: `network` learns all but the words' vectors, `pieces` only spellings, so that classifiers stay"),
    ] = "all"
    counted_vectors: Annotated[
        bool, Key("tied: the words' vectors start from counts of the words beside them, not from chance")
    ] = False
    context_share: Annotated[float, Key("share of the batches that have earlier sentences in front", most=1)] = 0.1
    seed: Annotated[int, Key("of weights, order and noise", least=-math.inf, most=math.inf)] = 0
    init: Annotated[
        str | None,
        Key("a model to start from: a name, a directory or a hub id; one with a full output can become a tied one"),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Key("`float32`, `bfloat16`, or what the processor multiplies fast")
    ] = "auto"
    compile: Annotated[bool, Key("`torch.compile`: up to a quarter faster with AMX, after minutes")] = False
    log_every: Annotated[int, Key("steps between lines of metrics.jsonl", least=1)] = 10
    checkpoint_every: Annotated[int, Key("steps between checkpoints, from which `--resume` goes on", least=1)] = 200
    validate_every: Annotated[int, Key("steps between validations, each of which saves the model", least=1)] = 1000

    def __post_init__(self) -> None:
        if abs(self.seed) > MAX_SEED:
            raise UsageError(f"the seed must be at most {MAX_SEED} in size, got {self.seed}")

    def paced(self, validations: int) -> TrainingConfig:
        """The same for few steps as well: warmed up within the first tenth, validated so many times at most."""
        warmup = min(self.warmup_steps, max(1, self.steps // 10))
        return replace(self, warmup_steps=warmup, validate_every=max(1, -(-self.steps // validations)))

    def learning_rate(self, step: int) -> float:
        """Factor on the peak rates at `step`."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / self.steps
        return warmup * min(1.0, left / self.decay_share if self.decay_share > 0 else 1.0)

    def ema_decay(self, step: int) -> float:
        """The average's memory grows with the run, so that it forgets the random start."""
        return min(self.ema, (step + 1) / (step + 10))


class Task(Protocol):
    """What `fit` needs to know of the thing it trains."""

    @property
    def module(self) -> nn.Module:
        """Called as module(*batch) -> loss (B,), statistics."""
        ...

    def steps(self, epoch: int) -> Sequence[Sequence[Sequence[int]]]:
        """The steps of an epoch, each of batches whose gradients are added; their number is the same in every epoch."""
        ...

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Any, ...], int]:
        """This process's rows of a batch, and the number of tokens in the whole of it."""
        ...

    def observe(self, statistics: Tensor) -> None:
        """Take in a batch's statistics, summed over processes."""
        ...

    def validate(self, module: nn.Module) -> dict[str, Any]: ...

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        """Write the module, or leave what an earlier and better one wrote."""
        ...


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
    device: torch.device,
) -> Iterator[Progress]:
    """Train `task.module`, writing checkpoints and metrics to `directory`, and yield progress.

    With `resume` a run continues from its last checkpoint; one made with another `fingerprint` is refused. Each process
    of a distributed run takes its own `device` of that kind.
    Raises CtrlgenError where the directory already holds a model, or holds nothing to resume.
    """
    accelerator = accelerator_on(device, log_with=log_with, project_dir=str(directory))
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
    per_epoch = len(task.steps(0))
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    bfloat16 = uses_bfloat16(config, accelerator.device)
    started, tokens_seen, first_step = time.monotonic(), 0, step
    recent = state.recent
    epoch, order = step // per_epoch, task.steps(step // per_epoch)

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
                order = task.steps(epoch)
            batches = order[step % per_epoch]
            texts = sum(map(len, batches))
            rng = torch.Generator().manual_seed(config.seed * 1_000_000_007 + step)
            torch.manual_seed(config.seed * 1_000_000_007 + step)  # dropout
            mean = 0.0
            for indices in batches:
                batch, tokens = task.batch(indices, rng, rows)
                batch = on_device(batch, accelerator.device)
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bfloat16):
                    loss, statistics = module(*batch)
                total = loss.sum() / texts  # this process's share of the step's mean
                accelerator.backward(total * accelerator.num_processes)
                shared = accelerator.reduce(torch.cat([statistics.detach().flatten(), total.detach()[None]]), "sum")
                task.observe(shared[:-1].view_as(statistics))
                mean += float(shared[-1])
                tokens_seen += tokens
            accelerator.clip_grad_norm_(module.parameters(), config.clip)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * config.learning_rate(step)
                optimizer.step()
                optimizer.zero_grad()
            update_average(average, task.module, config.ema_decay(step))
            recent.append(mean)
            if not math.isfinite(recent[-1]):
                raise CtrlgenError(f"training diverged at step {step}: lower training.lr and training.matrix_lr")
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                yield log(accelerator, directory, progress())
            validating = step % config.validate_every == 0 or step == config.steps
            if validating:
                validation = task.validate(average)
                if accelerator.is_main_process:
                    task.save(average, directory, validation)
                yield log(accelerator, directory, progress(validation))
            if step % config.log_every == 0:
                recent.clear()
            between_steps = True  # a step's validation is part of it
            if accelerator.is_main_process and (validating or step % config.checkpoint_every == 0):
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


def accelerator_on(device: torch.device, **options: Any) -> Accelerator:
    """Raises CtrlgenError where accelerate has settled on another kind of device, which it does once in a process."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", **options)
    except ValueError as error:
        raise CtrlgenError(f"cannot train on {device.type}: {first_line(error)}") from error
    if accelerator.device.type != device.type:
        raise CtrlgenError(f"cannot train on {device.type}: this process trains on {accelerator.device.type}")
    return accelerator


class Interruption:
    """Lets Ctrl-C wait for the end of a training step, so that what is saved is whole; the second one does not wait.

    SIGTERM and SIGHUP are the same, where they are not ignored (as under nohup).
    """

    def __init__(self) -> None:
        self.asked = False
        self.earlier: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in INTERRUPTIONS if hasattr(signal, name)]
            numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
            self.earlier = {number: signal.signal(number, self.note) for number in numbers}

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def stop(self) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)


def uses_bfloat16(config: TrainingConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return has_fast_bfloat16(device)
    return config.precision == "bfloat16"


def prepare_directory(directory: Path, resume: bool) -> None:
    """Refuse to overwrite a model, or to resume from nothing."""
    make_directory(directory)
    if resume and not (directory / RESUME).exists():
        raise CtrlgenError(f"{directory}: nothing to resume, {RESUME} is missing")
    if not resume and (directory / RESUME).exists():
        raise CtrlgenError(f"{directory}: already holds a model; continue it with --resume or choose another --out")
    if not resume and (directory / WEIGHTS).exists():
        raise CtrlgenError(f"{directory}: already holds a model; choose another --out")


def keep_metrics(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last checkpoint, the last of them perhaps torn."""
    lines = read_lines(path) if path.exists() else []
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
        append_line(directory / METRICS, to_json(record))
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
