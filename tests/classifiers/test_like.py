"""Nearness to a given text: what is asked for, the oracle, and texts made with it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.text.alignment import common_words
from ctrlgen_classifiers.like import Like


@pytest.fixture
def like(generator: Generator) -> Like:
    return Like.load(generator.model, "like")


def a_text(generator: Generator) -> list[str]:
    """Words that the toy model has written."""
    (sample,) = generator.generate([generator.request(["length: 8"])])
    return sample.tokens


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("a b c", "a b c", [(0, 0), (1, 1), (2, 2)]),
        ("a b c d", "x b d y", [(1, 1), (3, 2)]),
        ("The pub", "a the PUB", [(0, 1), (1, 2)]),
        ("a b", "c", []),
        ("a b a c", "a a b c", [(0, 0), (2, 1), (3, 3)]),
    ],
)
def test_common_words(one: str, other: str, common: list[tuple[int, int]]) -> None:
    found = common_words(one.split(), other.split())
    assert len(found) == len(common)
    assert [one.split()[i].casefold() for i, _ in found] == [other.split()[j].casefold() for _, j in found]
    assert sorted(found) == found


def test_an_empty_or_endless_text_is_refused(like: Like) -> None:
    with pytest.raises(UsageError, match="no text is given"):
        like.parse('""')
    with pytest.raises(UsageError, match="has 13 words; this model writes at most 12"):
        like.parse("the " * 13)


def test_quotes_around_the_text_are_no_words(like: Like) -> None:
    assert like.parse('"the cat"') == like.parse("the cat")


def test_the_oracle_counts_words_kept_in_order(like: Like) -> None:
    target = like.parse("one two three four")
    full, half, none = like.check(["One two three four".split(), "three x four".split(), ["x"]], [target] * 3)
    assert (full.success, full.correct, full.detail) == (True, 1.0, "4 of 4 words kept")
    assert (half.success, half.correct) == (True, 0.5)
    assert (none.success, none.correct) == (False, 0.0)


def test_a_text_is_likelier_from_itself_than_from_another(generator: Generator, like: Like) -> None:
    words = a_text(generator)
    ids = torch.tensor([generator.model.tokenizer.ids(words)])
    clean = generator.reader.clean(ids, None)
    target = like.parse(" ".join(words))
    other = like.parse(" ".join(reversed(words)))
    near, far = (float(like.log_prob(clean, like.encode([t], [len(words)]))) for t in (target, other))
    assert near > far + 3


@pytest.mark.slow
def test_texts_come_out_like_the_one_given(generator: Generator) -> None:
    words = a_text(generator)
    request = generator.request([f"like: {' '.join(words)}"], n=4, seed=1)
    for sample in generator.generate([request]):
        assert len(common_words(words, sample.tokens)) >= 0.75 * len(words)
        assert abs(len(sample.tokens) - len(words)) <= 6


def test_a_length_that_is_asked_for_goes_before_the_sources(generator: Generator) -> None:
    words = a_text(generator)
    (sample,) = generator.generate([generator.request([f"like: {' '.join(words)}", "length: 5"])])
    assert len(sample.tokens) == 5


def test_lengths_are_drawn_near_the_sources(like: Like) -> None:
    prior = like.length_prior(like.parse("one two three"), range(1, 6))
    assert prior[2] > prior[1] > prior[0]
    assert prior[2] > prior[3] > prior[4]


def test_an_unknown_word_pulls_at_nothing_but_counts_where_it_is_kept(like: Like) -> None:
    encoded = like.encode([like.parse("qwertz")], [1])

    def log_prob(logits: Tensor) -> Tensor:
        nothing: Any = SimpleNamespace()
        return like.log_prob(Denoised(nothing, nothing, logits, nothing, ()), encoded)

    logits = torch.zeros(1, 1, len(like.tokenizer), requires_grad=True)
    (gradient,) = torch.autograd.grad(log_prob(logits).sum(), logits)
    assert not gradient.any()
    kept = torch.full_like(logits, -100.0).index_fill(-1, torch.tensor(like.tokenizer.unk_id), 0.0)
    assert bool(log_prob(kept) > log_prob(logits) + 1)


@pytest.mark.slow
def test_no_text_depends_on_its_company(generator: Generator) -> None:
    words = a_text(generator)
    near = f"like: {' '.join(words)}"
    alone = generator.generate([generator.request([near])], Settings(steps=8))
    requests = [generator.request([near]), generator.request(["like: the dog"]), generator.request([near, "length: 6"])]
    assert generator.generate(requests, Settings(steps=8))[0].tokens == alone[0].tokens
