"""Batches of sentences with the sentences before them."""

from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrlgen.diffusion.words import NO_ROW
from ctrlgen.text.context import context_before
from ctrlgen.training.batches import LengthBatches

END = 2


def test_a_context_is_whole_sentences_as_many_as_fit() -> None:
    sentences = [[3, 4, 5], [6], [7, 8], [9]]
    assert context_before(sentences, 0, 10, END) == []
    assert context_before(sentences, 3, 10, END) == [3, 4, 5, END, 6, END, 7, 8, END]
    assert context_before(sentences, 3, 8, END) == [6, END, 7, 8, END]
    assert context_before(sentences, 3, 2, END) == []


def test_sentences_with_a_context_have_batches_of_their_own() -> None:
    sentences = [[i] * (3 + i % 2) for i in range(3, 103)]
    contexts = {index: [7, END] for index in range(40, 100)}
    batches = LengthBatches(sentences, 40, 0, contexts, context_width=5, context_share=0.2)
    epoch, again = batches.epoch(0), batches.epoch(1)
    assert len(epoch) == len(again)
    assert all(len({index in contexts for index in indices}) == 1 for indices in epoch)
    assert all(len({len(sentences[index]) for index in indices}) == 1 for indices in epoch)
    with_context = [indices for indices in epoch if indices[0] in contexts]
    assert len(with_context) / len(epoch) == 0.2
    assert sorted(i for indices in epoch for i in indices if i < 40) == list(range(40))
    assert all(len(indices) * (5 + len(sentences[indices[0]])) <= 40 for indices in with_context)
    assert {tuple(i for indices in epoch for i in indices)} != {tuple(i for indices in again for i in indices)}
    assert batches.context(with_context[0])[0].tolist() == [NO_ROW, NO_ROW, NO_ROW, 7, END]
    assert batches.context([0]).shape == (1, 0)


def test_without_documents_nothing_changes() -> None:
    sentences = [[3] * n for n in (2, 5, 5, 2, 2, 4)]
    plain, other = LengthBatches(sentences, 6, 1), LengthBatches(sentences, 6, 1, {}, 5, 0.5)
    assert plain.epoch(3) == other.epoch(3)
    assert torch.equal(plain.tokens([1, 2]), torch.full((2, 5), 3))


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 40), st.integers(0, 5))
def test_small_batches_share_a_step(lengths: list[int], tokens_per_batch: int, seed: int) -> None:
    batches = LengthBatches([[0] * length for length in lengths], tokens_per_batch, seed)
    epochs = [batches.steps(number) for number in range(3)]
    assert len({len(epoch) for epoch in epochs}) == 1
    for number, epoch in enumerate(epochs):
        assert sorted(map(tuple, chain(*epoch))) == sorted(map(tuple, batches.epoch(number)))
        words = [sum(len(batch) * lengths[batch[0]] for batch in step) for step in epoch]
        assert all(n <= tokens_per_batch for n, step in zip(words, epoch, strict=True) if len(step) > 1)
        assert sum(2 * n <= tokens_per_batch for n in words) <= 1


def test_a_full_batch_is_a_step() -> None:
    batches = LengthBatches([[0] * 4 for _ in range(30)], 40, 0)
    assert sorted(batches.steps(2)) == sorted([batch] for batch in batches.epoch(2))
