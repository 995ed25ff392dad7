"""Which recipe one's own data gets, where none is given: sizes by the data, steps by the data or by the minutes."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ctrlgen.data.texts import read_texts
from ctrlgen.errors import UsageError
from ctrlgen.training.denoising import DenoisingTask, HeadsConfig, Recipe
from ctrlgen.training.fit import fit
from ctrlgen.training.recipe import read_recipe
from ctrlgen.training.shipped import recipe_path

FURTHER, SMALL, BASE = "further", "small", "base"  # recipes
LARGE = 400_000  # words, from which on the larger model is worth its time
LONG = 45.0  # minutes, from which on it can be
WORDS_AT_A_MILLION, FEWEST_WORDS, MOST_WORDS = 6e6, 1e6, 2e7  # to train on
MOST_EPOCHS = 60
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 1000
VALIDATIONS = 4
MEASURED_STEPS = 6  # the first of which does not count
READ_LENGTH = 16  # words of a text

# Of the minutes. What is left of the heads' share trains their oracles.
DENOISER_SHARE, HEADS_SHARE, JUDGING_SHARE = 0.6, 0.2, 0.1
HEAD_WORD = 1.5  # of the time of a word that is read: as many passes without a gradient, and the head
WRITTEN_WORD = 120.0  # of the same: some fifty passes, a third of them with a gradient, and redrafts
FEWEST_STEPS, FEWEST_JUDGED, MOST_JUDGED = 20, 40, 240


@dataclass(frozen=True)
class Extent:
    """How much there is to learn from."""

    texts: int
    words: int  # as spaces part them


@dataclass(frozen=True)
class Pace:
    """What training takes on this machine: seconds."""

    beginning: float  # reading the data and making the model
    step: float
    validation: float
    words: float  # of an average step
    read: float  # a word at one noise level, told from all words; a step may sample these


@dataclass(frozen=True)
class Sized:
    """A recipe for one's own data, and what made it."""

    recipe: Recipe
    name: str  # of the shipped recipe
    extent: Extent
    pace: Pace

    @property
    def seconds(self) -> float:
        """What training the denoiser takes."""
        training = self.recipe.training
        validations = -(-training.steps // training.validate_every)
        return self.pace.beginning + training.steps * self.pace.step + validations * self.pace.validation


def size(given: Mapping[str, Any], minutes: float | None = None, labels: int = 0, *, device: torch.device) -> Sized:
    """The recipe for data: of `given`, dotted keys that the user has said, and of what is measured on `device`.

    minutes: what everything may take, the heads of `labels` columns and their verdict among it; without them the steps
    follow from the amount of data. Raises UsageError where the minutes are too few.
    """
    started = time.monotonic()
    with quietly():
        extent = extent_of(given)
    name = recipe_name(given, extent, minutes)
    recipe = read_recipe(recipe_path(name), given)
    share = recipe.data.held_out
    if "data.held_out" not in given:
        share = round(min(HELD_OUT_SHARE, MOST_HELD_OUT / extent.texts), 6)
    recipe = replace(recipe, data=replace(recipe.data, held_out=0.0 if recipe.data.validation else share))
    with quietly():
        pace = measure(recipe, device)
    if minutes is None:
        steps = given.get("training.steps") or steps_for(extent.words, pace)
        return Sized(with_steps(recipe, steps), name, extent, pace)
    left = minutes * 60.0 - (time.monotonic() - started)
    return Sized(share_out(recipe, extent, pace, left, labels, minutes), name, extent, pace)


@contextmanager
def quietly() -> Iterator[None]:
    """What is read here is read again in earnest, and told of then."""
    log = logging.getLogger("ctrlgen")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def extent_of(given: Mapping[str, Any]) -> Extent:
    texts = read_texts(given["data.train"], given.get("data.text_column"))
    return Extent(len(texts), sum(len(text.split()) for text in texts))


def recipe_name(given: Mapping[str, Any], extent: Extent, minutes: float | None) -> str:
    if given.get("training.init") is not None:
        return FURTHER
    return BASE if extent.words >= LARGE and (minutes is None or minutes >= LONG) else SMALL


def steps_for(words: int, pace: Pace) -> int:
    """Training steps for so many words of data: twice as many for four times as much, at most MOST_EPOCHS."""
    wanted = min(MOST_WORDS, max(FEWEST_WORDS, WORDS_AT_A_MILLION * (words / 1e6) ** 0.5))
    return min(most_steps(words, pace), max(FEWEST_STEPS, round(wanted / pace.words)))


def most_steps(words: int, pace: Pace) -> int:
    """What MOST_EPOCHS of so many words take: with more the texts are learned by heart."""
    return max(FEWEST_STEPS, round(MOST_EPOCHS * words / pace.words))


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with that many steps, and what goes with them."""
    return replace(recipe, training=replace(recipe.training, steps=steps).paced(VALIDATIONS))


def share_out(recipe: Recipe, extent: Extent, pace: Pace, left: float, labels: int, minutes: float) -> Recipe:
    """The recipe with numbers of steps that take `left` seconds in all. Without labels the denoiser has their share."""
    judging = JUDGING_SHARE * left
    heads = HEADS_SHARE * left if labels else 0.0
    denoiser = (DENOISER_SHARE if labels else 1.0 - JUDGING_SHARE) * left
    steps = int((denoiser - pace.beginning - VALIDATIONS * pace.validation) / pace.step)
    head_steps = int(heads / labels / (HEAD_WORD * pace.read * pace.words)) if labels else recipe.heads.steps
    if steps < FEWEST_STEPS or head_steps < FEWEST_STEPS:
        raise UsageError(f"--minutes {minutes:g} is too little here: {max(0, min(steps, head_steps))} steps; give more")
    most = most_steps(extent.words, pace)
    steps, head_steps = min(steps, most), min(head_steps, most)
    a_text = WRITTEN_WORD * pace.read * extent.words / extent.texts
    texts = int(judging / 2 / a_text)
    judged = min(MOST_JUDGED, max(FEWEST_JUDGED, texts))
    return replace(with_steps(recipe, steps), heads=HeadsConfig(head_steps, recipe.training.tokens_per_batch, judged))


def measure(recipe: Recipe, device: torch.device) -> Pace:
    """Train for a few steps, whose result is thrown away."""
    started = time.monotonic()
    task = DenoisingTask(recipe)
    beginning, times = time.monotonic() - started, []
    config = replace(
        recipe.training, steps=MEASURED_STEPS, log_every=1, checkpoint_every=10**9, validate_every=10**9, compile=False
    )
    with tempfile.TemporaryDirectory(prefix="ctrlgen-") as directory:
        for _ in fit(task, config, Path(directory), device=device):
            times.append(time.monotonic())
    # one event a step, then one for the validation after the last
    words = sum(map(len, task.sentences)) / len(task.steps(0))
    step, validation = (times[-2] - times[0]) / (len(times) - 2), times[-1] - times[-2]
    return Pace(beginning, step, validation, words, reading(task, words))


@torch.no_grad()
def reading(task: DenoisingTask, words: float) -> float:
    """Seconds that a word takes to be read in a batch of about so many words, told from all words."""
    loss, rng = task.loss_of_all_words(task.module.denoiser), torch.Generator().manual_seed(0)
    length = min(READ_LENGTH, task.recipe.model.max_length)
    tokens = torch.full((max(1, round(words / length)), length), task.tokenizer.unk_id)
    for _ in range(2):  # the first does not count
        started = time.monotonic()
        float(task.costs(loss, tokens, rng).sum())  # which waits for the device
    return (time.monotonic() - started) / tokens.numel()
