"""Batches of sentences with the sentences before them."""

import torch

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
