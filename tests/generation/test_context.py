"""Sentences after others: what stands before a text is read as clean words, by models that were trained with it."""

import pytest
import torch
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.precision import autocast
from ctrlgen.diffusion.schedule import make_schedule
from ctrlgen.diffusion.words import NO_ROW
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Draws
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings
from ctrlgen.text.tokenizer import WordTokenizer

QUICK = Settings(steps=5, candidates=2)
BEFORE = ["the red cat sees a dog .", "a house ."]


@pytest.fixture(scope="module")
def reads() -> Generator:
    """A model with a context of twelve words and random weights everywhere."""
    tokenizer = WordTokenizer.train([" ".join(words) for words, _ in toy_sentences(300)])
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=len(tokenizer), embedding_dim=8, width=16, layers=2, heads=2, max_length=12, output="tied",
        output_dim=4, pieces=99, context=12,
    )  # fmt: skip
    denoiser = Denoiser(config).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.add_(torch.randn_like(parameter))
    return Generator(DiffusionLM(denoiser, make_schedule("warp"), tokenizer, lengths={7: 3, 9: 2}))


def batch_of(generator: Generator, *requests: Request) -> Batch:  # type: ignore[type-arg]
    return Batch(generator.reader, Draws(generator.model, requests).first())


def test_whole_sentences_from_the_text_backwards(reads: Generator) -> None:
    tokenizer = reads.model.tokenizer
    batch = batch_of(reads, reads.request([], before=BEFORE), reads.request([], before=BEFORE[1:]))
    assert batch.context is not None
    words = [*"the red cat sees a dog .".split(), *"a house .".split()]
    first = [*tokenizer.ids(words[:7]), tokenizer.end_id, *tokenizer.ids(words[7:]), tokenizer.end_id]
    assert batch.context.tolist() == [first, [NO_ROW] * 8 + first[8:]]
    assert batch_of(reads, reads.request([])).context is None


def test_the_reader_knows_what_stands_before(reads: Generator, one_thread: None) -> None:
    batch = batch_of(reads, reads.request([], before=BEFORE), reads.request([], before=BEFORE[1:], seed=1))
    ids = torch.full((2, max(batch.sizes)), -1)
    after = reads.reader.after(batch.context)
    denoiser, noisiest = reads.model.denoiser, reads.model.schedule.log_snr(torch.ones(1))
    x_t = torch.zeros(*ids.shape, 8)
    with autocast(ids.device):
        told = denoiser(x_t, noisiest, None, torch.zeros_like(ids).bool(), batch.lengths, context=batch.context)
    expected = (told.logits + reads.reader.forbidden).log_softmax(-1)
    torch.testing.assert_close(after.hidden(ids, batch.lengths), expected)
    assert not torch.allclose(reads.reader.hidden(ids, batch.lengths), expected, atol=0.01)
    one = torch.tensor([1])
    sizes = None if batch.lengths is None else batch.lengths[one]
    torch.testing.assert_close(after.rows(one).hidden(ids[one], sizes), expected[one])
    assert reads.reader.context is None
    full = torch.ones_like(ids)
    assert not torch.equal(after.bound(full, batch.lengths), reads.reader.bound(full, batch.lengths))


@pytest.mark.slow
def test_texts_depend_on_what_stands_before_and_on_nothing_else(reads: Generator) -> None:
    befores: list[list[str]] = [[], BEFORE, BEFORE[:1], BEFORE[1:]]
    requests = [reads.request(["length: 7-9"], 3, seed=5, before=before) for before in befores]
    together = reads.generate(requests, QUICK)
    assert [s.text for request in requests for s in reads.generate([request], QUICK)] == [s.text for s in together]
    texts = [[s.text for s in together[3 * i : 3 * i + 3]] for i in range(4)]
    assert all(texts[0] != other for other in texts[1:])
    assert texts[1] != texts[3]


def test_words_before_may_be_new(reads: Generator) -> None:
    request = reads.request([], before=["the Zorblax sees a cat ."])
    assert request.words == (("Zorblax", None),)
    reads.generate([request], QUICK)


def test_a_model_without_a_context_does_not_read_it(generator: Generator) -> None:
    assert generator.request(["length: 7"], before=BEFORE) == generator.request(["length: 7"])
