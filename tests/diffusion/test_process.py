"""The forward process, its posterior, the losses and the likelihood bound, against definitions."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.diffusion.losses import bound_by_word, cross_entropy_loss, denoise, simple_loss
from ctrlgen.diffusion.process import Noise, draw_noise, gaussian_kl, posterior, q_sample
from ctrlgen.diffusion.samplers import SeededNoise
from ctrlgen.diffusion.schedule import Schedule, WarpSchedule, alpha_sigma, make_schedule

MakeModel = Callable[..., Denoiser]


@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt", "warp"])
def test_q_sample_is_one_step_noising_iterated(name: str) -> None:
    schedule, steps = make_schedule(name), 50
    log_snr = schedule.log_snr(torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64))
    x_0, zero, one = torch.tensor([[[3.0]]]).double(), torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    mean, variance = q_sample(x_0, zero, log_snr[0]), q_sample(zero, one, log_snr[0]) ** 2
    alpha_bar = torch.sigmoid(log_snr)
    for beta, level in zip(1 - alpha_bar[1:] / alpha_bar[:-1], log_snr[1:], strict=True):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta  # x_t = sqrt(1-beta) x_{t-1} + ...
        torch.testing.assert_close(q_sample(x_0, zero, level), mean)
        torch.testing.assert_close(q_sample(zero, one, level) ** 2, variance)


def test_q_sample_takes_a_noise_level_a_row(rng: torch.Generator) -> None:
    x_0, eps = torch.randn(3, 2, 4, generator=rng), torch.randn(3, 2, 4, generator=rng)
    log_snr = torch.tensor([-3.0, 0.0, 5.0])
    rows = [q_sample(x_0[i], eps[i], log_snr[i]) for i in range(3)]
    torch.testing.assert_close(q_sample(x_0, eps, log_snr), torch.stack(rows))


@pytest.mark.parametrize(("log_snr_s", "log_snr_t"), [(2.0, -1.0), (0.5, 0.3), (6.0, -6.0), (-3.0, -5.0)])
def test_posterior_is_bayes_rule_on_a_grid(log_snr_s: float, log_snr_t: float) -> None:
    s, t = torch.tensor(log_snr_s).double(), torch.tensor(log_snr_t).double()
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    x_0, x_t = torch.tensor(0.8).double(), torch.tensor(-0.6).double()
    x_s = torch.linspace(-8.0, 8.0, 40_001, dtype=torch.float64)
    ratio = alpha_t / alpha_s
    step_variance = sigma_t**2 - ratio**2 * sigma_s**2
    prior = torch.distributions.Normal(alpha_s * x_0, sigma_s).log_prob(x_s)
    likelihood = torch.distributions.Normal(ratio * x_s, step_variance.sqrt()).log_prob(x_t)
    weights = (prior + likelihood).softmax(0)
    expected_mean = (weights * x_s).sum()
    expected_variance = (weights * (x_s - expected_mean) ** 2).sum()
    mean, variance = posterior(x_t, x_0, s, t)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance, expected_variance)


def test_posterior_of_equal_times_stays_and_of_clean_time_is_x_0() -> None:
    x_t, x_0 = torch.tensor([[[1.5]]]).double(), torch.tensor([[[-0.5]]]).double()
    level, clean = torch.tensor(-1.0).double(), torch.tensor(40.0).double()
    mean, variance = posterior(x_t, x_0, level, level)
    assert torch.equal(mean, x_t)
    assert variance == 0
    mean, variance = posterior(x_t, x_0, clean, level)
    torch.testing.assert_close(mean, x_0)
    assert variance < 1e-16


def test_posterior_takes_noise_levels_a_row(rng: torch.Generator) -> None:
    x_t, x_0 = torch.randn(2, 3, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
    s, t = torch.tensor([2.0, 5.0]), torch.tensor([-1.0, 4.0])
    mean, variance = posterior(x_t, x_0, s, t)
    for row in range(2):
        row_mean, row_variance = posterior(x_t[row], x_0[row], s[row], t[row])
        torch.testing.assert_close(mean[row], row_mean)
        torch.testing.assert_close(variance[row], row_variance)


def test_gaussian_kl_is_the_mean_log_ratio(rng: torch.Generator) -> None:
    first = torch.distributions.Normal(torch.tensor(0.3).double(), torch.tensor(0.7).double())
    second = torch.distributions.Normal(torch.tensor(-0.4).double(), torch.tensor(1.6).double())
    x = 0.3 + 0.7 * torch.randn(200_000, dtype=torch.float64, generator=rng)
    log_ratio = first.log_prob(x) - second.log_prob(x)
    kl = gaussian_kl(first.mean, first.variance, second.mean, second.variance)
    assert kl.item() == pytest.approx(log_ratio.mean().item(), abs=4 * log_ratio.std().item() / math.sqrt(len(x)))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(first, second))
    assert gaussian_kl(first.mean, first.variance, first.mean, first.variance) == 0


def test_noise_of_one_seed_is_one_noise() -> None:
    def draw(seed: int) -> Noise:
        return draw_noise(8, 5, 4, torch.Generator().manual_seed(seed), span_mask_rate=0.5)

    assert all(torch.equal(a, b) for a, b in zip(draw(3).tensors(), draw(3).tensors(), strict=True))
    assert not torch.equal(draw(3).eps, draw(4).eps)
    assert not torch.equal(draw(3).t, draw(4).t)


def test_times_are_stratified_and_shuffled(rng: torch.Generator) -> None:
    t = draw_noise(64, 1, 1, rng).t
    assert (t >= 0).all()
    assert (t < 1).all()
    assert torch.equal((t * 64).floor().long().sort().values, torch.arange(64))
    assert not torch.equal(t, t.sort().values)


def test_discrete_times_are_whole_steps(rng: torch.Generator) -> None:
    noise = draw_noise(4000, 1, 1, rng, steps=5)
    assert (noise.t * 5).round().unique().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    torch.testing.assert_close(noise.t * 5, (noise.t * 5).round())
    assert not torch.equal(noise.eps, noise.eps_0)


def test_noise_rows_are_slices(rng: torch.Generator) -> None:
    noise = draw_noise(6, 5, 4, rng, span_mask_rate=0.5, steps=10)
    part = noise.rows(slice(2, 5))
    for name in ("t", "eps", "eps_0", "clean"):
        assert torch.equal(getattr(part, name), getattr(noise, name)[2:5])
    assert part.self_condition is noise.self_condition


def test_clean_positions_surround_one_span_that_is_not_empty(rng: torch.Generator) -> None:
    clean = draw_noise(2000, 7, 1, rng, span_mask_rate=0.5).clean
    noisy = (~clean).int()
    assert (noisy.sum(1) > 0).all()
    starts = F.pad(noisy, (1, 0)).diff(dim=1).clamp(min=0).sum(1)
    assert (starts == 1).all()
    assert clean.any(0).all()  # any position can be given
    spans = clean.any(1).float().mean().item()
    expected = 0.5 * (1 - 8 / 64 - 2 * 1 / 64)  # a span of no word or of all words gives nothing clean
    assert spans == pytest.approx(expected, abs=0.05)


def test_nothing_is_clean_without_span_masking(rng: torch.Generator) -> None:
    assert not draw_noise(100, 7, 1, rng).clean.any()


def test_half_of_the_batches_condition_on_themselves() -> None:
    rng = torch.Generator().manual_seed(0)
    share = sum(bool(draw_noise(1, 1, 1, rng).self_condition) for _ in range(400)) / 400
    assert share == pytest.approx(0.5, abs=0.1)


def test_self_conditioning_feeds_the_first_estimate_back(make_model: MakeModel, rng: torch.Generator) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = torch.randn(2, 5, 4, generator=rng), torch.tensor([-1.0, 1.0])
    first = model(x_t, log_snr)
    torch.testing.assert_close(denoise(model, x_t, log_snr, None, False).logits, first.logits)
    second = model(x_t, log_snr, first.x0_hat)
    torch.testing.assert_close(denoise(model, x_t, log_snr, None, True).logits, second.logits)
    assert not torch.allclose(first.logits, second.logits)


@pytest.mark.parametrize("self_condition", [False, True])
def test_cross_entropy_counts_the_noisy_positions_alone(
    make_model: MakeModel, rng: torch.Generator, self_condition: bool
) -> None:
    model, schedule = make_model(perturbed=True), WarpSchedule()
    tokens = torch.randint(0, 11, (3, 6), generator=rng)
    clean = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
    noise = replace(draw_noise(3, 6, 4, rng), clean=clean, self_condition=torch.tensor(self_condition))
    loss, log_snr = cross_entropy_loss(model, schedule, tokens, noise)
    torch.testing.assert_close(log_snr, schedule.log_snr(noise.t))
    for row in range(3):
        x_0, given = model.embed(tokens[row]), clean[row]
        alpha, sigma = alpha_sigma(log_snr[row])
        x_t = torch.where(given[:, None], x_0, alpha * x_0 + sigma * noise.eps[row])[None]
        x0_hat = model(x_t, log_snr[row, None], clean=given[None]).x0_hat if self_condition else None
        log_probs = model(x_t, log_snr[row, None], x0_hat, given[None]).logits[0].log_softmax(-1)
        expected = -log_probs[torch.arange(6), tokens[row]][~given].mean()
        torch.testing.assert_close(loss[row], expected)


def test_noise_at_clean_positions_changes_nothing(make_model: MakeModel, rng: torch.Generator) -> None:
    model, schedule = make_model(perturbed=True), WarpSchedule()
    tokens = torch.randint(0, 11, (1, 6), generator=rng)
    clean = torch.tensor([[True, True, False, False, True, True]])
    noise = replace(draw_noise(1, 6, 4, rng), clean=clean)
    elsewhere = replace(noise, eps=noise.eps + 9.0 * clean[..., None])
    first, _ = cross_entropy_loss(model, schedule, tokens, noise)
    second, _ = cross_entropy_loss(model, schedule, tokens, elsewhere)
    assert torch.equal(first, second)


def test_self_conditioning_keeps_gradients_out_of_the_first_estimate(
    make_model: MakeModel, rng: torch.Generator
) -> None:
    model = make_model(perturbed=True)
    x_t, log_snr = torch.randn(1, 5, 4, generator=rng), torch.zeros(1)
    estimate = model(x_t, log_snr).x0_hat.detach()
    expected = torch.autograd.grad(model(x_t, log_snr, estimate).logits.sum(), model.input.weight)
    found = torch.autograd.grad(denoise(model, x_t, log_snr, None, True).logits.sum(), model.input.weight)
    torch.testing.assert_close(found, expected)


class NoisyEnds(Schedule):
    """Neither end is pure, so that every term of the loss counts: alpha_bar falls from 0.9 to 0.3."""

    def log_snr(self, t: torch.Tensor) -> torch.Tensor:
        return torch.logit(0.9 - 0.6 * t)


def test_simple_loss_is_the_sum_of_its_three_terms(make_model: MakeModel, rng: torch.Generator) -> None:
    model, schedule, steps = make_model(objective="mse"), NoisyEnds(), 2000
    guess = torch.tensor([0.5, -1.0, 0.0, 2.0])
    with torch.no_grad():
        model.output.bias.copy_(guess)  # its weight is zero: the network answers `guess` everywhere
    tokens = torch.randint(0, 11, (2, 6), generator=rng)
    noise = replace(draw_noise(2, 6, 4, rng, steps=steps), t=torch.tensor([1 / steps, 700 / steps]))
    loss, log_snr = simple_loss(model, schedule, tokens, noise, steps)
    torch.testing.assert_close(log_snr, schedule.log_snr(noise.t))

    words = model.word_embedding[tokens]
    x_0 = words + math.sqrt(0.1) * noise.eps_0
    target = torch.stack([words[0], x_0[1]])  # at the first step the words themselves
    x_0_term = ((target - guess) ** 2).mean((1, 2))
    x_T_term = 0.3 * (x_0**2).mean((1, 2))
    nearness = -0.5 * torch.cdist(x_0, model.word_embedding.expand(2, -1, -1)) ** 2  # (2, 6, V)
    rounding_term = -nearness.log_softmax(-1).gather(-1, tokens[..., None]).mean((1, 2))
    torch.testing.assert_close(loss, x_0_term + x_T_term + rounding_term, rtol=1e-4, atol=1e-5)


def shared_noise(tokens: torch.Tensor, dim: int = 4) -> SeededNoise:
    """The same noise for every row."""
    return SeededNoise([1] * len(tokens), [tokens.shape[1]] * len(tokens), dim)


@pytest.mark.slow
@pytest.mark.parametrize("least_noise", [0.1, 1.0])  # with 1.0 rounding pays a good part
def test_bound_is_the_log_probability_where_the_denoiser_is_exact(make_model: MakeModel, least_noise: float) -> None:
    """Words drawn alone from a known p: the skip plus log p is the exact posterior, so the bound is tight."""
    model = make_model(max_length=200, layers=1)
    log_p = torch.linspace(-2.0, 2.0, 11).log_softmax(0)
    with torch.no_grad():
        model.output.bias.copy_(log_p)
        schedule = WarpSchedule(least_noise, 100.0)
        tokens = torch.tensor([1, 5, 9])[:, None].expand(3, 200)
        bound = -bound_by_word(model, tokens, schedule, shared_noise(tokens), levels=120).sum(-1) / 200
    torch.testing.assert_close(bound, log_p[tokens[:, 0]], rtol=0.0, atol=0.25)


def test_bound_pays_for_what_the_last_noise_leaves(make_model: MakeModel) -> None:
    """A vocabulary of one word costs nothing but the distance of q(x_T | x_0) from N(0, I)."""
    model, schedule = make_model(vocab_size=1), WarpSchedule(0.25, 1.0)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    bound = -bound_by_word(model, tokens, schedule, shared_noise(tokens)).sum(-1)
    assert bound.item() == pytest.approx(3 * 4 * 0.5 * math.log(0.5))  # alpha^2 = sigma^2 = 1/2 and |x_0|^2 = d = 4


@pytest.mark.slow
def test_bound_stays_below_the_log_probability_for_a_wrong_denoiser(make_model: MakeModel) -> None:
    """For uniform words no model's bound may exceed -log V in the mean over all of them."""
    exact, wrong = make_model(max_length=100, layers=1), make_model(max_length=100, layers=1)
    tokens = torch.arange(11)[:, None].expand(11, 100)
    with torch.no_grad():
        wrong.output.bias.copy_(torch.linspace(-3.0, 3.0, 11))
        schedule = WarpSchedule(0.1, 100.0)
        best = -bound_by_word(exact, tokens, schedule, shared_noise(tokens), levels=60).sum(-1).mean() / 100
        worse = -bound_by_word(wrong, tokens, schedule, shared_noise(tokens), levels=60).sum(-1).mean() / 100
    assert best.item() == pytest.approx(-math.log(11), abs=0.15)
    assert worse < best - 0.3


def test_bound_shares_noise_between_rows(make_model: MakeModel) -> None:
    model = make_model(perturbed=True)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]])

    def bound(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return -bound_by_word(model, rows, WarpSchedule(), shared_noise(rows)).sum(-1)

    together = bound(tokens)
    assert together.shape == (3,)
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(bound(tokens[1:2])[0], together[1])


def test_several_spans_are_masked(rng: torch.Generator) -> None:
    clean = draw_noise(4000, 20, 1, rng, 1.0, spans=9).clean
    asked = (~clean).int()
    begun = (asked.diff(dim=1, prepend=torch.zeros(4000, 1, dtype=torch.int)) == 1).sum(1)  # spans of each text
    assert begun.min() >= 1  # something is always asked
    assert begun.max() > 5
    assert len(begun[(asked.sum(1) < 20)].unique()) > 5
    assert 0.3 < asked.float().mean() < 0.6


def test_one_span_is_drawn_as_ever(rng: torch.Generator) -> None:
    clean = draw_noise(500, 20, 1, rng, 1.0).clean
    begun = ((~clean).int().diff(dim=1, prepend=torch.zeros(500, 1, dtype=torch.int)) == 1).sum(1)
    assert (begun == 1).all()
