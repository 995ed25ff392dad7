"""Training heads: what they are shown of noised texts."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained, read_weights
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.schedule import make_schedule
from ctrlgen.settings import Settings
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import Example, HeadTask, TimeOffsets, hold_out, noise_label, noise_labels
from ctrlgen_classifiers.pos import Pos, PosHead, parse_pattern


def new_head(model: DiffusionLM) -> PosHead:
    return Pos.make_head(model, {"head": {"width": 8}})


@pytest.fixture
def task(toy_model: Path) -> HeadTask:
    model = from_pretrained(str(toy_model))
    tags = ("DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT")
    nouns = ("cat", "dog", "house", "river")
    texts = [f"the {a} {verb} a {b} .".split() for a in nouns for b in nouns for verb in ("sees", "likes")]
    examples = [Example(model.tokenizer.ids(t), parse_pattern(" ".join(tags))) for t in texts * 2]
    return HeadTask(model, new_head(model), examples, TrainingConfig(tokens_per_batch=4096))


def test_heads_see_the_denoiser_as_sampling_asks_it(task: HeadTask) -> None:
    """Told of more noise than there is, by less and by more than the default."""
    ((indices,),) = task.steps(0)
    (tokens, _, t, offset, eps, _), count = task.batch(indices, torch.Generator().manual_seed(0), slice(None))
    assert count == tokens.numel()
    offsets = TimeOffsets()
    assert offsets.least < offsets.validation == Settings().time_offset < offsets.most == 0
    assert offset.max() <= offsets.most
    assert offsets.least <= offset.min() < offsets.validation < offset.mean() < 0
    denoised = task.module.denoise(tokens, t, offset, eps, torch.tensor(False))
    torch.testing.assert_close(denoised.log_snr, task.model.schedule.log_snr(t) + offset)
    as_it_is = task.module.denoise(tokens, t, torch.zeros_like(t), eps, torch.tensor(False))
    torch.testing.assert_close(denoised.x_t, as_it_is.x_t)  # the noise itself is no other
    assert not torch.allclose(denoised.logits, as_it_is.logits)


def test_processes_share_a_batch(task: HeadTask) -> None:
    ((indices,),) = task.steps(0)
    (*whole, _), _ = task.batch(indices, torch.Generator().manual_seed(3), slice(None))
    (*half, _), _ = task.batch(indices, torch.Generator().manual_seed(3), slice(1, None, 2))
    assert all(torch.equal(all_rows[1::2], rows) for all_rows, rows in zip(whole, half, strict=True))


def test_the_same_texts_are_held_out_whatever_the_seed(task: HeadTask) -> None:
    """So that no later part of a training is measured on what an earlier one learned from."""
    examples = [*task.examples, *task.held_out]
    first, second = (
        HeadTask(task.model, task.module.head, examples, TrainingConfig(tokens_per_batch=24, seed=seed))
        for seed in (0, 7)
    )
    assert [id(e) for e in first.held_out] == [id(e) for e in second.held_out]
    assert len(first.examples) + len(first.held_out) == len(examples)
    assert {tuple(e.tokens) for e in first.held_out}.isdisjoint(tuple(e.tokens) for e in first.examples)
    assert first.steps(0) != second.steps(0)


def test_what_is_held_out_is_never_augmented(task: HeadTask) -> None:
    examples = [*task.examples, *task.held_out]
    more = HeadTask(task.model, task.module.head, examples, TrainingConfig(tokens_per_batch=24), lambda given: given)
    assert [id(e) for e in more.examples] == 2 * [id(e) for e in task.examples]
    assert [id(e) for e in more.held_out] == [id(e) for e in task.held_out]


def test_what_is_held_out_is_never_counted(task: HeadTask, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Example[Any]] = []
    head, examples = task.module.head, [*task.examples, *task.held_out]
    monkeypatch.setattr(head, "count", counted.extend)
    more = HeadTask(task.model, head, examples, TrainingConfig(tokens_per_batch=24), lambda given: given, counts=True)
    assert [id(e) for e in counted] == [id(e) for e in more.examples]
    counted.clear()
    HeadTask(task.model, head, examples, TrainingConfig(tokens_per_batch=24))  # one that goes on from earlier weights
    assert counted == []


def test_what_is_held_out_shares_no_text_with_the_rest() -> None:
    examples = [Example([i % 60, 1], i) for i in range(130)]
    kept, held_out = hold_out(examples, share=0.05, most=100, seed=0)
    assert sorted(e.target for e in kept + held_out) == list(range(130))
    assert len({tuple(e.tokens) for e in held_out}) == 3
    assert {tuple(e.tokens) for e in kept}.isdisjoint(tuple(e.tokens) for e in held_out)
    assert len({tuple(e.tokens) for e in hold_out(examples, share=0.05, most=2, seed=0)[1]}) == 2


@pytest.mark.parametrize(("noise", "label"), [(0.1, "< 0.5"), (0.5, "0.5-1"), (1.9, "1-2"), (7.9, "4-8"), (8.0, "> 8")])
def test_noise_levels_by_name(noise: float, label: str) -> None:
    assert noise_label(noise) == label
    assert label in noise_labels()


def test_a_model_of_fixed_length_shows_heads_what_it_samples() -> None:
    """Texts closed by <end> and filled up, of which the longest leaves no room for it."""
    words = ["cat", "dog", "house", "river", "red"]
    tokenizer = WordTokenizer.train([" ".join(words)] * 2)
    config = DenoiserConfig(
        vocab_size=len(tokenizer), embedding_dim=8, width=16, layers=1, heads=2, max_length=4, objective="mse"
    )
    model = DiffusionLM(Denoiser(config).eval(), make_schedule("sqrt"), tokenizer, DiffusionConfig("sqrt"))
    texts = [list(text) for n in (2, 3, 4) for text in itertools.permutations(words, n)]
    examples = [Example(tokenizer.ids(text), parse_pattern("NOUN " * len(text))) for text in texts]
    task = HeadTask(model, new_head(model), examples, TrainingConfig(tokens_per_batch=4096))
    assert {len(e.tokens) for e in [*task.examples, *task.held_out]} == {4}
    assert len(task.examples) + len(task.held_out) == 5 * 4 + 5 * 4 * 3
    ((indices,),) = task.steps(0)
    (tokens, encoded, *_), _ = task.batch(indices, torch.Generator().manual_seed(0), slice(None))
    after_end = (tokens == tokenizer.end_id).cumsum(1).bool()
    assert after_end.any(1).all()
    assert torch.equal(encoded == 0, after_end)  # any tag will do there


def test_the_best_head_on_held_out_texts_is_kept(task: HeadTask, tmp_path: Path) -> None:
    bias = task.module.head.output.bias
    kept = []
    for number, loss in enumerate((2.0, 1.0, 1.5, 0.5)):
        torch.nn.init.constant_(bias, number)
        task.save(task.module, tmp_path, {"validation_loss": loss})
        kept.append(float(read_weights(tmp_path / "model.safetensors")["output.bias"][0]))
    assert kept == [0, 1, 1, 3]
    assert task.best == {"validation_loss": 0.5}
