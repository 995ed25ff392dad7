"""What the vectors of words start from: their neighbours in the texts, or a model with a full output."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.words import NO_ROW, WordTable
from ctrlgen.training.starting import (
    OF_WORDS,
    neighbour_vectors,
    neighbours,
    share_out,
    start_from_full,
    start_from_neighbours,
)

ANIMALS, VERBS = ["cat", "dog", "horse", "mouse"], ["sleeps", "walks", "sings", "talks"]
WORDS = ["the", ".", *ANIMALS, *VERBS]
SIZES = {"width": 16, "layers": 1, "heads": 2, "max_length": 12}


def sentences() -> list[list[int]]:
    """the ANIMAL VERB . , each in turn."""
    return [[0, 2 + i % 4, 6 + i // 4 % 4, 1] for i in range(64)]


def make_table(embedding_dim: int, output_dim: int) -> WordTable:
    torch.manual_seed(0)
    table = WordTable(len(WORDS), embedding_dim, output_dim, buckets=200)
    table.learn_spelling(WORDS, torch.arange(len(WORDS)) + 1)
    return table


def randomised(config: DenoiserConfig) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return denoiser


def cosines(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T


def test_pairs_of_neighbours_stay_within_sentences() -> None:
    pairs, width = neighbours([[0, 1, 2], [2, 0]], vocab_size=3)
    assert width == 4 * 3
    seen = sorted((int(pair) // width, int(pair) % width // 3) for pair in pairs)  # word, index of the place
    assert seen == sorted(
        [(0, 2), (0, 3), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (0, 1)]  # 0 1 2: both sides; 2 0: one each
    )


def test_ids_beyond_the_vocabulary_are_no_neighbours() -> None:
    with_rare, width = neighbours([[0, 7, 1]], vocab_size=2)
    assert sorted(int(pair) // width for pair in with_rare) == [0, 1]  # two places apart, past the rare word


def test_words_with_the_same_neighbours_are_near() -> None:
    near = cosines(neighbour_vectors(sentences(), len(WORDS), 3))
    animals, verbs = slice(2, 6), slice(6, 10)
    assert min(near[animals, animals].min(), near[verbs, verbs].min()) > near[animals, verbs].max()
    assert near[animals, verbs].mean() < 0.4


def test_vectors_are_the_same_every_time_and_leave_torchs_seed_alone() -> None:
    torch.manual_seed(1)
    first = neighbour_vectors(sentences(), len(WORDS), 4)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), after)
    assert torch.equal(first, neighbour_vectors(sentences(), len(WORDS), 4))


def test_own_and_pieces_add_up_to_the_vectors() -> None:
    table = make_table(6, 4)
    vectors = torch.randn(len(WORDS), 11)
    vectors[:, :6] = F.normalize(vectors[:, :6], dim=-1) * 6**0.5
    share_out(table, vectors)
    made = table.of_vocabulary()
    torch.testing.assert_close(made.embedding, vectors[:, :6])
    torch.testing.assert_close(made.output, vectors[:, 6:10])
    torch.testing.assert_close(made.bias - table.log_prior(), vectors[:, 10])


def test_a_new_word_is_near_words_of_its_spelling() -> None:
    """`jumps` ends as the verbs do, so its pieces alone put it there."""
    table = make_table(3, 0)
    start_from_neighbours(table, sentences())
    near = (
        F.normalize(table.of_new(["jumps"]).embedding, dim=-1) @ F.normalize(table.of_vocabulary().embedding, dim=-1).T
    )
    assert near[0, 6:10].min() > near[0, 2:6].max()


def test_a_tied_denoiser_is_the_function_of_the_full_one_it_starts_from() -> None:
    full = randomised(DenoiserConfig(vocab_size=len(WORDS), embedding_dim=6, **SIZES))
    tied = Denoiser(
        DenoiserConfig(vocab_size=len(WORDS), embedding_dim=6, output="tied", output_dim=10, pieces=200, **SIZES)
    ).eval()
    tied.words.learn_spelling(WORDS, torch.arange(len(WORDS)) + 1)
    tied.load_state_dict({k: v for k, v in full.state_dict().items() if k not in OF_WORDS}, strict=False)
    start_from_full(tied, full)
    x_t, log_snr = torch.randn(3, 12, 6), torch.tensor([-3.0, 0.0, 2.0])
    with torch.no_grad():
        expected, found = full(x_t, log_snr), tied(x_t, log_snr)
    torch.testing.assert_close(found.logits.log_softmax(-1), expected.logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.x0_hat, expected.x0_hat, atol=1e-4, rtol=1e-4)


def test_a_narrow_output_keeps_most_of_the_function() -> None:
    full = randomised(DenoiserConfig(vocab_size=len(WORDS), embedding_dim=2, **SIZES))
    errors = []
    for output_dim in (0, 2, 8):
        config = DenoiserConfig(
            vocab_size=len(WORDS), embedding_dim=2, output="tied", output_dim=output_dim, pieces=200, **SIZES
        )
        tied = Denoiser(config).eval()
        tied.words.learn_spelling(WORDS, torch.ones(len(WORDS), dtype=torch.int64))
        start_from_full(tied, full)
        with torch.no_grad():
            vectors = tied.vocabulary()
            weight = torch.cat([vectors.embedding, vectors.output], -1) @ tied.output.weight
            wanted = full.output.weight - full.output.weight.mean(0)
        errors.append(float((weight - wanted).norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_known_words_stay_as_they_are_while_pieces_are_learned() -> None:
    table = make_table(6, 4)
    before, new = table.of_vocabulary(), table.of_new(["jumps"])
    table.fix()
    ids = torch.arange(len(WORDS))
    without_own = torch.where(ids % 2 == 0, ids, NO_ROW)
    made = table.vectors(without_own, table.spelling, table.log_prior())
    torch.testing.assert_close(made.embedding[::2], before.embedding[::2])
    made.embedding.sum().backward()
    assert table.own.grad is None
    with torch.no_grad():
        table.pieces -= 0.3 * table.pieces.grad.sign()
    table.settle()
    table.fixed = None
    for vectors, as_before in zip(table.of_vocabulary(), before, strict=True):
        torch.testing.assert_close(vectors, as_before)
    assert not torch.allclose(table.of_new(["jumps"]).embedding, new.embedding)
