"""Correction: words that the rest of a finished text makes unlikely are replaced by likelier ones.

Denoising decides all words at once, each from its own distribution, so that two which are likely alone may not go
together. Here every fourth word is hidden in turn; the denoiser, given the others as in infilling, says what should
stand there. Compare mask-predict (Ghazvininejad et al. 2019) and the correctors of discrete diffusion (Campbell et al.
2022, section 4.4). No change is made that the guides mind, or that the automata of controls do not accept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.controls.template import NO_WORD
from ctrlgen.generation.guarantee import accepted, free
from ctrlgen.generation.guidance import MARGIN, Term
from ctrlgen.generation.reading import STRIDE, Reader, log_p_of

LEAST_GAIN = 3.0  # nats

OnHidden = Callable[[Tensor], Tensor]  # texts (B, n) with NO_WORD -> log p (B, n, V)
Held = Callable[[Tensor, Tensor], Tensor]  # texts (M, n) and the rows (M,) whose K controls they are under -> (M, K)
Fine = Callable[[Tensor, Tensor], Tensor]  # the same -> bool (M,)


def correct(
    reader: Reader, ids: Tensor, changeable: Tensor, lengths: Tensor | None, terms: Sequence[Term], sweeps: int
) -> Tensor:
    """The texts (B, n) after at most so many sweeps, each over those that the one before it changed.

    changeable: bool (B, n), the words that may be replaced. Terms: the controls that a change must not harm.
    """
    rows = torch.arange(len(ids), device=ids.device)
    for _ in range(sweeps):
        texts, of_rows = ids[rows], [term.rows(rows) for term in terms]
        sizes = None if lengths is None else lengths[rows]
        on_hidden = partial(reader.rows(rows).hidden, lengths=sizes, terms=of_rows)
        chosen, words = propose(on_hidden, texts, changeable[rows])
        held = partial(log_probs, reader, free(of_rows), sizes)
        after = accept(held, partial(accepted, of_rows, sizes), texts, chosen, words)
        ids = ids.index_copy(0, rows, after)
        rows = rows[(after != texts).any(1)]
        if len(rows) == 0:
            break
    return ids


def propose(on_hidden: OnHidden, ids: Tensor, changeable: Tensor) -> tuple[Tensor, Tensor]:
    """Where a word is less likely than another by LEAST_GAIN, bool (B, n), and the likeliest words (B, n).

    Of neighbours only the one that gains most is to be replaced.
    """
    likeliest = ids
    gain = torch.zeros(ids.shape, device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    for first in range(min(STRIDE, ids.shape[1])):
        hidden = changeable & (place % STRIDE == first)
        log_p = on_hidden(ids.masked_fill(hidden, NO_WORD))
        most, word = log_p.max(-1)
        gain = torch.where(hidden, most - log_p_of(ids, log_p), gain)
        likeliest = torch.where(hidden, word, likeliest)
    greatest = F.max_pool1d(gain, 3, stride=1, padding=1)
    return (gain >= LEAST_GAIN) & (gain == greatest), likeliest


def accept(held: Held, fine: Fine, ids: Tensor, chosen: Tensor, words: Tensor) -> Tensor:
    """The texts with those changes made after which every control is held about as likely, alone and together.

    held: log p of each control that is guided alone, in finished texts. fine: whether they have all others.
    """
    touched = chosen.any(1).nonzero()[:, 0]
    if len(touched) == 0:
        return ids
    least = held(ids[touched], touched) - MARGIN
    least_of_row = least.new_zeros(len(ids), least.shape[1]).index_copy(0, touched, least)
    rows, places = chosen.nonzero(as_tuple=True)
    single = ids[rows]  # a text for each change
    single[torch.arange(len(rows), device=ids.device), places] = words[rows, places]
    good = fine(single, rows) & (held(single, rows) > least_of_row[rows]).all(1)
    chosen = chosen.index_put((rows, places), good)
    after = torch.where(chosen, words, ids)[touched]
    good = fine(after, touched) & (held(after, touched) > least).all(1)
    return ids.index_copy(0, touched, torch.where(good[:, None], after, ids[touched]))


def log_probs(reader: Reader, terms: Sequence[Term], lengths: Tensor | None, ids: Tensor, rows: Tensor) -> Tensor:
    """log p, weighted, of each control of these rows (M,) in finished texts (M, n). -> (M, K)"""
    return reader.controls(ids, None if lengths is None else lengths[rows], [term.rows(rows) for term in terms])
