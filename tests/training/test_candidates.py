"""Sampled words: probabilities of being among the candidates, and a loss that stays one of all words."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.losses import cross_entropy_loss, sampled_cross_entropy_loss
from ctrlgen.diffusion.process import draw_noise
from ctrlgen.diffusion.schedule import WarpSchedule
from ctrlgen.diffusion.words import NO_ROW, WordVectors, spell
from ctrlgen.training.candidates import Candidates, CandidateSampler, inclusion, places

WORDS = [f"w{i}" for i in range(40)]
COUNTS = torch.arange(40) ** 2 + 1


def make_sampler(sampled: int, vocab_size: int = 40, own_dropout: float = 0.0) -> CandidateSampler:
    return CandidateSampler(COUNTS, log_prior(COUNTS), spell(WORDS, 30), vocab_size, sampled, own_dropout)


def log_prior(counts: Tensor) -> Tensor:
    return (counts.double().clamp(min=1) / counts.double().clamp(min=1).sum()).log().float()


def make_denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=40,
        embedding_dim=4,
        width=16,
        layers=1,
        heads=2,
        max_length=12,
        output="tied",
        output_dim=3,
        pieces=30,
        context=4,
    )
    model = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.words.learn_spelling(WORDS, COUNTS)
    return model


def test_inclusion_adds_up() -> None:
    chances = inclusion(COUNTS.double().sqrt(), 15)
    assert abs(float(chances.sum()) - 15.0) < 1e-6
    assert (chances <= 1).all()
    assert (inclusion(COUNTS.double(), 50) == 1).all()


@pytest.mark.slow
def test_chances_are_those_of_being_among_the_candidates() -> None:
    sampler, rng = make_sampler(10), torch.Generator().manual_seed(0)
    seen, chances, draws = torch.zeros(40), torch.zeros(40), 4000
    for _ in range(draws):
        tokens = torch.multinomial(sampler.share, 12, replacement=True, generator=rng)
        candidates = sampler.draw(tokens, rng)
        seen[candidates.ids] += 1
        chances[candidates.ids] = candidates.log_chance.exp()
    torch.testing.assert_close(seen / draws, chances, rtol=0.0, atol=0.04)


def test_the_words_of_a_batch_are_candidates_and_negative_ids_are_none() -> None:
    candidates = make_sampler(5).draw(torch.tensor([[3, 3, NO_ROW], [7, 0, 39]]), torch.Generator().manual_seed(1))
    assert {0, 3, 7, 39} <= set(candidates.ids.tolist())
    assert (candidates.ids.diff() > 0).all()
    local = places(torch.tensor([3, 39, NO_ROW]), candidates.ids)
    assert candidates.ids[local[:2]].tolist() == [3, 39]
    assert local[2] == NO_ROW


def test_rare_words_and_a_share_of_the_others_do_without_their_own_vectors() -> None:
    sampler, rng = make_sampler(40, vocab_size=30, own_dropout=0.5), torch.Generator().manual_seed(0)
    dropped = 0
    for _ in range(50):
        candidates = sampler.draw(torch.tensor([35, 2]), rng)
        assert 35 in candidates.ids
        assert set(candidates.ids.tolist()) - set(range(30)) == {35}  # rare ones only where the batch has them
        assert (candidates.own[candidates.ids >= 30] == NO_ROW).all()
        dropped += int((candidates.own[candidates.ids < 30] == NO_ROW).sum())
    assert 0.4 < dropped / (50 * 30) < 0.6


def vectors(model: Denoiser, candidates: Candidates) -> WordVectors:
    return model.words.vectors(candidates.own, candidates.spelling, candidates.log_prior)


def test_with_all_words_the_loss_is_the_exact_one() -> None:
    model, schedule, rng = make_denoiser(), WarpSchedule(), torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 40, (6, 8), generator=rng)
    noise = draw_noise(6, 8, 4, rng, 0.5, spans=3)
    candidates = make_sampler(40).draw(tokens, rng)
    assert len(candidates.ids) == 40
    sampled, levels = sampled_cross_entropy_loss(
        model, schedule, places(tokens, candidates.ids), noise, vectors(model, candidates), candidates.log_chance
    )
    exact, exact_levels = cross_entropy_loss(model, schedule, tokens, noise)
    torch.testing.assert_close(sampled, exact)
    assert torch.equal(levels, exact_levels)


@pytest.mark.slow
def test_candidates_learn_the_distribution_of_all_words() -> None:
    """The minimum of the sampled loss is p(w), whatever the words' chances. Only the biases learn here."""
    rng = torch.Generator().manual_seed(0)
    wanted = torch.softmax(torch.randn(40, generator=rng), 0)
    counts = (wanted * 10_000).round()
    sampler = CandidateSampler(counts, log_prior(counts), spell(WORDS, 30), 40, 6, 0.0)
    bias = torch.zeros(40, requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=0.05)
    for step in range(3000):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 3000)
        tokens = torch.multinomial(wanted, 64, replacement=True, generator=rng)
        candidates = sampler.draw(tokens, rng)
        logits = (bias[candidates.ids] - candidates.log_chance).expand(64, -1)
        loss = F.cross_entropy(logits, places(tokens, candidates.ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = bias.detach().softmax(0)
    assert float((learned - wanted).abs().sum()) < 0.06
    uncorrected = (bias.detach() - sampler.drawn.clamp(min=1e-6).log()).softmax(0)
    assert float((uncorrected - wanted).abs().sum()) > 0.3


@pytest.mark.slow
def test_the_estimate_for_self_conditioning_gives_no_answer_away() -> None:
    """Averaged over draws it is the mean embedding over all words, which it is not if the answer weighs 1 / chance."""
    rng = torch.Generator().manual_seed(0)
    sampler, logits = make_sampler(12), torch.randn(40, generator=rng)
    embeddings = torch.randn(40, 4, generator=rng)
    exact = logits.softmax(0) @ embeddings
    answer, estimates, leaking = 2, [], []
    for _ in range(4000):
        others = torch.multinomial(sampler.share, 11, replacement=True, generator=rng)
        candidates = sampler.draw(torch.cat([others, torch.tensor([answer])]), rng)
        place = places(torch.tensor(answer), candidates.ids)
        corrected = logits[candidates.ids] - candidates.log_chance
        leaking.append(corrected.softmax(0) @ embeddings[candidates.ids])
        corrected[place] += candidates.log_chance[place]
        estimates.append(corrected.softmax(0) @ embeddings[candidates.ids])
    error, leak = ((torch.stack(e).mean(0) - exact).norm() for e in (estimates, leaking))
    assert error < 0.35 * leak
