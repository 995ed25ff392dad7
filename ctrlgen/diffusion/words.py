"""What the denoiser knows of a word: its own vector, and what its spelling says.

    e_w = sqrt(d) * normalize(own_w + pieces_w)       the embedding that is diffused, norm sqrt(d)
    u_w = own_w + pieces_w                            a wider vector that only the output sees
    b_w = log prior_w + own_w + pieces_w              its log-probability before anything is read

pieces_w is the sum over the pieces of the spelling (prefixes, suffixes, three letters in a row, the shape), as in
Bojanowski et al. 2017, section 3.2, divided by the root of their number, so that long words weigh no more than short
ones. A word without an own vector has pieces_w alone, so a word that no training text had is of the right kind (Pinter
et al. 2017, "Mimicking word embeddings", learn such a vector afterwards; here own_w is left out at random in training).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.diffusion.precision import precise

AFFIX = 4  # letters of the longest prefix and suffix
MOST_PIECES = 24  # of one word; a longer word keeps its affixes and its first inner pieces
NO_PIECE = 0  # bucket that fills up a spelling; its vector is zero
NO_ROW = -1  # instead of an id: a word without an own vector


class WordVectors(NamedTuple):
    """What the denoiser needs to know of K words."""

    embedding: Tensor  # (K, d), norm sqrt(d)
    output: Tensor  # (K, u)
    bias: Tensor  # (K,), in nats

    @property
    def both(self) -> Tensor:
        """(K, d + u)"""
        return torch.cat([self.embedding, self.output], -1)


def shape_of(word: str) -> str:
    """Its capitals, digits and marks, each run as one letter: `Zizzi` is `Xx`, `20th` is `dx`."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word]
    return "".join(kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1])


def pieces_of(word: str) -> list[str]:
    """The pieces of a spelling: its shape, its prefixes and suffixes, and every three letters in a row."""
    letters = word.casefold()
    affixes = [f"^{letters[:n]}" for n in range(1, min(AFFIX, len(letters)) + 1)]
    affixes += [f"{letters[-n:]}$" for n in range(1, min(AFFIX, len(letters)) + 1)]
    inner = [letters[i : i + 3] for i in range(len(letters) - 2)]
    return list(dict.fromkeys([f"={shape_of(word)}", *affixes, *inner]))[:MOST_PIECES]


def spell(words: Sequence[str], buckets: int) -> Tensor:
    """The buckets of each word's pieces, filled up with NO_PIECE. (K, MOST_PIECES), int64"""
    rows = torch.full((len(words), MOST_PIECES), NO_PIECE)
    for row, word in zip(rows, words, strict=True):
        hashed = [1 + zlib.crc32(piece.encode()) % (buckets - 1) for piece in pieces_of(word)]
        row[: len(hashed)] = torch.tensor(hashed)
    return rows


class WordTable(nn.Module):
    """Own vectors of V words and vectors of the pieces of any word. Each has d + u + 1 numbers: e, u and b."""

    counts: Tensor
    spelling: Tensor
    fixed: Tensor | None

    def __init__(self, vocab_size: int, embedding_dim: int, output_dim: int, buckets: int):
        super().__init__()
        self.sizes = (embedding_dim, output_dim, 1)
        self.own = nn.Parameter(self.initial(vocab_size))
        self.pieces = nn.Parameter(self.initial(buckets))
        with torch.no_grad():
            self.pieces[NO_PIECE] = 0.0
        self.register_buffer("counts", torch.ones(vocab_size, dtype=torch.int64))  # in the training texts
        self.register_buffer("spelling", torch.full((vocab_size, MOST_PIECES), NO_PIECE, dtype=torch.int16))
        self.register_buffer("fixed", None, persistent=False)

    def initial(self, rows: int) -> Tensor:
        e, u, b = self.sizes
        return torch.cat([torch.randn(rows, e + u) * 0.7, torch.zeros(rows, b)], -1)

    @torch.no_grad()
    def learn_spelling(self, words: Sequence[str], counts: Tensor) -> None:
        """The vocabulary's spellings, and how often the training texts have each word. counts (V,)"""
        self.spelling.copy_(spell(words, len(self.pieces)))
        self.counts.copy_(counts.clamp(min=1))

    def log_prior(self) -> Tensor:
        """log p(w) of the vocabulary, as counted. (V,)"""
        return (precise(self.counts) / self.counts.sum()).log().float()

    def log_prior_of_new(self) -> float:
        """log p(w) of a word that no training text had: as if seen once."""
        return -math.log(int(self.counts.sum()))

    def vectors(self, ids: Tensor, spelling: Tensor, log_prior: Tensor) -> WordVectors:
        """Of words with these own vectors, NO_ROW for none. ids (K,), spelling (K, m), log_prior (K,)"""
        from_pieces, known = self.of_pieces(spelling), (ids != NO_ROW)[:, None]
        if self.fixed is None:
            both = from_pieces + F.embedding(ids.clamp(min=0), self.own) * known
        else:
            both = torch.where(known, F.embedding(ids.clamp(min=0), self.fixed), from_pieces)
        embedding, output, bias = both.split(self.sizes, -1)
        embedding = F.normalize(embedding, dim=-1) * math.sqrt(self.sizes[0])
        return WordVectors(embedding, output, log_prior + bias[:, 0])

    def of_pieces(self, spelling: Tensor) -> Tensor:
        """What the spellings say. (K, m) -> (K, d + u + 1)"""
        spelling = spelling.long()
        share = (spelling != NO_PIECE).sum(-1, keepdim=True).clamp(min=1) ** -0.5
        return F.embedding(spelling, self.pieces, padding_idx=NO_PIECE).sum(1) * share

    @torch.no_grad()
    def fix(self) -> None:
        """Keep the vectors of the vocabulary as they are from now on, while those of the pieces are learned."""
        self.own.requires_grad_(False)
        self.fixed = self.own + self.of_pieces(self.spelling)

    @torch.no_grad()
    def settle(self) -> None:
        """Make own vectors what the fixed ones are without the pieces."""
        if self.fixed is not None:
            self.own.copy_(self.fixed - self.of_pieces(self.spelling))

    def of_vocabulary(self) -> WordVectors:
        """Of all V words."""
        return self.vectors(torch.arange(len(self.own), device=self.own.device), self.spelling, self.log_prior())

    def of_new(self, words: Sequence[str], like: Sequence[int] = ()) -> WordVectors:
        """Of words that the vocabulary lacks: all that is known of the words `like`, NO_ROW where there is none such.

        Those without are made of their spelling alone.
        """
        ids = torch.tensor([*like] or [NO_ROW] * len(words), dtype=torch.int64, device=self.own.device)
        known, rows = ids != NO_ROW, ids.clamp(min=0)
        spelling = spell(words, len(self.pieces)).to(ids.device)
        spelling = torch.where(known[:, None], self.spelling[rows].long(), spelling)
        prior = torch.where(known, self.log_prior()[rows], self.log_prior_of_new())
        return self.vectors(ids, spelling, prior)
