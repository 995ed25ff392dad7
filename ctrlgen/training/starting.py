"""What a denoiser starts from, where it need not be chance.

A word is known by the words beside it: counts of neighbours, as positive pointwise mutual information, reduced by a
singular value decomposition, are what skip-gram learns (Levy and Goldberg 2014, section 3), at the price of one pass
over the texts. And the vectors of a model with an output of its own for each word are those of a tied output already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained
from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.diffusion.words import WordTable
from ctrlgen.errors import UsageError
from ctrlgen.training.run_state import differing_keys

TIED = ("output", "output_dim", "pieces", "context")  # sizes that a model with a full output has not
OF_WORDS = ("word_embedding", "output.weight", "output.bias")  # what a tied denoiser has not
PLACES = (-2, -1, 1, 2)  # of a neighbour, counted from the word
NEIGHBOURS = 4000  # the most frequent words; rarer ones are not counted beside others
SMOOTHING = 0.75  # power of the neighbours' counts, so that rare neighbours tell less (Levy et al. 2015, section 3.1)
RANDOM_SHARE = 0.3  # keeps words with the same neighbours apart
SPELLING_STEPS, SPELLING_RATE, SPELLING_DECAY = 100, 0.05, 0.01


def start_from_neighbours(table: WordTable, sentences: Sequence[Sequence[int]]) -> None:
    """Let e_w and u_w of every word start from the words beside it. Sentences may have ids beyond the vocabulary."""
    embedding_dim, output_dim, _ = table.sizes
    vectors = neighbour_vectors(sentences, len(table.own), embedding_dim + output_dim)
    embedding, output = vectors.split([embedding_dim, output_dim], -1)
    embedding = F.normalize(embedding, dim=-1) * embedding_dim**0.5
    share_out(table, torch.cat([embedding, output, torch.zeros(len(vectors), 1)], -1))


def neighbour_vectors(sentences: Sequence[Sequence[int]], vocab_size: int, dim: int) -> Tensor:
    """A vector for each word, similar for words with similar neighbours, its entries of variance 1. (V, dim)

    The left singular vectors of the mutual information of words and their neighbours at each of PLACES; the first
    entries tell the most.
    """
    pairs, width = neighbours(sentences, vocab_size)
    pairs, counts = pairs.unique(return_counts=True)
    word, neighbour = pairs // width, pairs % width
    of_word = torch.zeros(vocab_size).index_add(0, word, counts.float())
    of_neighbour = torch.zeros(width).index_add(0, neighbour, counts.float()) ** SMOOTHING
    information = (counts * of_neighbour.sum() / (of_word[word] * of_neighbour[neighbour])).log().clamp(min=0)
    matrix = torch.sparse_coo_tensor(
        torch.stack([word, neighbour]), information, (vocab_size, width), check_invariants=True
    )
    rng_state = torch.get_rng_state()
    torch.manual_seed(0)  # svd_lowrank takes no generator
    rank = min(dim, vocab_size, width)
    singular = torch.svd_lowrank(matrix.coalesce(), q=min(rank + 16, vocab_size, width), niter=4)[0][:, :rank]
    chance = torch.randn(vocab_size, dim)
    torch.set_rng_state(rng_state)
    vectors = F.normalize(singular, dim=-1) * rank**0.5
    return F.pad(vectors, (0, dim - rank)) + RANDOM_SHARE * chance


def neighbours(sentences: Sequence[Sequence[int]], vocab_size: int) -> tuple[Tensor, int]:
    """All pairs of a word and a frequent word at one of PLACES beside it, as word * width + place and neighbour."""
    ids = torch.tensor(list(chain.from_iterable(sentences)))
    sentence = torch.repeat_interleave(torch.tensor([len(s) for s in sentences]))
    frequency = torch.bincount(ids, minlength=vocab_size)[:vocab_size]
    frequent = frequency.argsort(descending=True, stable=True)[:NEIGHBOURS]
    number = torch.full((max(vocab_size, int(ids.max()) + 1),), -1)
    number[frequent] = torch.arange(len(frequent))
    width = len(PLACES) * len(frequent)
    pairs = []
    for index, place in enumerate(PLACES):
        left, right = slice(None, -abs(place)), slice(abs(place), None)
        word, beside = (ids[left], ids[right]) if place > 0 else (ids[right], ids[left])
        counted = (sentence[left] == sentence[right]) & (word < vocab_size) & (number[beside] >= 0)
        pairs.append(word[counted] * width + index * len(frequent) + number[beside[counted]])
    return torch.cat(pairs), width


def starting_model(init: str | None, model: Mapping[str, Any], diffusion: DiffusionConfig) -> DiffusionLM | None:
    """The model to start from, by its name, for a recipe of these sizes and this noise.

    A model with a full output can start one with a tied output. Raises UsageError where the recipe describes another
    model in any other way, or where the model is an imported checkpoint.
    """
    if init is None:
        return None
    start = from_pretrained(init)
    if not isinstance(start.denoiser, Denoiser):
        raise UsageError(f"{init}: an imported checkpoint cannot be trained further")
    sizes = {key: getattr(start.config, key) for key in model}
    changed = differing_keys(
        {"model": sizes, "diffusion": asdict(start.diffusion)}, {"model": model, "diffusion": asdict(diffusion)}
    )
    free = ["dropout"] if start.opens or model["output"] == "full" else ["dropout", *TIED]
    changed = [key for key in changed if key not in ["diffusion.temperature", *(f"model.{key}" for key in free)]]
    if changed:
        raise UsageError(f"{init}: cannot start from it: the recipe says another {', '.join(changed)}")
    return start


def take_weights(denoiser: Denoiser, start: DiffusionLM) -> None:
    """Let a denoiser start from a model's weights. Words that this model lacks are their pieces alone."""
    assert isinstance(start.denoiser, Denoiser)
    state = start.denoiser.state_dict()
    if denoiser.config.output != "tied":
        denoiser.load_state_dict(state)
    elif start.opens:
        own = torch.zeros_like(denoiser.words.own)
        own[: len(start.tokenizer)] = start.denoiser.words.own
        words = {"own": own, "counts": denoiser.words.counts, "spelling": denoiser.words.spelling}
        denoiser.load_state_dict(state | {f"words.{name}": tensor for name, tensor in words.items()})
    else:
        denoiser.load_state_dict({k: v for k, v in state.items() if k not in OF_WORDS}, strict=False)
        start_from_full(denoiser, start.denoiser)


def start_from_full(denoiser: Denoiser, start: Denoiser) -> None:
    """Let a tied denoiser be the same function as one with a full output, whose first words its vocabulary has.

    logits = O h + c there, and E W h + U A h + log_prior + b here: W is the least-squares solution of E W = O, and U A
    what is left of O by its singular value decomposition, cut off at output_dim.
    """
    table, output_dim = denoiser.words, denoiser.words.sizes[1]
    known = slice(start.config.vocab_size)
    with torch.no_grad():
        embedding = start.embeddings()
        weight = start.output.weight - start.output.weight.mean(0)  # what all words have in common changes nothing
        bias = start.output.bias - table.log_prior()[known]
        by_embedding = torch.linalg.lstsq(embedding.double(), weight.double()).solution.float()
        left, singular, right = torch.linalg.svd(weight - embedding @ by_embedding, full_matrices=False)
        rank = min(output_dim, len(singular))
        scale = len(weight) ** 0.5  # entries of variance 1
        output = F.pad(left[:, :rank] * scale, (0, output_dim - rank))
        by_output = F.pad(singular[:rank, None] * right[:rank] / scale, (0, 0, 0, output_dim - rank))
        denoiser.output.weight.copy_(torch.cat([by_embedding, by_output]))
        denoiser.output.bias.zero_()
    share_out(table, torch.cat([embedding, output, (bias - bias.mean())[:, None]], -1))


def share_out(table: WordTable, vectors: Tensor) -> None:
    """Make own_w + pieces_w the given vectors of the first K words: the pieces say what spelling can, own the rest.

    Words beyond these are their pieces alone. vectors (K, d + u + 1), those of the embedding of norm sqrt(d).
    """
    spelling = table.spelling[: len(vectors)]
    optimizer = torch.optim.Adam([table.pieces])
    with torch.no_grad():
        table.pieces.zero_()
    with torch.enable_grad():
        for step in range(SPELLING_STEPS):
            optimizer.param_groups[0]["lr"] = SPELLING_RATE * (1.0 - step / SPELLING_STEPS)
            error = (table.of_pieces(spelling) - vectors).square().sum(-1).mean()
            (error + SPELLING_DECAY * table.pieces.square().sum(-1).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        table.own.zero_()
        table.own[: len(vectors)] = vectors - table.of_pieces(spelling)
