"""Infilling: templates, what the denoiser is told, and texts whose given words stay."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen.controls.template import NO_WORD
from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.guidance import Term, steer
from ctrlgen.generation.jobs import Draws
from ctrlgen.generation.kept import KeptWords, keep
from ctrlgen.generation.request import Sample
from ctrlgen.settings import Guidance, Settings
from ctrlgen.text.tokenizer import SPECIAL, WordTokenizer

QUICK = Settings(steps=8, redrafts=0)
SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"


@pytest.fixture(scope="module")
def tokenizer() -> WordTokenizer:
    return WordTokenizer.train(["The Vaults is near Mary . the"], min_count=1)


# What the denoiser is told


def test_words_in_ids(tokenizer: WordTokenizer) -> None:
    """Another case where the vocabulary has only that, <unk> for a name it has never seen."""
    kept = keep([("the", None, "NEAR", "Zed"), ("The", None)], tokenizer)
    ids = tokenizer.ids(["the", "near", "<unk>", "The"])
    assert kept.ids.tolist() == [[ids[0], NO_WORD, ids[1], ids[2]], [ids[3], NO_WORD, NO_WORD, NO_WORD]]
    assert kept.clean.tolist() == [[True, False, True, True], [True, False, False, False]]


IDS = torch.tensor([[3, NO_WORD, 5], [NO_WORD, NO_WORD, NO_WORD]])


def noisy() -> tuple[Tensor, Tensor]:
    x_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x_t, torch.full((2,), -0.5, dtype=torch.float64)


def test_kept_words_are_clean_and_certain(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    told = KeptWords(IDS).conditioned(model, model.embeddings())(x_t, log_snr, x_t)
    clean_x = x_t.clone()
    clean_x[0, [0, 2]] = model.embeddings()[[3, 5]]
    clean = torch.tensor([[True, False, True], [False] * 3])
    plain = model(clean_x, log_snr, x_t, clean)
    torch.testing.assert_close(told.logits[~clean], plain.logits[~clean])
    torch.testing.assert_close(told.x0_hat[~clean], plain.x0_hat[~clean])
    torch.testing.assert_close(told.hidden[-1], plain.hidden[-1])
    assert (plain.logits - model(x_t, log_snr, x_t).logits)[0, 1].abs().max() > 1e-3  # the kept words matter
    torch.testing.assert_close(told.probs[0, [0, 2]], torch.eye(11, dtype=torch.float64)[[3, 5]])
    torch.testing.assert_close(told.x0_hat[0, [0, 2]], model.embeddings()[[3, 5]])


def test_a_row_without_kept_words_is_as_without_a_template(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    told = KeptWords(IDS).conditioned(model, model.embeddings())(x_t, log_snr)
    assert torch.equal(told.logits[1], model(x_t, log_snr).logits[1])


class Certainty:
    """log p of each row's likeliest text: a control that pulls everywhere."""

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return denoised.logits.log_softmax(-1).amax(-1).sum(-1)


def test_no_shift_at_kept_words(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    terms = [Term(Certainty(), torch.zeros(2))]  # type: ignore[arg-type]
    told = KeptWords(IDS).conditioned(model, model.embeddings())
    _, shift = steer(partial(told, log_snr=log_snr), x_t, terms, Guidance(), model.embeddings())
    assert (shift.norm(dim=-1) > 0).tolist() == [[False, True, False], [True] * 3]


# Texts


def texts(samples: Sequence[Sample]) -> list[list[str]]:
    return [sample.tokens for sample in samples]


METHODS: list[dict[str, Any]] = [
    {}, {"sampler": "ddim"}, {"sampler": "dpm"}, {"guidance": Guidance("exact")}, {"guidance": Guidance("paper")},
    {"candidates": 3}, {"temperature": 4.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_given_words_stay_and_the_rest_is_written(generator: Generator, settings: dict[str, Any]) -> None:
    """Also against a control that they break, which no request could ask for in words."""
    request = generator.request([], n=6, seed=4, template="The old ___ Zebedee THE ___{2-3} .")
    request = replace(request, controls=generator.request(["not starts: the"]).controls)
    for sample in generator.generate([request], Settings(steps=8, redrafts=0, **settings)):
        tokens = sample.tokens
        assert tokens[:2] == ["The", "old"]
        assert tokens[-1] == "."
        at = tokens.index("Zebedee")
        assert tokens[at + 1] == "THE"
        assert at >= 3
        assert len(tokens) - at in (5, 6)
        written = [*tokens[2:at], *tokens[at + 2 :]]
        assert not {*SPECIAL, "Zebedee"} & set(written)
        assert sample.text.startswith("The old ")
        assert sample.success is False


def test_lengths_follow_the_training_texts_less_the_kept_words(generator: Generator) -> None:
    def lengths(template: str, *controls: str) -> set[int]:
        request = generator.request(controls, n=80, template=template)
        return {job.length for job in Draws(generator.model, [request]).first()}

    assert lengths("the cat ___ .") == {6, 7, 8, 9, 10, 11}
    assert lengths("the cat ___{3-6} .") == {6, 7, 8, 9}
    assert lengths("the cat ___{1} .") == {4}
    assert lengths("the cat ___ .", SIMPLE) == {6}
    assert lengths("the cat ___ .", "length: 8-9") == {8, 9}


@pytest.mark.slow
def test_the_same_sample_in_any_company(generator: Generator) -> None:
    requests = [
        generator.request([SIMPLE], n=3, seed=5),
        generator.request([SIMPLE], n=3, seed=5, template="the ___ red ___ ."),
        generator.request([], n=2, seed=7, template="___{3-4} the river ___"),
        generator.request([], n=2, seed=7),
    ]
    alone = [sample for request in requests for sample in generator.generate([request], QUICK)]
    assert texts(generator.generate(requests, QUICK)) == texts(alone)
    again = generator.generate([generator.request([], seed=8, template="___{3-4} the river ___")], QUICK)
    assert texts(again) == texts(alone[7:8])


@pytest.mark.slow
def test_blanks_are_filled_to_suit_the_given_words(generator: Generator) -> None:
    """Sentences of the toy grammar have a noun behind an adjective, and at their ends."""
    nouns = {"cat", "dog", "river", "house"}
    for template, position in (("the red ___{5} .", 2), ("the small dog sees a ___{1} .", 5)):
        samples = generator.generate([generator.request([], n=24, template=template)])
        assert sum(sample.tokens[position] in nouns for sample in samples) >= 20
        assert len({sample.text for sample in samples}) >= 3


def test_controls_compose_with_a_template(generator: Generator) -> None:
    controls = ["words: river, finds", "pos: DET NOUN VERB DET ADJ NOUN PUNCT"]
    request = generator.request(controls, n=12, template="the ___ old ___")
    samples = generator.generate([request])
    assert all(sample.tokens[0] == "the" and "old" in sample.tokens for sample in samples)
    assert sum(sample.controls[0].verdict.success is True for sample in samples) >= 7


@pytest.mark.parametrize(
    ("template", "controls", "message"),
    [
        ("the ___ cat", ["length: 2"], "'the ___ cat' takes 3 to 12 words, which 'length: 2' does not allow"),
        ("___{3-4}", ["length: 7-9"], "'___{3-4}' takes 3 to 4 words, which 'length: 7-9' does not allow"),
        ("a ___{13} b", [], "'a ___{13} b' takes 15 words or more; this model writes at most 12"),
        ("the cat", [], "'the cat' has no blank to fill"),
    ],
)
def test_what_cannot_be_filled(generator: Generator, template: str, controls: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request(controls, template=template)
    assert message in str(raised.value)
