"""Noise schedules: t in [0, 1] -> log-SNR, with t = 0 the clean end and t = 1 pure noise.

Notation of Diffusion-LM (Li et al. 2022) and Kingma et al. 2021:

    x_t = alpha_t x_0 + sigma_t eps,    alpha_t^2 + sigma_t^2 = 1,    lambda_t = log(alpha_t^2 / sigma_t^2)

Everything downstream (diffusion, samplers, guidance) reads lambda only, so schedules can be exchanged.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor, nn

from ctrlgen.errors import UsageError

MIN_ALPHA_BAR = 1e-5  # keeps log-SNR finite at t = 1
MAX_BETA = 0.999  # Nichol and Dhariwal 2021, section 3.2
MOST_LEVELS = 100_000
DISCRETE = "discrete-"


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scales of a variance-preserving process, elementwise in `log_snr`."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class Schedule(nn.Module):
    """A strictly decreasing map t -> log-SNR. Subclasses implement `log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log-SNR at `t`, any shape, values in [0, 1]."""
        raise TypeError(f"{type(self).__name__} does not define log_snr")

    def steps(self, count: int, start: float = 1.0) -> Tensor:
        """Log-SNR of `count` sampling steps from t = `start`, uniform in t and ending above t = 0. (count,)"""
        t = torch.linspace(start, 0.0, count + 1)[:count]
        return self.log_snr(t)


class AlphaBarSchedule(Schedule):
    """A schedule given as alpha_bar(t) = alpha_t^2."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define alpha_bar")

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.logit(self.alpha_bar(t).clamp(MIN_ALPHA_BAR, 1.0 - MIN_ALPHA_BAR))


class LinearSchedule(AlphaBarSchedule):
    """Ho et al. 2020: beta rises linearly from 1e-4 to 0.02 over 1000 steps, here its continuous limit."""

    def alpha_bar(self, t: Tensor) -> Tensor:
        return torch.exp(-(0.1 * t + 0.5 * (20.0 - 0.1) * t**2))


class CosineSchedule(AlphaBarSchedule):
    """Nichol and Dhariwal 2021, eq. 17: alpha_bar(t) = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s))."""

    offset = 0.008

    def alpha_bar(self, t: Tensor) -> Tensor:
        def f(t: Tensor | float) -> Tensor:
            return torch.cos(torch.as_tensor((t + self.offset) / (1.0 + self.offset)) * math.pi / 2) ** 2

        return f(t) / f(0.0)


class SqrtSchedule(AlphaBarSchedule):
    """Li et al. 2022, appendix A: alpha_bar(t) = 1 - sqrt(t + s), s = 1e-4."""

    offset = 1e-4

    def alpha_bar(self, t: Tensor) -> Tensor:
        return 1.0 - torch.sqrt(t + self.offset)


SIMPLE: dict[str, type[AlphaBarSchedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule, "sqrt": SqrtSchedule}


class WarpSchedule(Schedule):
    """Time warping (Dieleman et al. 2022, CDCD, section 3.3), learned from the running cross-entropy.

    Noise u = log(sigma/alpha) is cut into equal bins. `observe` keeps each bin's mean cross-entropy;
    the density of t over u follows its slope, so training and sampling spend their time where noise
    decides words. A uniform share keeps every bin alive.
    """

    bins = 48
    uniform_share = 0.15
    memory = 0.03  # weight of one new batch in a bin's running mean

    cost: Tensor
    count: Tensor

    def __init__(self, min_noise: float = 0.25, max_noise: float = 30.0):
        super().__init__()
        if not 0 < min_noise < max_noise:
            raise ValueError(f"noise range must satisfy 0 < min < max, got {min_noise} and {max_noise}")
        self.low, self.high = math.log(min_noise), math.log(max_noise)
        self.register_buffer("cost", torch.zeros(self.bins))
        self.register_buffer("count", torch.zeros(self.bins))

    def edges(self) -> Tensor:
        """The cumulative density of t at the bins' borders, from 0 to 1. (bins + 1,)"""
        uniform = torch.full_like(self.cost, 1.0 / self.bins)
        rising = torch.cummax(self.cost, 0).values
        slope = torch.cat([rising[1:2] - rising[:1], rising[1:] - rising[:-1]])
        if slope.sum() > 0 and self.count.min() >= 5:
            density = (1.0 - self.uniform_share) * slope / slope.sum() + self.uniform_share * uniform
        else:
            density = uniform
        cumulative = torch.cat([density.new_zeros(1), density.cumsum(0)])
        return cumulative / cumulative[-1]

    def log_snr(self, t: Tensor) -> Tensor:
        edges = self.edges().to(t)
        bin = (torch.searchsorted(edges, t.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        within = (t - edges[bin]) / (edges[bin + 1] - edges[bin])
        log_noise = self.low + (self.high - self.low) * (bin + within) / self.bins
        return -2.0 * log_noise

    def bin_sums(self, log_snr: Tensor, cross_entropy: Tensor) -> Tensor:
        """Sum of `cross_entropy` (B,) and number of samples falling in each bin, addable over processes. (2, bins)"""
        log_noise = -log_snr / 2.0
        bin = ((log_noise - self.low) / (self.high - self.low) * self.bins).long().clamp(0, self.bins - 1)
        sums = self.cost.new_zeros(2, self.bins)
        sums[0].index_add_(0, bin, cross_entropy.to(sums))
        sums[1].index_add_(0, bin, torch.ones_like(cross_entropy).to(sums))
        return sums

    def observe(self, sums: Tensor) -> None:
        """Move the running means towards one batch's `bin_sums`."""
        seen = sums[1] > 0
        mean = sums[0] / sums[1].clamp(min=1)
        rate = torch.where(self.count < 20, 1.0 / (self.count + 1.0), torch.full_like(self.count, self.memory))
        self.cost += torch.where(seen, rate * (mean - self.cost), torch.zeros_like(self.cost))
        self.count += seen


class DiscreteSchedule(Schedule):
    """T noise levels, as Diffusion-LM and Ho et al. 2020 have them: alpha_bar_i = prod_{j <= i} (1 - beta_j).

    Levels are counted from 0, the cleanest. Level i stands at t = (i + 1) / T; between two the log-SNR is interpolated.
    """

    def __init__(self, name: str, count: int):
        super().__init__()
        if not 2 <= count <= MOST_LEVELS:
            raise ValueError(f"a discrete schedule has 2 to {MOST_LEVELS} levels, got {count}")
        self.count = count
        alpha_bar = (1.0 - discrete_betas(name, count)).cumprod(0)
        self.log_snrs = torch.logit(alpha_bar)  # (T,), falling, float64

    def log_snr(self, t: Tensor) -> Tensor:
        place = (t * self.count - 1.0).clamp(0, self.count - 1)
        below = place.long().clamp(max=self.count - 2)
        log_snrs = self.log_snrs.to(t)
        return torch.lerp(log_snrs[below], log_snrs[below + 1], place - below)

    def level(self, log_snr: Tensor) -> Tensor:
        """The inverse: the level, between two a fraction. Exact at the levels, in any precision."""
        log_snrs = self.log_snrs.to(log_snr)
        below = (torch.searchsorted(-log_snrs, -log_snr.contiguous(), right=True) - 1).clamp(0, self.count - 2)
        step = log_snrs[below] - log_snrs[below + 1]
        return below + ((log_snrs[below] - log_snr) / step).clamp(0.0, 1.0)

    def spaced(self, count: int) -> list[int]:
        """`count` levels evenly spaced from the first to the last, rounded as the original rounds."""
        if count > self.count:
            raise UsageError(f"this model has {self.count} noise levels: steps can be no more, got {count}")
        stride = (self.count - 1) / (count - 1) if count > 1 else 1.0
        return [round(place) for place in accumulate([0.0] + [stride] * (count - 1))][:count]

    def steps(self, count: int, start: float = 1.0) -> Tensor:
        """The log-SNR of `spaced` levels, noisiest first, those up to t = `start`. In float64."""
        levels = [level for level in self.spaced(count) if level + 1 <= start * self.count]
        return self.log_snrs[torch.tensor(levels[::-1], dtype=torch.long)]


def discrete_betas(name: str, count: int) -> Tensor:
    """The original's beta_i, i = 0 to T - 1: from alpha_bar(t) at t = i/T, or in equal steps for `linear`. Float64."""
    if name == "linear":
        return torch.linspace(0.1, 20.0, count, dtype=torch.float64) / count
    alpha_bar = SIMPLE[name]().alpha_bar(torch.arange(count + 1, dtype=torch.float64) / count)
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA)


def make_schedule(name: str, min_noise: float = 0.25, max_noise: float = 30.0, levels: int = 2000) -> Schedule:
    """The schedule called `name`: warp, linear, cosine, sqrt, or the last three with `discrete-` in front.

    The noise range applies to warp, the number of levels to discrete ones.
    """
    if name == "warp":
        return WarpSchedule(min_noise, max_noise)
    simple = name.removeprefix(DISCRETE)
    if simple not in SIMPLE:
        raise ValueError(f"unknown schedule {name!r}: use warp, {', '.join(SIMPLE)}")
    return SIMPLE[simple]() if simple == name else DiscreteSchedule(simple, levels)
