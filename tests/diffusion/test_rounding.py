"""Embeddings to words: every function against its definition by distances."""

import pytest
import torch

from ctrlgen.diffusion.rounding import clamp, gaussian_word_logits, nearest_words, rounding_logits
from ctrlgen.diffusion.schedule import alpha_sigma


@pytest.fixture
def embeddings(rng: torch.Generator) -> torch.Tensor:
    return torch.randn(9, 5, dtype=torch.float64, generator=rng)  # of different norms


def test_rounding_logits_are_half_squared_distances(embeddings: torch.Tensor, rng: torch.Generator) -> None:
    x_0 = torch.randn(2, 3, 5, dtype=torch.float64, generator=rng)
    distance = (x_0[:, :, None] - embeddings).square().sum(-1)  # (2, 3, 9)
    torch.testing.assert_close(rounding_logits(x_0, embeddings).log_softmax(-1), (-0.5 * distance).log_softmax(-1))


def test_nearest_words_minimise_the_distance(embeddings: torch.Tensor, rng: torch.Generator) -> None:
    x_0 = torch.randn(50, 5, dtype=torch.float64, generator=rng)
    assert torch.equal(nearest_words(x_0, embeddings), torch.cdist(x_0, embeddings).argmin(-1))


def test_nearest_word_is_not_merely_the_largest_product() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    assert nearest_words(torch.tensor([1.5, 0.0]), embeddings).item() == 0


def test_every_embedding_is_its_own_nearest(embeddings: torch.Tensor) -> None:
    assert nearest_words(embeddings, embeddings).tolist() == list(range(9))


def test_clamp_lands_on_embeddings_and_stays_there(embeddings: torch.Tensor, rng: torch.Generator) -> None:
    x_0 = torch.randn(2, 3, 5, dtype=torch.float64, generator=rng)
    clamped = clamp(x_0, embeddings)
    assert clamped.shape == x_0.shape
    assert torch.equal(clamped, embeddings[torch.cdist(x_0, embeddings[None]).argmin(-1)])
    assert torch.equal(clamp(clamped, embeddings), clamped)


def test_gaussian_word_logits_are_the_likelihood_of_x_t(embeddings: torch.Tensor, rng: torch.Generator) -> None:
    equal_norms = torch.nn.functional.normalize(embeddings, dim=-1) * 2.0
    x_t = torch.randn(2, 3, 5, dtype=torch.float64, generator=rng)
    alpha, sigma = alpha_sigma(torch.tensor([-2.0, 3.0], dtype=torch.float64))
    mean = alpha[:, None, None, None] * equal_norms  # (2, 1, 9, 5)
    likelihood = torch.distributions.Normal(mean, sigma[:, None, None, None]).log_prob(x_t[:, :, None]).sum(-1)
    torch.testing.assert_close(
        gaussian_word_logits(x_t, equal_norms, alpha, sigma).log_softmax(-1), likelihood.log_softmax(-1)
    )
