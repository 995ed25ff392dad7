"""Correction of finished texts: which words are replaced, by what, and what the guides have to say about it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_grammar import TAG_OF

from ctrlgen.controls.template import NO_WORD
from ctrlgen.generation import denoising
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.correction import LEAST_GAIN, accept, correct, propose
from ctrlgen.generation.denoising import drafts
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Draws, Job
from ctrlgen.generation.reading import STRIDE
from ctrlgen.generation.request import Request
from ctrlgen.settings import Guidance, Settings

WORDS, DIM = 7, 3
SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"


class Reader:
    """Says of a hidden place what a table says there, whatever the other words; remembers what it was told."""

    def __init__(self, table: Tensor):
        self.table = table  # (n, V)
        self.told: list[Tensor] = []

    def __call__(self, ids: Tensor) -> Tensor:
        self.told.append(ids)
        return self.table.log_softmax(-1).expand(len(ids), -1, -1)


def proposals(reader: Reader, ids: Tensor, changeable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return propose(reader, ids, torch.ones(ids.shape, dtype=torch.bool) if changeable is None else changeable)


def favouring(*words: int, by: float = LEAST_GAIN + 1) -> Tensor:
    """Logits (n, V) of a place's favourite over all others."""
    return by * torch.nn.functional.one_hot(torch.tensor(words), WORDS).float()


def test_a_word_is_replaced_where_another_is_likelier_by_the_least_gain() -> None:
    own = torch.tensor([[1, 2, 3, 4, 5]])
    table = favouring(1, 5, 3, 4, 6)
    table[4] *= (LEAST_GAIN - 0.1) / (LEAST_GAIN + 1)
    chosen, words = proposals(Reader(table), own)
    assert chosen.tolist() == [[False, True, False, False, False]]
    assert words[0, 1] == 5


def test_of_neighbours_the_one_that_gains_most_is_replaced() -> None:
    table = favouring(6, 6, 6, 1, 6)
    table[1] *= 2
    chosen, _ = proposals(Reader(table), torch.ones(1, 5, dtype=torch.long))
    assert chosen.tolist() == [[False, True, False, False, True]]


def test_what_is_kept_is_left() -> None:
    ids = torch.tensor([[1, 1, 1, 1, 1, 1]])
    changeable = torch.tensor([[True, False, True, True, True, True]])
    chosen, words = proposals(Reader(favouring(1, 6, 1, 1, 1, 6)), ids, changeable)
    assert chosen.nonzero().tolist() == [[0, 5]]
    assert words[0, 5] == 6


def test_each_word_is_hidden_once_and_the_others_are_told() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    reader = Reader(favouring(1, 2, 3, 4, 5, 6))
    proposals(reader, ids)
    assert len(reader.told) == STRIDE
    hidden = torch.stack([told[0] == NO_WORD for told in reader.told])
    assert hidden.sum(0).tolist() == [1] * 6
    for told in reader.told:
        assert torch.equal(told, torch.where(told == NO_WORD, NO_WORD, ids))


def test_changes_that_a_guide_minds_are_not_made() -> None:
    """Text 0: one of two changes is minded. Text 1: each is fine alone, but not both. Text 2 has no changes.

    A second guide is all for what the first one minds, and cannot outvote it.
    """
    ids = torch.zeros(3, 4, dtype=torch.long)
    chosen = torch.tensor([[True, False, True, False]] * 2 + [[False] * 4])
    words = torch.arange(1, 5).expand(3, 4)

    def held(texts: Tensor, rows: Tensor) -> Tensor:
        bad = torch.where(rows == 0, texts[:, 2] == 3, (texts[:, 0] == 1) & (texts[:, 2] == 3))
        return torch.stack([-5.0 * bad, 50.0 * bad], 1)

    after = accept(held, lambda texts, rows: torch.ones(len(texts), dtype=torch.bool), ids, chosen, words)
    assert after.tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4]
    assert chosen.tolist() == [[True, False, True, False]] * 2 + [[False] * 4]


# In the pipeline


def batch_of(generator: Generator, request: Request) -> Batch[Job]:
    return Batch(generator.reader, Draws(generator.model, [request]).first())


def corrected(generator: Generator, controls: Sequence[str], *texts: str, sweeps: int = 3) -> list[str]:
    """The texts after correction under these controls, all of one length."""
    rows = torch.tensor([generator.model.tokenizer.ids(text.split()) for text in texts])
    batch = batch_of(generator, generator.request([*controls, f"length: {rows.shape[1]}"], n=len(texts)))
    terms = [term for term in batch.terms if not term.classifier.structural]
    ids = correct(generator.reader, rows, batch.changeable, None, terms, sweeps)
    return [" ".join(generator.model.tokenizer.decode(row)) for row in ids.tolist()]


def test_a_word_out_of_place_is_mended(generator: Generator) -> None:
    fine, damaged = "the cat sees a dog .", "the cat sees a the ."
    mended, same = corrected(generator, [], damaged, fine)
    assert same == fine
    words, expected = mended.split(), damaged.split()
    assert words[:4] + words[5:] == expected[:4] + expected[5:]
    assert corrected(generator, ["pos: DET NOUN VERB DET NOUN PUNCT"], mended) == [mended]
    assert corrected(generator, [], damaged, sweeps=0) == [damaged]


def test_a_word_that_a_control_asks_for_stays(generator: Generator) -> None:
    damaged = "the cat sees a the ."
    assert corrected(generator, ["ends: the ."], damaged) == [damaged]
    assert corrected(generator, ["words: the, a"], damaged) != [damaged]  # there is another "the"


def test_hidden_words_are_judged_by_the_others_and_the_controls(generator: Generator) -> None:
    """What is told is certain, special tokens are never likely, tags count."""
    tokenizer = generator.model.tokenizer
    row = torch.tensor([tokenizer.ids("the cat sees a dog .".split())])
    hidden = row.clone()
    hidden[0, 4] = NO_WORD
    log_p = generator.reader.hidden(hidden, None)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1, 6))
    told = torch.arange(6) != 4
    assert torch.equal(log_p[0].argmax(-1)[told], row[0][told])
    assert log_p[0, 4, tokenizer.unk_id] < -1e8
    batch = batch_of(generator, generator.request(["pos: DET NOUN VERB DET ADJ PUNCT"]))
    under_control = generator.reader.hidden(hidden, None, batch.terms)
    (free,), (asked,) = (tokenizer.decode([int(p[0, 4].argmax())]) for p in (log_p, under_control))
    assert (TAG_OF[free], TAG_OF[asked]) == ("NOUN", "ADJ")


@pytest.mark.parametrize(
    ("changed", "sweeps"), [({}, 3), ({"guidance": Guidance("paper")}, 0), ({"corrections": 0}, 0)]
)
def test_it_can_be_left_out(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], sweeps: int
) -> None:
    asked = []
    monkeypatch.setattr(denoising, "correct", lambda *given: asked.append(given[-1]) or correct(*given))
    generator.generate([generator.request([])], Settings(steps=2, **changed))
    assert asked == [sweeps]


def test_the_last_text_is_the_corrected_one(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(generator, generator.request([SIMPLE], n=2))
    settings = Settings(steps=8)
    *_, plain = drafts(batch, replace(settings, corrections=0))
    given = []
    monkeypatch.setattr(denoising, "correct", lambda reader, ids, *rest: given.append(ids) or ids + 1)
    steps = list(drafts(batch, settings))
    assert len(steps) == 8
    assert torch.equal(given[0], plain)
    assert torch.equal(steps[-1], plain + 1)
