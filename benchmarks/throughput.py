"""How much of the machine's own matrix-product rate training reaches.

    python benchmarks/throughput.py [--recipe examples/recipes/english.toml] [--words 20000] [--precision bfloat16]

Trains the recipe's model with `ctrlgen train`'s own loop on random sentences of average length, one forward and one
backward pass a step, counts the floating-point operations of its matrix products, and times bare products of the very
same shapes. Words are as frequent as Zipf's law says. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from ctrlgen.diffusion.denoiser import ModelConfig
from ctrlgen.diffusion.precision import find_device
from ctrlgen.diffusion.process import Noise
from ctrlgen.training.denoising import DataConfig, DenoisingTask, Recipe
from ctrlgen.training.fit import fit
from ctrlgen.training.recipe import read_recipe

LENGTH = 22  # words of an average E2E text
STEPS, WARM_UP, WINDOWS = 5, 2, 12  # steps in a window that is timed; windows that are not; those that are
REPEATS = 12


class PlainTask(DenoisingTask):
    """Training without self-conditioning, which would add a forward pass to some of the steps."""

    def draw(self, tokens: torch.Tensor, rng: torch.Generator) -> Noise:
        return replace(super().draw(tokens, rng), self_condition=torch.tensor(False))


def random_texts(count: int, words: int) -> str:
    """Sentences of words with Zipf's frequencies, each word at least once."""
    rng = random.Random(0)
    drawn = rng.choices(range(words), [1 / rank for rank in range(1, words + 1)], k=max(0, count * LENGTH - words))
    drawn += range(words)
    rng.shuffle(drawn)
    return "\n".join(" ".join(f"word{id}" for id in drawn[i : i + LENGTH]) for i in range(0, len(drawn), LENGTH))


def step_seconds(recipe: Recipe, words: int) -> tuple[float, int, int]:
    """Median seconds of a training step, the tokens in it, and how many words it tells apart."""
    with tempfile.TemporaryDirectory() as directory:
        texts = Path(directory, "texts.txt")
        texts.write_text(random_texts(20 * recipe.training.tokens_per_batch // LENGTH, words))
        task = PlainTask(replace(recipe, data=DataConfig(str(texts), min_count=1)))
        told_apart = len(task.tokenizer)
        if task.tied:
            rng = torch.Generator().manual_seed(0)
            told_apart = len(task.sampler.draw(task.batches.tokens(task.steps(0)[0][0]), rng).ids)
        events = fit(task, recipe.training, Path(directory, "model"), device=find_device("auto"))
        marks = [time.perf_counter() for _ in itertools.islice(events, WARM_UP + WINDOWS + 1)]
    windows = [b - a for a, b in itertools.pairwise(marks[WARM_UP:])]
    tokens = max(len(indices) for step in task.steps(0) for indices in step) * len(task.sentences[0])
    return median(windows) / STEPS, tokens, told_apart


def product_shapes(model: ModelConfig, tokens: int, vocabulary: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of every product with weights in one forward pass."""
    w = model.width
    block = [(tokens, w, 3 * w), (tokens, w, w), (tokens, w, 4 * w), (tokens, 4 * w, w)]
    before = [(tokens, 2 * model.embedding_dim, w), *(block * model.layers)]
    if model.output == "tied":
        vector = model.embedding_dim + model.output_dim
        return [*before, (tokens, w, vector), (tokens, vector, vocabulary)]
    return [*before, (tokens, w, vocabulary if model.objective == "ce" else model.embedding_dim)]


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


def seconds(work: Callable[[], object], warm_up: int = 3) -> float:
    """Median seconds of one call."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("examples/recipes/e2e.toml"))
    parser.add_argument("--words", type=int, default=817, help="Size of the vocabulary.")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    steps = STEPS * (WARM_UP + WINDOWS + 1)
    training = replace(
        recipe.training, precision=options.precision, compile=options.compile, steps=steps, log_every=STEPS,
        checkpoint_every=steps, validate_every=steps, init=None,
    )  # fmt: skip
    step, tokens, vocabulary = step_seconds(replace(recipe, training=training), options.words)
    shapes = product_shapes(recipe.model, tokens, vocabulary)
    operations = 3 * sum(2 * a * b * c for a, b, c in shapes)
    products = bare_product_seconds(shapes, getattr(torch, options.precision))
    result = {
        "precision": options.precision,
        "compile": options.compile,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "step_gflops": operations / step / 1e9,
        "machine_gflops": operations / products / 1e9,
        "share": products / step,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
