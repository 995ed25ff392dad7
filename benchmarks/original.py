"""What the original Diffusion-LM's architecture costs beside ours, on this machine.

    python benchmarks/original.py [--texts 50]

Times one call of the original's denoiser at its published size (BERT-base, 64 positions, random weights), and one of
the updates that its guidance makes (forward and backward pass of a BERT-base classifier of parts of speech). The
original takes 200 steps, each with three updates but for the last ten (Li et al. 2022; `scripts/infill.py`), so its
texts cost 200 calls and 3 x 190 updates; that sum is computed, not run. Ours are drawn, with `pos` and the bundled
model. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ctrlgen.diffusion.bert import BertDenoiser, BertDenoiserConfig
from ctrlgen.diffusion.schedule import DiscreteSchedule
from ctrlgen.generation.generator import Generator, Request, Settings

VOCABULARY, LEVELS, STEPS, UPDATES, UNGUIDED = 821, 2000, 200, 3, 10
TAGS = 21  # the Universal ones, with START, END, UNK and PAD


class TagClassifier(nn.Module):
    """The original's: embeddings of 16 projected into BERT-base, a tag for every position."""

    def __init__(self, dim: int, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.up = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width))
        self.bert = BertModel(config)
        self.tags = nn.Linear(width, TAGS)

    def loss(self, x: Tensor, tags: Tensor) -> Tensor:
        hidden = self.bert(inputs_embeds=self.up(x)).last_hidden_state
        return nn.functional.cross_entropy(self.tags(hidden).flatten(0, 1), tags.flatten())


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def original_seconds(texts: int, repeats: int) -> tuple[float, float]:
    """Of one call of the denoiser, and of one update by the classifier, for a batch of so many texts."""
    config = BertDenoiserConfig(VOCABULARY)
    denoiser = BertDenoiser(config, DiscreteSchedule("sqrt", LEVELS)).eval()
    log_snr = denoiser.schedule.log_snrs[LEVELS // 2][None]
    x_t = torch.randn(texts, config.max_length, config.embedding_dim)
    with torch.no_grad():
        call = median_seconds(lambda: denoiser(x_t, log_snr), repeats)
    classifier = TagClassifier(config.embedding_dim, BertConfig()).eval()
    tags = torch.randint(TAGS, (texts, config.max_length))

    def update() -> None:
        x = x_t.clone().requires_grad_(True)
        classifier.loss(x, tags).backward()
        torch.optim.Adagrad([x], lr=0.1).step()

    return call, median_seconds(update, repeats)


def our_seconds(texts: int) -> tuple[float, float]:
    """Of one step for a batch of so many texts, and of all of them, under the patterns of tags of unguided texts.

    A step is timed where nothing else is done: no corrections, no redrafts.
    """
    from ctrlgen_classifiers.pos import tag

    generator = Generator("e2e")
    words = [sample.tokens for sample in generator.generate([Request(n=texts, seed=1000)])]
    patterns = [f"pos: {' '.join(universal)}" for universal, _ in tag(words)]
    requests = [generator.request([pattern], seed=seed) for seed, pattern in enumerate(patterns)]
    steps_alone = Settings(corrections=0, redrafts=0)
    alone, whole = (median_seconds(partial(generator.generate, requests, of), 1) for of in (steps_alone, Settings()))
    return alone / steps_alone.steps, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    our_step, ours = our_seconds(options.texts)
    call, update = original_seconds(options.texts, options.repeats)
    theirs = STEPS * call + UPDATES * (STEPS - UNGUIDED) * update
    result = {
        "texts": options.texts,
        "threads": torch.get_num_threads(),
        "original_call_seconds": call,
        "original_update_seconds": update,
        "original_step_seconds": call + UPDATES * update,
        "original_seconds_computed": theirs,
        "our_step_seconds": our_step,
        "our_seconds": ours,
        "ratio": theirs / ours,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
