"""How much of the machine's own matrix-product rate training reaches.

    python benchmarks/throughput.py [--recipe examples/recipes/e2e.toml] [--precision float32] [--compile]

Counts the floating-point operations of one training step's matrix products, times steps on random sentences of
average length, and times bare products of the very same shapes. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from ctrlgen.diffusion import draw_noise
from ctrlgen.model import Denoiser, DenoiserConfig
from ctrlgen.optim import make_optimizers
from ctrlgen.recipe import read_recipe
from ctrlgen.schedule import make_schedule
from ctrlgen.train import DenoisingLoss, ModelConfig

LENGTH, VOCABULARY = 22, 820
REPEATS = 12


def seconds(work: Callable[[], object], warm_up: int = 3) -> float:
    """Median seconds of one call."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def product_shapes(model: ModelConfig, tokens: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of every product with weights in one forward pass."""
    w = model.width
    block = [(tokens, w, 3 * w), (tokens, w, w), (tokens, w, 4 * w), (tokens, 4 * w, w)]
    return [(tokens, 2 * model.embedding_dim, w), *(block * model.layers), (tokens, w, VOCABULARY)]


def bare_product_seconds(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """Time of the forward pass's products and the two of each in the backward pass, nothing else."""
    total = 0.0
    for rows, inner, columns in shapes:
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        c = torch.randn(rows, columns).to(dtype)
        total += seconds(lambda a=a, b=b: a @ b)
        total += seconds(lambda b=b, c=c: c @ b.T)
        total += seconds(lambda a=a, c=c: a.T @ c)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("examples/recipes/e2e.toml"))
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    rows = recipe.training.tokens_per_batch // LENGTH
    tokens = rows * LENGTH
    shapes = product_shapes(recipe.model, tokens)
    operations = 3 * sum(2 * a * b * c for a, b, c in shapes)

    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(VOCABULARY, **vars(recipe.model)))
    if options.compile:
        denoiser.compile()
    loss = DenoisingLoss(denoiser, make_schedule("warp"), recipe.diffusion.steps)
    optimizers = make_optimizers(loss, recipe.training.matrix_lr, recipe.training.lr)
    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bfloat16" else "no")
    loss = accelerator.prepare(loss)
    words = torch.randint(3, VOCABULARY, (rows, LENGTH))
    noise = draw_noise(rows, LENGTH, recipe.model.embedding_dim, torch.Generator().manual_seed(0))
    noise = replace(noise, self_condition=torch.tensor(False))

    def step() -> None:
        accelerator.backward(loss(words, *noise.tensors())[0].mean())
        accelerator.clip_grad_norm_(loss.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step_seconds = seconds(step)
    product_seconds = bare_product_seconds(shapes, getattr(torch, options.precision))
    result = {
        "precision": options.precision,
        "compile": options.compile,
        "step_seconds": step_seconds,
        "tokens_per_second": tokens / step_seconds,
        "step_gflops": operations / step_seconds / 1e9,
        "machine_gflops": operations / product_seconds / 1e9,
        "share": product_seconds / step_seconds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
