"""Training small networks on clean texts: oracles, in minutes and on one core.

Here are no noise, checkpoints, average or devices, which is what `fit.py` is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from statistics import mean
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.optim import make_optimizers

if TYPE_CHECKING:
    from ctrlgen.training.fit import Progress

MOST_EPOCHS, MOST_STEPS = 60, 3000  # unless the steps are given
LR, WARMUP_STEPS, CLIP = 3e-3, 50, 1.0
LOG_EVERY = 20


def train_small(
    module: nn.Module,
    loss_of: Callable[[Tensor, Sequence[int]], Tensor],
    batches: LengthBatches,
    steps: int | None = None,
    matrix_lr: float = 0.0,
) -> Iterator[Progress]:
    """Train `module`, yielding progress, and leave it ready for use. The rate rises for a while, then falls to zero.

    loss_of: the mean loss of a batch, from its tokens (B, n) and the indices of its texts.
    matrix_lr: the peak rate of Muon, which then trains the matrices of its blocks.
    """
    from ctrlgen.training.fit import Progress  # only training needs accelerate

    per_epoch = len(batches.epoch(0))
    steps = min(MOST_STEPS, MOST_EPOCHS * per_epoch) if steps is None else steps
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    optimizers = make_optimizers(module, matrix_lr, LR)
    started, tokens_seen, recent = time.monotonic(), 0, []
    for step, indices in enumerate(islice(chain.from_iterable(map(batches.epoch, count())), steps), 1):
        tokens = batches.tokens(indices)
        loss = loss_of(tokens, indices)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * min(step / warmup, 1 - (step - 1) / steps)
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        tokens_seen += tokens.numel()
        if step % LOG_EVERY == 0:
            elapsed = time.monotonic() - started
            rate, left = tokens_seen / elapsed, elapsed * (steps / step - 1)
            yield Progress(step, steps, step / per_epoch, mean(recent), rate, left)
            recent.clear()
    module.eval().requires_grad_(False)
