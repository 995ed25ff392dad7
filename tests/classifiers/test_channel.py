"""The channel against enumeration: it is normalised, exact, differentiable, and robust."""

import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from ctrlgen_classifiers.channel import ERASED, Channel

PRIOR = torch.tensor([0.6, 0.3, 0.1], dtype=torch.double)
CHANNEL = Channel(PRIOR, inserted=0.2, deleted=0.3, replaced=0.15, rarely=0.5)
WORDS = range(len(PRIOR))
SOURCES = [[0], [2, 2], [0, 1, 2], [1, 0, 0, 2]]


@cache
def written(text: tuple[int, ...], source: tuple[int, ...]) -> float:
    """p(source | text), as the channel's definition reads: what it may do next, and then the rest."""
    eps = [min(CHANNEL.replaced, CHANNEL.rarely * float(p)) for p in PRIOR]
    total = 0.0
    if source:
        total += CHANNEL.inserted * float(PRIOR[source[0]]) * written(text, source[1:])
    if not text:
        return total if source else 1 - CHANNEL.inserted
    taken = (1 - CHANNEL.inserted) * CHANNEL.deleted * written(text[1:], source)
    if source:
        p = (1 - sum(eps)) * (text[0] == source[0]) + eps[source[0]]
        taken += (1 - CHANNEL.inserted) * (1 - CHANNEL.deleted) * p * written(text[1:], source[1:])
    return total + taken


def batch(sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The sources (B, m), filled up with any word, and their sizes (B,)."""
    longest = max(map(len, sources))
    return torch.tensor([s + [1] * (longest - len(s)) for s in sources]), torch.tensor(list(map(len, sources)))


def random_log_p(rows: int, length: int) -> Tensor:
    logits = torch.randn(rows, length, len(PRIOR), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    return (2.0 * logits).log_softmax(-1)


def positions(log_p: Tensor, source: Tensor) -> Tensor:
    return log_p.gather(-1, source[:, None].expand(-1, log_p.shape[1], -1))


def test_the_probabilities_of_all_sources_sum_to_one() -> None:
    longest = 7
    for text in [(), (2,), (0, 1)]:
        total = sum(written(text, s) for size in range(longest + 1) for s in itertools.product(WORDS, repeat=size))
        assert 1 - 20 * CHANNEL.inserted ** (longest - len(text)) < total <= 1 + 1e-12


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_recursion_is_the_sum_over_all_texts(length: int) -> None:
    log_p = random_log_p(len(SOURCES), length)
    source, sizes = batch(SOURCES)
    lengths = torch.tensor([length, max(1, length - 1), length, length])
    found = CHANNEL.log_prob(positions(log_p, source), source, sizes, lengths)
    for row, words in enumerate(SOURCES):
        n = int(lengths[row])
        expected = sum(
            math.exp(sum(float(log_p[row, i, w]) for i, w in enumerate(text))) * written(text, tuple(words))
            for text in itertools.product(WORDS, repeat=n)
        )
        assert float(found[row].exp()) == pytest.approx(expected, rel=1e-12)


def test_an_erased_word_may_have_been_any() -> None:
    log_p = random_log_p(1, 3)
    source = torch.tensor([[0, ERASED, 2]])
    size, length = torch.tensor([3]), torch.tensor([3])
    erased = CHANNEL.log_prob(positions(log_p, source.clamp(min=0)), source, size, length)
    each = [torch.tensor([[0, word, 2]]) for word in WORDS]
    total = sum(float(CHANNEL.log_prob(positions(log_p, s), s, size, length).exp()) for s in each)
    assert float(erased.exp()) == pytest.approx(total, rel=1e-9)
    given_words = CHANNEL.word_log_prob(positions(log_p, source.clamp(min=0)), source, size, length)
    assert torch.allclose((given_words + log_p).logsumexp(-1), erased, atol=1e-9)


def test_the_probability_given_each_word() -> None:
    log_p = random_log_p(2, 3)
    source, sizes = batch([[0, 1, 2], [2, 0]])
    lengths = torch.tensor([3, 2])
    found = CHANNEL.word_log_prob(positions(log_p, source), source, sizes, lengths)
    assert found.shape == log_p.shape
    for row, position, word in [(0, 0, 0), (0, 2, 1), (1, 0, 1), (1, 1, 0), (1, 1, 2)]:
        sure = log_p.clone()
        sure[row, position] = torch.full((len(PRIOR),), -1e9).index_fill(0, torch.tensor(word), 0.0)
        expected = CHANNEL.log_prob(positions(sure, source), source, sizes, lengths)[row]
        assert float(found[row, position, word]) == pytest.approx(float(expected), abs=1e-9)


def test_the_gradient_is_that_of_the_sum() -> None:
    source, sizes = batch([[0, 1, 2], [2, 0]])
    lengths = torch.tensor([4, 3])

    def log_prob(logits: Tensor) -> Tensor:
        return CHANNEL.log_prob(positions(logits.log_softmax(-1), source), source, sizes, lengths)

    logits = random_log_p(2, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(log_prob, logits)
    (gradient,) = torch.autograd.grad(log_prob(logits).sum(), logits)
    assert bool((gradient[1, 3] == 0).all())  # beyond the second text's end


def test_filling_changes_nothing_and_extreme_words_stay_finite() -> None:
    log_p = (1e4 * random_log_p(1, 30).float()).log_softmax(-1).requires_grad_(True)
    source, sizes = torch.tensor([[0, 2] * 20]), torch.tensor([40])
    lengths = torch.tensor([30])
    alone = CHANNEL.log_prob(positions(log_p, source), source, sizes, lengths)
    alone.sum().backward()
    assert alone.dtype == torch.float32
    assert bool(torch.isfinite(alone).all())
    assert log_p.grad is not None
    assert bool(torch.isfinite(log_p.grad).all())
    wider = torch.cat([log_p.detach(), random_log_p(1, 5).float()], 1)
    filled = torch.cat([source, torch.zeros(1, 7, dtype=torch.long)], 1)
    assert torch.equal(CHANNEL.log_prob(positions(wider, filled), filled, sizes, lengths), alone)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_stops_pulling_where_it_is_rarer_than_its_own_prior_allows(word: int) -> None:
    def pull(p: float) -> float:
        """What one nat more of the word at its place is worth."""
        log_q = torch.tensor([[[math.log(p)]]], dtype=torch.double, requires_grad=True)
        one = torch.ones(1, dtype=torch.long)
        CHANNEL.log_prob(log_q, torch.tensor([[word]]), one, one).sum().backward()
        assert log_q.grad is not None
        return float(log_q.grad)

    assert pull(float(PRIOR[word])) > 0.3  # as frequent as anywhere
    assert pull(0.001 * float(PRIOR[word])) < 0.01


def test_probabilities_must_lie_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Channel(PRIOR, inserted=0.0)
