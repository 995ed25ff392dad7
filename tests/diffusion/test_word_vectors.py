"""What spellings say of words, and a denoiser whose output is tied to the words' vectors."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.diffusion.schedule import alpha_sigma
from ctrlgen.diffusion.words import MOST_PIECES, NO_PIECE, NO_ROW, WordTable, pieces_of, shape_of, spell

MakeModel = Callable[..., Denoiser]
TIED = {"output": "tied", "output_dim": 3, "pieces": 50}
WORDS = ["<pad>", "<unk>", "<end>", "the", "pub", "pubs", "Zizzi", "is", "cheap", ",", "."]


@pytest.fixture
def tied(make_model: MakeModel) -> Denoiser:
    torch.manual_seed(0)
    model = make_model(perturbed=True, context=5, **TIED).requires_grad_(False)
    model.words.learn_spelling(WORDS, torch.arange(11) * 10)
    return model


def test_pieces_tell_words_apart() -> None:
    assert set(pieces_of("pub")) == {"=x", "^p", "^pu", "^pub", "b$", "ub$", "pub$", "pub"}
    assert set(pieces_of("tea")) != set(pieces_of("eat")) != set(pieces_of("ate"))  # anagrams
    assert set(pieces_of("Pub")) - set(pieces_of("pub")) == {"=Xx"}
    assert pieces_of("a") == ["=x", "^a", "a$"]
    assert len(pieces_of("x" + "abcdefghijklmnopqrstuvwxyz" * 9)) == MOST_PIECES


@pytest.mark.parametrize(
    ("word", "shape"),
    [("Zizzi", "Xx"), ("20th", "dx"), ("£", "£"), ("McDonald's", "XxXx'x"), ("C++", "X+"), ("是", "x")],
)
def test_shapes(word: str, shape: str) -> None:
    assert shape_of(word) == shape


def test_spelling_is_stable_and_never_the_filling() -> None:
    one, other = spell(WORDS, 50), spell(WORDS, 50)
    assert torch.equal(one, other)
    assert ((one != NO_PIECE).sum(1) == torch.tensor([len(pieces_of(word)) for word in WORDS])).all()
    assert one.max() < 50


def test_vectors_are_own_plus_pieces() -> None:
    table = WordTable(len(WORDS), 4, 3, 50)
    table.learn_spelling(WORDS, torch.full((len(WORDS),), 2))
    index = WORDS.index("pub")
    buckets = spell(["pub"], 50)[0]
    buckets = buckets[buckets != NO_PIECE]
    vector = table.own[index] + table.pieces[buckets].sum(0) / math.sqrt(len(buckets))
    vectors = table.of_vocabulary()
    torch.testing.assert_close(vectors.embedding[index], 2.0 * F.normalize(vector[:4], dim=0))
    torch.testing.assert_close(vectors.output[index], vector[4:7])
    torch.testing.assert_close(vectors.bias[index], vector[7] + math.log(1 / len(WORDS)))


def test_a_new_word_has_its_pieces_and_counts_as_seen_once() -> None:
    table = WordTable(len(WORDS), 4, 3, 50)
    table.learn_spelling(WORDS, torch.full((len(WORDS),), 2))
    with torch.no_grad():
        table.own.zero_()
    new, known = table.of_new(["pub"]), table.of_vocabulary()
    index = WORDS.index("pub")
    torch.testing.assert_close(new.embedding[0], known.embedding[index])
    torch.testing.assert_close(new.bias[0], known.bias[index] - math.log(2))


def test_the_logits_are_bayes_rule_where_the_network_says_nothing(make_model: MakeModel) -> None:
    model = make_model(**TIED).double()
    model.words.learn_spelling(WORDS, torch.arange(11))
    x_t, log_snr = torch.randn(2, 6, 4).double(), torch.tensor([-3.0, 2.0]).double()
    alpha, sigma = (scale[:, None, None, None] for scale in alpha_sigma(log_snr))
    distances = (x_t[:, :, None] - alpha * model.embeddings()).square().sum(-1)
    expected = (model.vocabulary().bias - distances / (2 * sigma[..., 0] ** 2)).softmax(-1)
    torch.testing.assert_close(model(x_t, log_snr).probs, expected)


def test_one_product_is_output_and_skip(tied: Denoiser) -> None:
    x_t, log_snr = torch.randn(2, 12, 4), torch.tensor([1.0, 3.0])
    denoised = tied(x_t, log_snr)
    words = tied.vocabulary()
    output = tied.output(F.layer_norm(denoised.hidden[-1], denoised.hidden[-1].shape[-1:]))
    alpha, sigma = alpha_sigma(log_snr)
    skip = (alpha / sigma**2)[:, None, None] * x_t @ words.embedding.T
    expected = output[..., :4] @ words.embedding.T + output[..., 4:] @ words.output.T + words.bias + skip
    torch.testing.assert_close(denoised.logits, expected, rtol=1e-4, atol=1e-4)


def test_the_vocabulary_is_made_once_until_a_weight_changes(tied: Denoiser) -> None:
    first = tied.vocabulary()
    assert tied.vocabulary() is first
    with torch.enable_grad():
        assert tied.vocabulary() is first
    with torch.no_grad():
        tied.words.own[3] += 1.0
    assert not torch.equal(tied.vocabulary().embedding[3], first.embedding[3])


def test_new_words_leave_the_others_as_they_are(tied: Denoiser) -> None:
    wider = tied.with_words(["Chez", "Marcel"])
    assert wider.embeddings().shape == (13, 4)
    assert torch.equal(wider.embeddings()[:11], tied.embeddings())
    assert wider.with_words(["x"]).new_words == ("Chez", "Marcel", "x")
    x_t, log_snr = torch.randn(2, 6, 4), torch.tensor([0.5])
    torch.testing.assert_close(wider(x_t, log_snr).logits[..., :11], tied(x_t, log_snr).logits, rtol=1e-4, atol=1e-4)
    x_0 = wider.embed(torch.tensor([[11, 12, 11, 3, 4, 5]]))
    clean = wider(0.999 * x_0, torch.tensor([8.0]))  # with little noise the new words are read
    assert clean.logits.argmax(-1).tolist() == [[11, 12, 11, 3, 4, 5]]


def test_a_new_word_reads_as_its_neighbours_to_heads_that_came_before_it(tied: Denoiser) -> None:
    with torch.no_grad():
        tied.words.own[WORDS.index("pub")] = 0.0
    wider = tied.with_words(["pub", "Marcel"])  # the first is spelled like a word that has nothing of its own
    denoised = wider(torch.randn(2, 6, 4), torch.tensor([0.5]))
    assert denoised.neighbours is not None
    assert denoised.neighbours.shape == (2, 11)
    assert denoised.neighbours[0].argmax() == WORDS.index("pub")
    torch.testing.assert_close(denoised.neighbours.sum(1), torch.ones(2))
    torch.testing.assert_close(denoised.known_probs.sum(-1), torch.ones(2, 6))
    expected = denoised.probs[..., :11] + denoised.probs[..., 11:] @ denoised.neighbours
    assert torch.equal(denoised.known_probs, expected)
    table = torch.rand(11, 3)
    assert torch.equal(denoised.for_new_words(table)[:11], table)
    torch.testing.assert_close(denoised.for_new_words(table)[11:], denoised.neighbours @ table)
    plain = tied(torch.randn(2, 6, 4), torch.tensor([0.5]))
    assert torch.equal(plain.known_probs, plain.probs)
    assert plain.for_new_words(table) is table


def test_a_new_word_may_stand_for_a_known_one(tied: Denoiser) -> None:
    wider = tied.with_words(["Chez", "Marcel"], [WORDS.index("pub"), NO_ROW])
    known, new = wider.embeddings()[WORDS.index("pub")], wider.embeddings()[11:]
    torch.testing.assert_close(new[0], known)
    assert torch.equal(new[1], tied.with_words(["Marcel"]).embeddings()[11])
    logits = wider(torch.randn(2, 6, 4), torch.tensor([0.5])).logits
    torch.testing.assert_close(logits[..., 11], logits[..., WORDS.index("pub")])


def test_new_words_need_a_tied_output(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="tied"):
        make_model().with_words(["x"])


@pytest.mark.usefixtures("one_thread")
def test_a_context_changes_the_text_and_only_its_present_words_do(tied: Denoiser) -> None:
    x_t, log_snr = torch.randn(2, 6, 4), torch.tensor([0.5])
    context = torch.tensor([[NO_ROW, NO_ROW, 3, 4, 5], [3, 4, 5, 6, 7]])
    both = tied(x_t, log_snr, context=context)
    assert both.logits.shape == (2, 6, 11)
    assert all(h.shape == (2, 6, 16) for h in both.hidden)
    assert not torch.allclose(both.logits, tied(x_t, log_snr).logits)
    short = tied(x_t[:1], log_snr, context=torch.tensor([[3, 4, 5]]))  # filled up in front
    torch.testing.assert_close(short.logits, both.logits[:1], rtol=1e-4, atol=1e-4)
    absent = tied(x_t, log_snr, context=torch.full((2, 5), NO_ROW))
    torch.testing.assert_close(absent.logits, tied(x_t, log_snr).logits, rtol=1e-4, atol=1e-4)


def test_a_context_stands_beside_texts_of_several_lengths(tied: Denoiser) -> None:
    x_t, log_snr, context = torch.randn(2, 6, 4), torch.tensor([0.5]), torch.tensor([[3, 4], [5, 6]])
    together = tied(x_t, log_snr, lengths=torch.tensor([6, 4]), context=context)
    alone = tied(x_t[1:, :4], log_snr, context=context[1:])
    torch.testing.assert_close(together.logits[1:, :4], alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output": "tied"}, "pieces"),
        ({"output": "tied", "pieces": 40_000}, "32767"),
        ({"output": "tied", "pieces": 50, "objective": "mse"}, "objective ce"),
        ({"output": "wide"}, "full or tied"),
        ({"context": -1}, "negative"),
        ({"context": 4, "objective": "mse"}, "no context"),
    ],
)
def test_sizes_that_make_no_model_are_refused(
    make_model: MakeModel, config: dict[str, int | str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**config)
