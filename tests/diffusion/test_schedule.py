"""Noise schedules against closed forms and against `diffusers`."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ctrlgen.diffusion.schedule import (
    MIN_ALPHA_BAR,
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    Schedule,
    SqrtSchedule,
    WarpSchedule,
    alpha_sigma,
    discrete_betas,
    make_schedule,
)
from ctrlgen.errors import UsageError

NAMES = ("linear", "cosine", "sqrt", "warp")


def grid(count: int) -> torch.Tensor:
    return torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64)


def learned_warp() -> WarpSchedule:
    """A warp that has seen every bin, with a cost that rises in the middle of the noise range only."""
    warp = WarpSchedule()
    centre = (torch.arange(warp.bins) + 0.5) / warp.bins
    for _ in range(5):
        warp.observe(torch.stack([4.0 * torch.sigmoid((centre - 0.5) * 20), torch.ones(warp.bins)]))
    return warp


ALL = [*(make_schedule(name) for name in NAMES), learned_warp()]
IDS = [*NAMES, "learned warp"]


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_log_snr_falls_at_every_step(schedule: Schedule) -> None:
    assert (schedule.log_snr(grid(200)).diff() < 0).all()
    assert (schedule.log_snr(grid(5000)).diff() <= 0).all()  # flat only where alpha_bar is clamped, at the very ends


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_time_keeps_its_shape(schedule: Schedule) -> None:
    t = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    log_snr = schedule.log_snr(t)
    assert log_snr.shape == t.shape
    assert schedule.log_snr(t[1, 2]).item() == pytest.approx(log_snr[1, 2].item())


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_variance_is_preserved(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(grid(100))
    alpha, sigma = alpha_sigma(log_snr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(torch.log(alpha**2 / sigma**2), log_snr)


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_the_end_is_pure_noise_and_the_start_is_not(schedule: Schedule) -> None:
    alpha, sigma = alpha_sigma(schedule.log_snr(torch.tensor([0.0, 1.0])))
    assert alpha[1] < 0.04
    assert sigma[1] > 0.999
    assert alpha[0] > 0.96


@pytest.mark.parametrize(("name", "count"), [("linear", 100), ("linear", 1000), ("cosine", 20), ("cosine", 100)])
def test_betas_lie_between_zero_and_one_and_rise(name: str, count: int) -> None:
    betas = discrete_betas(name, count)
    assert betas.shape == (count,)
    assert (betas > 0).all()
    assert (betas < 1).all()
    assert (betas.diff() > 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=IDS)
def test_steps_start_at_pure_noise_and_stop_above_zero(schedule: Schedule) -> None:
    steps = schedule.steps(10)
    t = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    torch.testing.assert_close(steps, schedule.log_snr(t), rtol=1e-4, atol=1e-4)
    assert schedule.steps(1).item() == pytest.approx(schedule.log_snr(torch.ones(())).item())


def test_cosine_is_that_of_diffusers() -> None:
    expected = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    ours = CosineSchedule().alpha_bar(grid(1000)[1:])
    torch.testing.assert_close(ours[:-1], expected[:-1], rtol=1e-3, atol=1e-7)  # theirs is a product in float32
    betas = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close(discrete_betas("cosine", 100), betas, rtol=1e-4, atol=0.0)


def test_linear_is_the_limit_of_diffusers() -> None:
    expected = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod.double()
    ours = LinearSchedule().alpha_bar(grid(1000)[1:])
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(ours.log(), expected.log(), rtol=0.0, atol=0.08)


def test_linear_betas_are_those_of_ho_et_al() -> None:
    expected = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").betas.double()
    torch.testing.assert_close(discrete_betas("linear", 1000), expected)


def test_sqrt_is_the_papers_closed_form() -> None:
    t = grid(2000)[:-1]
    alpha, sigma = alpha_sigma(SqrtSchedule().log_snr(t))
    torch.testing.assert_close(alpha**2, 1.0 - torch.sqrt(t + 1e-4))
    assert sigma[0].item() == pytest.approx(0.1)  # (s)^(1/4): the paper starts at a standard deviation of 0.1
    assert torch.sigmoid(SqrtSchedule().log_snr(torch.ones((), dtype=torch.float64))).item() == pytest.approx(
        MIN_ALPHA_BAR
    )


def test_warp_is_uniform_in_log_noise_before_observation() -> None:
    log_noise = -WarpSchedule(0.25, 30.0).log_snr(grid(96)) / 2
    expected = math.log(0.25) + grid(96) * (math.log(30.0) - math.log(0.25))
    torch.testing.assert_close(log_noise, expected, rtol=0.0, atol=1e-5)


def test_warp_waits_until_every_bin_was_seen_five_times() -> None:
    warp = WarpSchedule()
    rising = torch.stack([torch.arange(48.0), torch.ones(48)])
    for _ in range(4):
        warp.observe(rising.square())
    torch.testing.assert_close(warp.edges(), torch.linspace(0.0, 1.0, 49))
    warp.observe(rising.square())
    assert (warp.edges() - torch.linspace(0.0, 1.0, 49)).abs().max() > 0.1


def test_warp_density_is_the_slope_of_the_cost_and_a_uniform_share() -> None:
    warp = WarpSchedule()
    cost = torch.zeros(48)
    cost[20:30] = torch.arange(1.0, 11.0)  # rises by one in each of ten bins
    cost[30:] = 10.0
    for _ in range(5):
        warp.observe(torch.stack([cost, torch.ones(48)]))
    expected = torch.full((48,), 0.15 / 48)
    expected[20:30] += 0.85 / 10
    torch.testing.assert_close(warp.edges().diff(), expected)


def test_warp_ignores_falls_of_the_cost() -> None:
    warp = WarpSchedule()
    cost = torch.arange(48.0)
    cost[10] = 3.0
    for _ in range(5):
        warp.observe(torch.stack([cost, torch.ones(48)]))
    density = warp.edges().diff()
    assert (density > 0).all()
    assert density[10].item() == pytest.approx(0.15 / 48, rel=1e-3)
    assert density[11].item() == pytest.approx(2 * (density[12].item() - 0.15 / 48) + 0.15 / 48, rel=1e-3)


def test_warp_places_uniform_times_by_its_density() -> None:
    warp = learned_warp()
    log_snr = warp.log_snr((grid(100_000)[:-1] + 0.5e-5).float())
    share = warp.bin_sums(log_snr, torch.zeros(len(log_snr)))[1] / len(log_snr)
    torch.testing.assert_close(share, warp.edges().diff(), rtol=0.0, atol=1e-4)


def test_bin_sums_add_over_shards(rng: torch.Generator) -> None:
    warp = WarpSchedule()
    log_snr, cost = warp.log_snr(torch.rand(64, generator=rng)), torch.rand(64, generator=rng)
    whole = warp.bin_sums(log_snr, cost)
    parts = warp.bin_sums(log_snr[:20], cost[:20]) + warp.bin_sums(log_snr[20:], cost[20:])
    torch.testing.assert_close(whole, parts)
    assert whole[0].sum().item() == pytest.approx(cost.sum().item(), rel=1e-5)
    assert whole[1].sum().item() == 64


def test_bin_sums_keep_noise_outside_the_range_in_the_end_bins() -> None:
    sums = WarpSchedule().bin_sums(torch.tensor([100.0, -100.0]), torch.tensor([1.0, 2.0]))
    assert sums[0, 0] == 1.0
    assert sums[0, -1] == 2.0
    assert sums[1].sum() == 2


def test_observe_is_a_mean_at_first_and_leaves_unseen_bins_alone() -> None:
    warp = WarpSchedule()
    for cost in (1.0, 2.0, 6.0):
        sums = torch.zeros(2, 48)
        sums[:, 7] = torch.tensor([2 * cost, 2.0])  # two samples of that cost
        warp.observe(sums)
    assert warp.cost[7].item() == pytest.approx(3.0)
    assert warp.count.sum() == 3
    assert warp.cost.count_nonzero() == 1


def test_warp_travels_with_its_state() -> None:
    warp, fresh = learned_warp(), WarpSchedule()
    fresh.load_state_dict(warp.state_dict())
    t = torch.rand(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fresh.log_snr(t), warp.log_snr(t), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_warp_refuses_an_impossible_noise_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="noise range"):
        WarpSchedule(low, high)


def test_an_unknown_schedule_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*warp, linear, cosine, sqrt"):
        make_schedule("cosin")


def test_steps_may_start_later() -> None:
    schedule = CosineSchedule()
    torch.testing.assert_close(schedule.steps(5, start=0.5), schedule.log_snr(torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])))
    assert schedule.steps(0, start=0.5).shape == (0,)


@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt"])
def test_discrete_levels_are_found_from_their_log_snr(name: str) -> None:
    schedule = DiscreteSchedule(name, 2000)
    levels = torch.arange(2000)
    for log_snrs in (schedule.log_snrs, schedule.log_snrs.float()):
        assert torch.equal(schedule.level(log_snrs), levels.to(log_snrs))
    between = (schedule.log_snrs[:-1] + schedule.log_snrs[1:]) / 2
    torch.testing.assert_close(schedule.level(between), levels[:-1] + 0.5, check_dtype=False)
    beyond = torch.tensor([1e3, -1e3])
    assert schedule.level(beyond).tolist() == [0, 1999]


def test_discrete_levels_stand_at_their_times() -> None:
    schedule = DiscreteSchedule("sqrt", 100)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(schedule.log_snr(t), schedule.log_snrs)
    assert schedule.log_snr(torch.zeros(1)).item() == pytest.approx(schedule.log_snrs[0].item())


def test_discrete_steps_are_spaced_from_the_last_level_to_the_first() -> None:
    schedule = DiscreteSchedule("sqrt", 100)
    assert schedule.spaced(4) == [0, 33, 66, 99]
    assert (schedule.spaced(1), schedule.spaced(0)) == ([0], [])
    assert schedule.spaced(3) == [0, 50, 99]  # 49.5 is rounded to the even number
    assert torch.equal(schedule.steps(100), schedule.log_snrs.flip(0))
    assert torch.equal(schedule.steps(4, start=0.5), schedule.log_snrs[[33, 0]])
    with pytest.raises(UsageError, match="100 noise levels: steps can be no more, got 101"):
        schedule.steps(101)


def test_discrete_schedules_are_made_by_name() -> None:
    made = make_schedule("discrete-cosine", levels=50)
    assert isinstance(made, DiscreteSchedule)
    assert torch.equal(made.log_snrs, DiscreteSchedule("cosine", 50).log_snrs)
    with pytest.raises(ValueError, match="unknown schedule 'discrete-warp'"):
        make_schedule("discrete-warp")
    with pytest.raises(ValueError, match="2 to 100000 levels, got 1"):
        make_schedule("discrete-sqrt", levels=1)
