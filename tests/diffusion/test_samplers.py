"""Samplers against `diffusers`, and against the exact solution for a Gaussian prior."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctrlgen.diffusion.samplers import Prediction, SeededNoise, ancestral, ddim, dpm_solver, make_sampler
from ctrlgen.diffusion.schedule import CosineSchedule, alpha_sigma
from ctrlgen.diffusion.seeds import seeded
from ctrlgen.settings import SamplerName

SAMPLERS = get_args(SamplerName)
SHAPE = (2, 3, 4)
MEAN, DEVIATION = 0.7, 0.4  # of the Gaussian prior


def toy_x_0(x_t: Tensor, log_snr: Tensor) -> Tensor:
    return torch.tanh(1.5 * x_t) + 0.1 * torch.sin(log_snr)


def toy_predict(x_t: Tensor, log_snr: Tensor, previous: Prediction | None) -> Prediction:
    return Prediction(x_t, log_snr, toy_x_0(x_t, log_snr), x_t)


def gaussian_predict(x_t: Tensor, log_snr: Tensor, previous: Prediction | None) -> Prediction:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION^2)."""
    alpha, sigma = alpha_sigma(log_snr)
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return Prediction(x_t, log_snr, MEAN + gain * (x_t - alpha * MEAN), x_t)


def start(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class CountedNoise:
    """Standard normal noise that knows how often it was asked."""

    def __init__(self, seed: int = 7, shape: tuple[int, ...] = SHAPE):
        self.rng, self.shape, self.calls = torch.Generator().manual_seed(seed), shape, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.randn(self.shape, dtype=torch.float64, generator=self.rng)


def walk(predictions: Iterator[Prediction]) -> Tensor:
    """All x_t of a sampler's walk. (steps, B, n, d)"""
    return torch.stack([prediction.x_t for prediction in predictions])


def levels(count: int, least: float = 9.0) -> Tensor:
    return torch.linspace(-9.0, least, count, dtype=torch.float64)


def exact_flow(x_T: Tensor, log_snrs: Tensor) -> Tensor:
    """Where the probability flow takes x_T: the Gaussian marginals' means and deviations move it."""
    alpha, sigma = alpha_sigma(log_snrs[[0, -1]])
    deviation = (alpha**2 * DEVIATION**2 + sigma**2).sqrt()
    return alpha[1] * MEAN + deviation[1] / deviation[0] * (x_T - alpha[0] * MEAN)


@pytest.mark.parametrize("count", [4, 25])
def test_ancestral_is_ddpm_of_diffusers(count: int) -> None:
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, variance_type="fixed_small")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(count)
    log_snrs = torch.logit(scheduler.alphas_cumprod[scheduler.timesteps])
    x_t, rng, expected = start(), torch.Generator().manual_seed(7), []
    for t, log_snr in zip(scheduler.timesteps, log_snrs, strict=True):
        expected.append(x_t)
        x_t = scheduler.step(toy_x_0(x_t, log_snr), t, x_t, generator=rng).prev_sample
    torch.testing.assert_close(walk(ancestral(toy_predict, start(), log_snrs, CountedNoise())), torch.stack(expected))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_ddim_of_diffusers(eta: float) -> None:
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(20)
    log_snrs = torch.logit(scheduler.alphas_cumprod[scheduler.timesteps])
    x_t, noise, expected = start(), CountedNoise(), []
    for t, log_snr in zip(scheduler.timesteps, log_snrs, strict=True):
        expected.append(x_t)
        drawn = noise() if eta > 0 else None
        x_t = scheduler.step(toy_x_0(x_t, log_snr), t, x_t, eta=eta, variance_noise=drawn).prev_sample
    found = walk(ddim(toy_predict, start(), log_snrs, CountedNoise(), eta))
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_dpm_solver_is_that_of_diffusers(count: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(count)
    log_snrs = -2.0 * scheduler.sigmas.log()  # (count + 1,)
    x_t = start().float()
    expected = [x_t]
    for t, log_snr in zip(scheduler.timesteps, log_snrs[:-1], strict=True):
        x_t = scheduler.step(toy_x_0(x_t, log_snr), t, x_t).prev_sample
        expected.append(x_t)
    found = walk(dpm_solver(toy_predict, start().float(), log_snrs, CountedNoise()))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_ddim_with_eta_one_is_ancestral() -> None:
    found = walk(ddim(toy_predict, start(), levels(15), CountedNoise(), 1.0))
    torch.testing.assert_close(found, walk(ancestral(toy_predict, start(), levels(15), CountedNoise())))


@pytest.mark.parametrize(
    ("name", "eta", "calls"), [("ancestral", 0.0, 9), ("ddim", 0.0, 0), ("ddim", 0.5, 9), ("dpm", 0.0, 0)]
)
def test_noise_is_added_between_predictions_and_never_after_the_last(name: SamplerName, eta: float, calls: int) -> None:
    noise = CountedNoise()
    predictions = list(make_sampler(name, toy_predict, start(), levels(10), noise, eta))
    assert len(predictions) == 10
    assert noise.calls == calls
    torch.testing.assert_close(torch.stack([p.log_snr for p in predictions]), levels(10))
    torch.testing.assert_close(predictions[-1].x0_hat, toy_x_0(predictions[-1].x_t, levels(10)[-1]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_prediction_is_given_the_one_before(name: SamplerName) -> None:
    given: list[Prediction | None] = []

    def predict(x_t: Tensor, log_snr: Tensor, previous: Prediction | None) -> Prediction:
        given.append(previous)
        return toy_predict(x_t, log_snr, previous)

    made = list(make_sampler(name, predict, start(), levels(5), CountedNoise()))
    assert given[0] is None
    assert all(a is b for a, b in zip(given[1:], made[:-1], strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_one_prediction_from_noise(name: SamplerName) -> None:
    (only,) = make_sampler(name, toy_predict, start(), levels(1), CountedNoise())
    torch.testing.assert_close(only.x_t, start())


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_of_no_length_change_nothing(name: SamplerName) -> None:
    """Clamped schedules repeat a noise level, as cosine with 1000 steps does at its noisy end."""
    log_snrs = CosineSchedule().steps(1000)[:4].double()
    assert log_snrs[0] == log_snrs[1]
    found = walk(make_sampler(name, toy_predict, start(), log_snrs, CountedNoise()))
    assert found.isfinite().all()
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("name", "eta"), [("ancestral", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("dpm", 0.0)]
)
def test_samples_of_a_gaussian_prior_have_its_mean_and_variance(name: SamplerName, eta: float) -> None:
    """All is linear here: row k is given the k-th source of noise alone, so the moments are exact sums."""
    count = 400
    sources = torch.cat([torch.eye(count), torch.zeros(count, 1)], 1).double()[..., None, None]  # (count, rows, 1, 1)
    x_T, *draws = sources  # the last row is given no noise
    unit_noise = iter(draws).__next__
    *_, last = make_sampler(name, gaussian_predict, x_T, levels(count), unit_noise, eta)
    rows = last.x0_hat.flatten()
    assert rows[-1].item() == pytest.approx(MEAN, rel=0.02)
    assert (rows - rows[-1]).square().sum().item() == pytest.approx(DEVIATION**2, rel=0.03)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm", 2)])
def test_deterministic_samplers_converge_to_the_exact_flow_at_their_order(name: SamplerName, order: int) -> None:
    def error(count: int) -> float:
        log_snrs = levels(count + 1, least=5.0)
        found = walk(make_sampler(name, gaussian_predict, start(), log_snrs, CountedNoise()))[-1]
        return (found - exact_flow(start(), log_snrs)).abs().max().item()

    coarse, fine = error(100), error(200)
    assert coarse / fine == pytest.approx(2**order, rel=0.2)
    assert fine < 0.01


def test_refine_moves_every_draw_and_only_ancestral_takes_it() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def refine(x_s: Tensor, mean: Tensor, variance: Tensor, log_snr_s: Tensor) -> Tensor:
        seen.append((x_s - mean, variance))
        return x_s + log_snr_s

    plain, noise = walk(ancestral(toy_predict, start(), levels(2), CountedNoise())), CountedNoise()
    moved = walk(make_sampler("ancestral", toy_predict, start(), levels(2), CountedNoise(), refine=refine))
    torch.testing.assert_close(moved[1], plain[1] + levels(2)[1])
    (draw, variance) = seen[0]
    torch.testing.assert_close(draw, variance.sqrt() * noise())
    others: tuple[SamplerName, ...] = ("ddim", "dpm")
    for name in others:
        with pytest.raises(ValueError, match="ancestral"):
            make_sampler(name, toy_predict, start(), levels(2), CountedNoise(), refine=refine)


def test_an_unknown_sampler_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'heun'.*ancestral, ddim, dpm"):
        make_sampler("heun", toy_predict, start(), levels(2), CountedNoise())  # type: ignore[arg-type]


def test_a_row_of_noise_depends_on_its_seed_alone() -> None:
    together, alone = SeededNoise([5, 11, 8], [6, 4, 5], 4), SeededNoise([11], [4], 4)
    for _ in range(3):
        batch = together()
        assert batch.shape == (3, 6, 4)
        assert torch.equal(batch[1, :4], alone()[0])
        assert torch.equal(batch[1, 4:], torch.zeros(2, 4))
        assert not torch.equal(batch[0], batch[1])


@given(st.integers(-(2**62), 2**62), st.integers(0, 61))
def test_every_bit_of_a_seed_counts(seed: int, bit: int) -> None:
    assert seeded(seed).initial_seed() == seeded(seed).initial_seed()
    assert seeded(seed).initial_seed() != seeded(seed ^ (1 << bit)).initial_seed()


@given(st.integers(0, 2**32 - 1))
def test_a_seed_of_32_bits_is_torchs(seed: int) -> None:
    assert torch.equal(seeded(seed).get_state(), torch.Generator().manual_seed(seed).get_state())


def test_seeded_noise_is_standard_normal_and_never_repeats() -> None:
    noise = SeededNoise([1], [500], 16)
    first, second = noise(), noise()
    assert first.mean().item() == pytest.approx(0.0, abs=0.05)
    assert first.std().item() == pytest.approx(1.0, abs=0.05)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.05
