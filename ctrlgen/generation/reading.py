"""What the model and its guides say of texts that are finished, or finished but for some words.

Every log-probability by which texts are compared comes from here, so that all are of one precision: the denoiser runs
in bfloat16 where the device multiplies that fast, the guides in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.template import NO_WORD
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.losses import bound_by_word
from ctrlgen.diffusion.precision import autocast, fast
from ctrlgen.diffusion.samplers import SeededNoise
from ctrlgen.generation.guidance import Term, condition_words, joint_log_prob
from ctrlgen.generation.kept import KeptWords
from ctrlgen.generation.request import NewWord, Request

SCORE_SEED = 0
STRIDE = 4  # of words hidden at once; of nearer ones the denoiser would see too few neighbours
KEPT_READERS = 8  # of requests with words of their own
FORBIDDEN = -1e9  # logit of words that may not be generated


class Reader:
    """Reads texts (B, n). Where rows are filled up to n, `lengths` (B,) says how long each is, else it is None."""

    def __init__(self, model: DiffusionLM, words: tuple[NewWord, ...] = ()):
        """`words`: those by which the model's vocabulary was widened."""
        self.model, self.words = model, words
        self.context: Tensor | None = None  # (B, m), the words before the texts
        self.embeddings = model.denoiser.embeddings()  # (V, d)
        self.forbidden = forbidden_words(model)  # (V,)
        self.forbidden_in_text = forbidden_words(model, in_text=True)  # (V,)
        self.widened = lru_cache(KEPT_READERS)(self.with_words)

    def of(self, request: Request) -> Reader:
        """The reader of a request's texts, which may have words that the vocabulary lacks."""
        return self if request.words == self.words else self.widened(request.words)

    def with_words(self, words: tuple[NewWord, ...]) -> Reader:
        return Reader(self.model.with_words(dict(words)), words)

    def after(self, context: Tensor | None) -> Reader:
        """The reader of texts with these words (B, m) before them. Guides read finished texts by themselves: heads
        are trained so."""
        if context is None:
            return self
        reader = copy.copy(self)
        reader.context = context
        return reader

    def rows(self, rows: Tensor) -> Reader:
        """The reader of these rows (M,) of its texts."""
        return self if self.context is None else self.after(self.context[rows])

    @property
    def denoiser(self) -> Callable[..., Denoised]:
        """The model's denoiser, which knows the words before the texts."""
        network = self.model.denoiser
        return fast(network if self.context is None else partial(network, context=self.context), self.model.device)

    @torch.no_grad()
    def clean(self, ids: Tensor, lengths: Tensor | None) -> Denoised:
        """What the denoiser says of texts without noise."""
        least_noise = self.model.schedule.log_snr(torch.zeros(1)).to(ids.device)
        x_0 = self.model.denoiser.embed(ids)
        return fast(self.model.denoiser, ids.device)(x_0, least_noise, x_0, lengths=lengths)

    @torch.no_grad()
    def hidden(self, ids: Tensor, lengths: Tensor | None, terms: Sequence[Term] = ()) -> Tensor:
        """log p(word | the other words, controls) where ids are NO_WORD. -> (B, n, V)"""
        noisiest = self.model.schedule.log_snr(torch.ones(1)).to(ids.device)
        noise = self.embeddings.new_zeros(*ids.shape, self.embeddings.shape[1])
        denoiser = KeptWords(ids).conditioned(self.denoiser, self.embeddings)
        denoised = condition_words(denoiser(noise, noisiest, lengths=lengths), terms)
        return (denoised.logits.float() + self.forbidden).log_softmax(-1)

    def given_others(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """log p(word | the other words) of every word that the model knows, else 0. (B, n)"""
        return self.hiding(ids, lengths, lambda log_p: log_p_of(ids, log_p))

    def typicality(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """The same plus the entropy of p(. | the other words), in nats: below 0 where a word is less likely than what
        the model expects there on average, whatever the size of its vocabulary (Meister et al. 2023). (B, n)"""
        return self.hiding(ids, lengths, lambda log_p: log_p_of(ids, log_p) + torch.special.entr(log_p.exp()).sum(-1))

    @torch.no_grad()
    def hiding(self, ids: Tensor, lengths: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
        """`of` log p(. | the other words) (B, n, V) at every word that the model knows, else 0. (B, n)

        Every fourth word is hidden at once.
        """
        place = torch.arange(ids.shape[1], device=ids.device)
        known = ids != self.model.tokenizer.unk_id
        if lengths is not None:
            known = known & (place < lengths[:, None])
        found = torch.zeros(ids.shape, device=ids.device)
        for first in range(min(STRIDE, ids.shape[1])):
            hidden = known & (place % STRIDE == first)
            log_p = self.hidden(ids.masked_fill(hidden, NO_WORD), lengths)
            found = torch.where(hidden, of(log_p), found)
        return found

    def controls(self, ids: Tensor, lengths: Tensor | None, terms: Sequence[Term]) -> Tensor:
        """The weighted log p of each of K controls. -> (B, K)"""
        if not terms:
            return torch.zeros(len(ids), 0, device=ids.device)
        clean = self.clean(ids, lengths)
        return torch.stack([term.weight * term.log_prob(clean).float() for term in terms], 1)

    def joint(self, ids: Tensor, lengths: Tensor | None, terms: Sequence[Term]) -> Tensor:
        """The weighted log p of all controls together. -> (B,)"""
        return joint_log_prob(terms, self.clean(ids, lengths))

    @torch.no_grad()
    def bound(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """A lower bound on log p(text), with the same noise for every text. -> (B,)"""
        return -self.word_bounds(ids, lengths).sum(-1)

    @torch.no_grad()
    def word_bounds(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """What each word adds to the bound on -log p(text). -> (B, n)"""
        sizes = [ids.shape[1]] * len(ids) if lengths is None else lengths.tolist()
        noise = SeededNoise([SCORE_SEED] * len(ids), sizes, self.embeddings.shape[1], ids.device)
        with autocast(ids.device):
            schedule = self.model.schedule
            return bound_by_word(self.model.denoiser, ids, schedule, noise, lengths, context=self.context)


def log_p_of(ids: Tensor, log_p: Tensor) -> Tensor:
    """ids (B, n), log_p (B, n, V) -> (B, n)"""
    return log_p.gather(-1, ids[..., None]).squeeze(-1)


def forbidden_words(model: DiffusionLM, in_text: bool = False) -> Tensor:
    """A logit for each word: 0, or FORBIDDEN for special tokens that are no part of a sample. (V,)

    At fixed length a sample holds what opens, closes and fills a text, but not where it is known to be `in_text`.
    """
    tokenizer = model.tokenizer
    frame = {tokenizer.pad_id, *tokenizer.opening, *tokenizer.closing}
    forbidden = torch.zeros(len(tokenizer), device=model.device)
    forbidden[[tokenizer.unk_id, *(() if model.fixed_length and not in_text else sorted(frame))]] = FORBIDDEN
    return forbidden
