"""The guarantee: what automata can say of a text is decided at the last call of the denoiser, exactly.

Guidance makes the controls likely. Those that have automata are then made certain: the last call chooses the whole text
at once among those that all their automata accept, and a correction is made only where they accept it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrlgen.automata.automaton import any_text, product
from ctrlgen.automata.paths import best_path, draw_path
from ctrlgen.automata.recursion import stack
from ctrlgen.generation.guidance import Term
from ctrlgen.generation.kept import KeptWords


def free(terms: Sequence[Term]) -> list[Term]:
    """The terms that are left to guidance."""
    return [term for term in terms if term.automata is None]


def choose_texts(
    terms: Sequence[Term],
    logits: Tensor,
    sizes: Sequence[int],
    temperature: float = 0.0,
    rngs: Sequence[torch.Generator] = (),
) -> Tensor:
    """The texts that are likeliest under logits (B, n, V) among those that all automata of a row accept. -> (B, n)

    Logits are -inf for words that may not stand there. With a temperature the texts are drawn instead, row i by its
    generator. Beyond a row's size stand any words, as in a row that has no accepted text: such a request is refused.
    """
    automata = [term.automata for term in terms if term.automata is not None]
    ids = logits.argmax(-1)
    for row, size in enumerate(sizes):
        whole = product(tuple(of_control[row] for of_control in automata)) if automata else any_text(logits.shape[-1])
        x = logits[row, :size]
        text = draw_path(x, whole, temperature, rngs[row]) if temperature > 0 else best_path(x, whole)
        if text is not None:
            ids[row, :size] = torch.tensor(text, device=ids.device)
    return ids


def possible(logits: Tensor, forbidden: Tensor, kept: KeptWords | None) -> Tensor:
    """Logits (B, n, V) that are -inf for words that may not stand there: forbidden ones (V,), others than kept ones."""
    logits = logits.masked_fill(forbidden, -torch.inf)
    if kept is None:
        return logits
    only = torch.full_like(logits, -torch.inf).scatter(-1, kept.ids.clamp(min=0)[..., None], 0.0)
    return torch.where(kept.clean[..., None], only, logits)


def accepted(terms: Sequence[Term], lengths: Tensor | None, ids: Tensor, rows: Tensor) -> Tensor:
    """Whether texts (M, n) are accepted by all automata of the rows (M,) that they are of. bool (M,)

    lengths (B,): of the rows.
    """
    sizes = None if lengths is None else lengths[rows]
    fine = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for term in terms:
        if term.automata is not None:
            fine &= stack(term.automata).to(ids.device).accept(ids, sizes, rows)
    return fine
