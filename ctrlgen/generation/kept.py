"""Words that are given: the denoiser reads them as clean positions, and its answer there is certain.

They are clean positions: at each call x_t is their embedding there, so that no gradient, noise or correction reaches
them, and every control and sampler works as before. Diffusion-LM's own way is here as well: `replaced`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.template import NO_WORD, word_ids
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.process import q_sample
from ctrlgen.text.tokenizer import WordTokenizer

Denoise = Callable[..., Denoised]
CERTAIN = 100.0  # how many nats a kept word is above others; finite, so that guides stay so


@dataclass(frozen=True)
class KeptWords:
    """The words of a batch that are given."""

    ids: Tensor  # (B, n), NO_WORD where a word is to be written

    def to(self, device: str | torch.device) -> KeptWords:
        return KeptWords(self.ids.to(device))

    @property
    def clean(self) -> Tensor:
        return self.ids != NO_WORD

    def pin(self, logits: Tensor) -> Tensor:
        """Logits (B, n, V) that are certain of the kept words."""
        certain = torch.full_like(logits, -CERTAIN).scatter(-1, self.ids.clamp(min=0)[..., None], 0.0)
        return torch.where(self.clean[..., None], certain, logits)

    def conditioned(self, denoiser: Denoise, embeddings: Tensor) -> Denoise:
        """The denoiser with x_t at kept words replaced by their embeddings, so that nothing there has a gradient."""
        clean = self.clean
        x_0 = embeddings[self.ids.clamp(min=0)]  # (B, n, d)

        def denoise(
            x_t: Tensor, log_snr: Tensor, self_condition: Tensor | None = None, lengths: Tensor | None = None
        ) -> Denoised:
            x_t = torch.where(clean[..., None], x_0, x_t)
            denoised = denoiser(x_t, log_snr, self_condition, clean, lengths)
            x0_hat = torch.where(clean[..., None], x_0, denoised.x0_hat)
            return replace(denoised, logits=self.pin(denoised.logits), x0_hat=x0_hat)

        return denoise

    def replaced(self, denoiser: Denoise, embeddings: Tensor, noisiest: Tensor) -> Denoise:
        """The denoiser with kept words put back at each step, as Diffusion-LM fills blanks; none is marked as clean.

        At the first call, at the log-SNR `noisiest`, they are noised as everything is: x_T = alpha x_0 + sigma eps.
        """
        kept = self.clean[..., None]
        x_0 = embeddings[self.ids.clamp(min=0)]  # (B, n, d)

        def denoise(
            x_t: Tensor, log_snr: Tensor, self_condition: Tensor | None = None, lengths: Tensor | None = None
        ) -> Denoised:
            is_first = bool((log_snr <= noisiest).all())
            x_t = torch.where(kept, q_sample(x_0, x_t, noisiest) if is_first else x_0, x_t)
            return denoiser(x_t, log_snr, self_condition, lengths=lengths)

        return denoise


def keep_framed(model: DiffusionLM, rows: Sequence[Sequence[str | None]]) -> KeptWords | None:
    """What a model of fixed length is given, or None: a template's words with what opens, closes and fills the text.

    A row without a template (empty) is given nothing but, where other texts follow its own, what opens it.
    """
    tokenizer, length = model.tokenizer, model.config.max_length
    fill = NO_WORD if model.texts_follow else tokenizer.pad_id
    ids = torch.full((len(rows), length), NO_WORD)
    for row, words in zip(ids, rows, strict=True):
        given = tokenizer.opening if words or model.texts_follow else []
        if words:
            given = [*given, *word_ids(words, tokenizer), *tokenizer.closing]
            given += [fill] * (length - len(given))
        row[: len(given)] = torch.tensor(given, dtype=torch.long)
    return KeptWords(ids.to(model.device)) if (ids != NO_WORD).any() else None


def keep(rows: Sequence[Sequence[str | None]], tokenizer: WordTokenizer) -> KeptWords:
    """The ids of the words that are not None, in rows filled up to the longest.

    A word that the vocabulary has only in another case is shown to the model in that, an unknown one as <unk>.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), NO_WORD)
    for row, words in zip(ids, rows, strict=True):
        row[: len(words)] = torch.tensor(word_ids(words, tokenizer), dtype=torch.long)
    return KeptWords(ids)
