"""Between embeddings and words: Li et al. 2022, sections 4.1 and 4.2."""

import torch
from torch import Tensor


def rounding_logits(x_0: Tensor, embeddings: Tensor) -> Tensor:
    """log p(w | x_0) up to a constant: minus half the squared distance to each embedding.

    x_0 (..., d), embeddings (V, d) -> (..., V).
    """
    return x_0 @ embeddings.T - 0.5 * embeddings.square().sum(-1)


def nearest_words(x_0: Tensor, embeddings: Tensor) -> Tensor:
    """The index of the embedding nearest to each x_0. (..., d) -> (...)"""
    return rounding_logits(x_0, embeddings).argmax(-1)


def clamp(x_0: Tensor, embeddings: Tensor) -> Tensor:
    """The clamping trick: replace each predicted x_0 by its nearest embedding. (..., d) -> (..., d)"""
    return embeddings[nearest_words(x_0, embeddings)]


def gaussian_word_logits(x_t: Tensor, embeddings: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What x_t alone says about each word: log N(x_t; alpha e_w, sigma^2) up to a constant.

    For embeddings of equal norm this is alpha x_t . e_w / sigma^2. x_t (B, n, d), alpha and sigma (B,) -> (B, n, V).
    """
    scale = (alpha / sigma**2)[:, None, None]
    return torch.matmul(x_t * scale, embeddings.T)
