"""Correction: words that the rest of a finished text makes unlikely are replaced by likelier ones.

Denoising decides all words at once, each from its own distribution, so that two which are likely alone may not go
together. Here every fourth word is hidden in turn; the denoiser, told the others as in infilling, says what should
stand there. Compare mask-predict (Ghazvininejad et al. 2019) and the correctors of discrete diffusion (Campbell et al.
2022, section 4.4). No change is made that the guides mind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.guidance import MARGIN, Denoise, Term, condition_words
from ctrlgen.infill import NO_WORD, KeptWords

STRIDE = 4  # of hidden words; nearer ones would be told too little of each other
LEAST_GAIN = 3.0  # nats

Held = Callable[[Tensor, Tensor], Tensor]  # texts (M, n) and the rows (M,) whose controls they are under -> (M,)


def propose(
    denoiser: Denoise,
    embeddings: Tensor,
    forbidden: Tensor,
    log_snr: Tensor,
    ids: Tensor,
    changeable: Tensor,
    lengths: Tensor | None,
    terms: Sequence[Term],
) -> tuple[Tensor, Tensor]:
    """Where a word is less likely than another by LEAST_GAIN, bool (B, n), and the likeliest words (B, n).

    ids (B, n); changeable bool (B, n): words that may be replaced; log_snr (1,): the noise where a word is hidden;
    forbidden (V,) is added to the logits. Of neighbours only the one that gains most is to be replaced.
    """
    likeliest, noise = ids, embeddings.new_zeros(*ids.shape, embeddings.shape[1])
    gain = torch.zeros(ids.shape, device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    for first in range(min(STRIDE, ids.shape[1])):
        hidden = changeable & (place % STRIDE == first)
        told = KeptWords(ids.masked_fill(hidden, NO_WORD)).told(denoiser, embeddings)
        denoised = condition_words(told(noise, log_snr, lengths=lengths), terms)
        log_p = (denoised.logits.float() + forbidden).log_softmax(-1)  # (B, n, V)
        most, word = log_p.max(-1)
        gain = torch.where(hidden, most - log_p.gather(-1, ids[..., None]).squeeze(-1), gain)
        likeliest = torch.where(hidden, word, likeliest)
    greatest = F.max_pool1d(gain, 3, stride=1, padding=1)
    return (gain >= LEAST_GAIN) & (gain == greatest), likeliest


def accept(held: Held, ids: Tensor, chosen: Tensor, words: Tensor) -> Tensor:
    """The texts with those changes made after which their controls are held about as likely, alone and together.

    held: log p of the controls in finished texts.
    """
    touched = chosen.any(1).nonzero()[:, 0]
    if len(touched) == 0:
        return ids
    before = torch.zeros(len(ids), device=ids.device).index_copy(0, touched, held(ids[touched], touched).float())
    rows, places = chosen.nonzero(as_tuple=True)
    single = ids[rows]  # a text for each change
    single[torch.arange(len(rows), device=ids.device), places] = words[rows, places]
    chosen = chosen.index_put((rows, places), held(single, rows) > before[rows] - MARGIN)
    after = torch.where(chosen, words, ids)[touched]
    fine = held(after, touched) > before[touched] - MARGIN
    return ids.index_copy(0, touched, torch.where(fine[:, None], after, ids[touched]))
