"""How much of a crawl is noise, and how likely each sample is, from two histograms of angles that stream.

The own angles of a crawl mix clean samples with noise. What noise looks like is seen, up to one thing, in the null angles: samples against
a random OTHER identity. That one thing is attraction: the head was trained on its noise and has pulled it towards the center, by 10 degrees
and more, so the ratio of upper tails (Storey 2002) finds a fifth of the noise that is there. So the null is allowed to move left, by a
uniform or an exponential amount, the clean angles may be symmetric, skewed to either side, have a shoulder (of hard photographs to the right, of samples that a
small head has learned by heart to the left) or a long tail (of hard photographs among many good ones), every such pair is
fitted by EM, and the fits are averaged by their likelihood. Priors worth a few samples each keep thirty photographs from being absurd.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BIN_DEG",
    "NUM_BINS",
    "AngleHistogram",
    "Calibration",
    "angle_of_probability",
    "auroc",
    "fit_calibration",
    "threshold_for_noise",
    "threshold_for_retention",
]

BIN_DEG = 0.25
NUM_BINS = 720
_MEAN_ATTRACTIONS_DEG = tuple(range(0, 21, 2))
_ATTRACTION_PRIOR_DEG = 5.0  # mean of its exponential prior: costs a fit log-likelihood only where the data do not decide
_TAIL_COST = 5.0  # log-likelihood by which a fit with a long tail must be better: where it is not, its tail explains noise
_NULL_PRIOR = (90.0, 12.0, 20.0)  # mean and deviation in degrees, and how many samples this is worth
_CLEAN_DEVIATION_PRIOR = (8.0, 5.0)
_CLEAN_MEAN_PRIOR = 3.0
_EM_STEPS = 120
_STANDSTILL = 1e-10  # degrees, and share: what a step changes where a fit has ended
_FLOOR_NOISE, _FLOOR_CLEAN = 1e-12, 1e-15  # what neither component explains is noise


@dataclass
class AngleHistogram:
    """Counts of angles in bins [i, i + 1) * 0.25 degrees over 0..180, int64; exactly 180 falls in the last bin. Additive over parts."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(NUM_BINS, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.counts.shape != (NUM_BINS,) or self.counts.dtype != torch.int64 or bool((self.counts < 0).any()):
            raise ValueError(f"counts must be {NUM_BINS} non-negative int64, got {self.counts.dtype} {tuple(self.counts.shape)}")

    def add(self, angle_deg_N: Tensor) -> None:
        """Count the angles of one part. NaN (no evidence) is left out. Raises ValueError for an angle outside 0..180 degrees."""
        known_N = angle_deg_N[~angle_deg_N.isnan()].detach().cpu()
        if len(known_N) and (known_N.min() < 0 or known_N.max() > 180):
            raise ValueError(
                f"angles must be in 0..180 degrees, got {float(known_N.min()):g}..{float(known_N.max()):g}: radians or cosines?"
            )
        bin_N = (known_N / BIN_DEG).long().clamp_max(NUM_BINS - 1)
        self.counts = self.counts + torch.bincount(bin_N, minlength=NUM_BINS)

    def merge(self, other: "AngleHistogram") -> "AngleHistogram":
        """The histogram of both sets of angles."""
        return AngleHistogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """How many angles were counted."""
        return int(self.counts.sum())

    def quantile_deg(self, share: float) -> float:
        """Middle of the first bin at which `share` of the angles is reached. Raises ValueError when the histogram is empty."""
        if self.total == 0:
            raise ValueError("an empty histogram has no quantile: add angles first")
        reached = self.counts.cumsum(0) >= max(1, math.ceil(share * self.total))
        return (int(reached.long().argmax()) + 0.5) * BIN_DEG


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The noise of one crawl under one model.

    noise_rate                 share of samples that are not of their identity, 0..1
    noise_rate_low, _high      95 % interval: the fits that the likelihood does not rule out, widened by how badly the best one fits, and
                               sampling error. It does not cover kinds of noise that no fit knows, such as a look-alike repeated
    attraction_deg             how far training pulled the noise towards the centers, on average
    probability                of noise, per bin, never falls with the angle
    density                    fitted share of all samples, per bin
    samples                    own angles behind it
    """

    noise_rate: float
    noise_rate_low: float
    noise_rate_high: float
    attraction_deg: float
    probability: tuple[float, ...]
    density: tuple[float, ...]
    samples: int

    def __post_init__(self) -> None:
        if len(self.probability) != NUM_BINS or len(self.density) != NUM_BINS:
            raise ValueError(f"a calibration has {NUM_BINS} bins, got {len(self.probability)} and {len(self.density)}: fit it again")

    def noise_probability(self, angle_deg_N: Tensor) -> Tensor:
        """Probability [N] in 0..1, float32, higher = worse, that a sample at this angle is noise; interpolated between the middles of bins.

        Never falls with the angle. NaN where the angle is NaN, so that no rule keeps it.
        """
        table = torch.tensor(self.probability, dtype=torch.float64, device=angle_deg_N.device)
        place_N = (angle_deg_N.double() / BIN_DEG - 0.5).clamp(0, NUM_BINS - 1)
        left_N = place_N.nan_to_num(nan=0.0).floor().long().clamp_max(NUM_BINS - 2)
        fraction_N = place_N - left_N
        return (table[left_N] + fraction_N * (table[left_N + 1] - table[left_N])).clamp(0.0, 1.0).float()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_dict` wrote. Raises ValueError when a field is missing or unknown."""
        if set(stored) != set(cls.__dataclass_fields__):
            raise ValueError(
                f"not a stored calibration: wanted fields {sorted(cls.__dataclass_fields__)}, got {sorted(stored)}: fit it again"
            )
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, Sequence) else value for name, value in stored.items()}
        return cls(**values)


def fit_calibration(own: AngleHistogram, null: AngleHistogram) -> Calibration:
    """Noise rate and noise probability of a crawl from its own angles and its null angles.

    own    angle of each sample to its identity's dominant sub-center; leave out identities of one sample, which are their own center
    null   angle of each sample to a random other identity's; may be empty (one identity), then 90 +- 12 degrees is assumed

    Model: f(a) = (1 - pi) clean((a - mean) / deviation) + pi (null * attraction)(a), by EM for each shape of `clean` and each attraction;
    pi and the posterior pi f0 / f are averages over the fits, the posterior made monotone by pool-adjacent-violators weighted with f.
    Ask `degenerate_head` first: a head that learned nothing calibrates to nonsense. Raises ValueError when `own` is empty.
    Source: Efron 2008 (two groups, empirical null); the moving null is ours.
    """
    if own.total == 0:
        raise ValueError("no own angles to calibrate on: judge at least one identity with two samples first")
    counts_B = own.counts.double()
    null_B = _null_density(null.counts.double())
    noise_FB = torch.cat([_attracted(null_B, degrees) for degrees in _MEAN_ATTRACTIONS_DEG])
    attraction_F = torch.tensor(_MEAN_ATTRACTIONS_DEG, dtype=torch.float64).repeat_interleave(2).repeat(len(_SHAPES))
    start_deg = own.quantile_deg(0.3)
    rate_F, noise_FB, mixture_FB = _fit_each(counts_B, noise_FB, start_deg)

    cost_F = attraction_F / _ATTRACTION_PRIOR_DEG + torch.tensor([_TAIL_COST * (name == "tailed") for name in _SHAPES]).repeat_interleave(
        len(attraction_F) // len(_SHAPES)
    )
    log_likelihood_F = (counts_B * mixture_FB.log()).sum(dim=1) - cost_F
    lag_F = log_likelihood_F.max() - log_likelihood_F
    misfit = _misfit(counts_B, mixture_FB[int(lag_F.argmin())])
    weight_F = torch.softmax(-lag_F / misfit, dim=0)
    rate = float(weight_F @ rate_F)
    density_B = weight_F @ mixture_FB
    probability_B = _monotone((weight_F @ (rate_F[:, None] * noise_FB)) / density_B, density_B)
    possible_F = rate_F[lag_F <= 1.92 * misfit]  # chi-square of one degree at 95 %, halved
    sampling = 1.96 * math.sqrt(rate * (1 - rate) / own.total)
    return Calibration(
        noise_rate=rate,
        noise_rate_low=max(0.0, min(float(possible_F.min()), rate) - sampling),
        noise_rate_high=min(1.0, max(float(possible_F.max()), rate) + sampling),
        attraction_deg=float(weight_F @ attraction_F),
        probability=tuple(probability_B.tolist()),
        density=tuple((density_B / density_B.sum()).tolist()),
        samples=own.total,
    )


def angle_of_probability(calibration: Calibration, probability: float) -> float:
    """The largest angle in degrees (middle of a bin) whose noise probability does not exceed `probability`; 0.0 when there is none."""
    below_B = torch.tensor(calibration.probability, dtype=torch.float64) <= probability
    return (int(below_B.sum()) - 0.5) * BIN_DEG if bool(below_B.any()) else 0.0


def threshold_for_noise(calibration: Calibration, max_noise: float) -> float:
    """The largest angle cut in degrees whose kept samples are expected to hold at most this share of noise; 0.0 when there is none."""
    _check_share("max_noise", max_noise)
    density_B = torch.tensor(calibration.density, dtype=torch.float64)
    noise_B = (density_B * torch.tensor(calibration.probability, dtype=torch.float64)).cumsum(0) / density_B.cumsum(0)
    # The probability never falls with the angle, so neither does the share; count the bins below the bound.
    return int((noise_B <= max_noise).sum()) * BIN_DEG


def threshold_for_retention(calibration: Calibration, min_retention: float) -> float:
    """The smallest angle cut in degrees that is expected to keep at least this share of the clean samples."""
    _check_share("min_retention", min_retention)
    clean_B = torch.tensor(calibration.density, dtype=torch.float64) * (1 - torch.tensor(calibration.probability, dtype=torch.float64))
    kept_B = clean_B.cumsum(0) / clean_B.sum()
    return min(NUM_BINS, int((kept_B < min_retention - 1e-12).sum()) + 1) * BIN_DEG


def auroc(own: AngleHistogram, null: AngleHistogram) -> float:
    """Probability that an own angle is smaller than a null angle, ties counted half: 1 = separated, 0.5 = no difference."""
    if own.total == 0 or null.total == 0:
        raise ValueError("AUROC needs own and null angles: judge at least two identities first")
    own_B, null_B = own.counts.double() / own.total, null.counts.double() / null.total
    return float((own_B * (null_B.flip(0).cumsum(0).flip(0) - 0.5 * null_B)).sum())


def _fit_each(counts_B: Tensor, noise_AB: Tensor, start_deg: float) -> tuple[Tensor, Tensor, Tensor]:
    """Noise rate [F], noise density [F, B] and mixture density [F, B] of every fit: shapes x attractions, by EM with weak priors.

    A shape at a time: its tensors stay below the size from which torch splits an operation over threads, which costs more than it is worth.
    """
    noise_AB = noise_AB + _FLOOR_NOISE
    fits = [_fit_shape(counts_B, noise_AB, shape, start_deg) for shape in _SHAPES.values()]
    return torch.cat([rate for rate, _ in fits]), noise_AB.repeat(len(fits), 1), torch.cat([mixture for _, mixture in fits])


def _fit_shape(counts_B: Tensor, noise_AB: Tensor, shape: Callable[[Tensor], Tensor], start_deg: float) -> tuple[Tensor, Tensor]:
    """Noise rate [A] and mixture density [A, B] for one shape of the clean angles."""
    middle_B = _middles()
    total = counts_B.sum()
    moments_B3 = counts_B[:, None] * torch.stack([torch.ones_like(middle_B), middle_B, middle_B**2], dim=1)
    rate = torch.full((len(noise_AB), 1), 0.3, dtype=torch.float64)
    mean, deviation = torch.full_like(rate, start_deg), torch.full_like(rate, 10.0)
    prior_deviation, prior_weight = _CLEAN_DEVIATION_PRIOR
    for step in range(_EM_STEPS):
        before = torch.stack([rate, mean, deviation])
        clean_AB = _normalised(shape((middle_B - mean) / deviation)) * (1 - rate)
        clean_total, first, second = torch.split((clean_AB / (rate * noise_AB + clean_AB)) @ moments_B3, 1, dim=1)
        rate = (total - clean_total + 1) / (total + 4)
        mean = (first + _CLEAN_MEAN_PRIOR * start_deg) / (clean_total + _CLEAN_MEAN_PRIOR)
        scatter = (second - 2 * mean * first + mean**2 * clean_total).clamp_min(0.0)
        deviation = ((scatter + prior_weight * prior_deviation**2) / (clean_total + prior_weight)).sqrt()
        if step % 10 == 9 and bool(((torch.stack([rate, mean, deviation]) - before).abs() < _STANDSTILL).all()):
            break
    return rate.flatten(), rate * noise_AB + (1 - rate) * _normalised(shape((middle_B - mean) / deviation))


def _normalised(density_AB: Tensor) -> Tensor:
    return density_AB / density_AB.sum(dim=-1, keepdim=True).clamp_min(1e-300) + _FLOOR_CLEAN


def _gaussian(z: Tensor) -> Tensor:
    """Standard normal, unnormalised."""
    return torch.exp(-0.5 * z * z)


def _skewed(z: Tensor, skewness: float) -> Tensor:
    """Pearson III of mean 0, deviation 1 and this skewness, unnormalised, 1 at its mode's neighbourhood."""
    shape = 4 / skewness**2
    stretched = 1 + z * skewness / 2
    log_density = (shape - 1) * stretched.clamp_min(1e-9).log() - shape * (stretched - 1)
    return log_density.clamp_max(50.0).exp().masked_fill(stretched <= 0, 0.0)


def _shouldered(z: Tensor, share: float = 0.15, distance: float = 3.0, spread: float = 1.3) -> Tensor:
    """A normal with a share of hard photographs further out, as a whole of mean 0 and deviation 1, unnormalised."""
    mean = share * distance
    deviation = math.sqrt((1 - share) + share * (spread**2 + distance**2) - mean**2)
    x = z * deviation + mean
    return (1 - share) * _gaussian(x) + share / spread * _gaussian((x - distance) / spread)


def _tailed(z: Tensor, skewness: float = 1.0) -> Tensor:
    """A normal plus an exponential amount, as a whole of mean 0, deviation 1 and this skewness, unnormalised. Source: Grushka 1972 (EMG)."""
    mean = (skewness / 2) ** (1 / 3)
    deviation = math.sqrt(1 - mean**2)
    x = z + mean
    log_density: Tensor = deviation**2 / (2 * mean**2) - x / mean + torch.special.log_ndtr(x / deviation - deviation / mean)
    return log_density.exp()


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "symmetric": _gaussian,
    "skewed": lambda z: _skewed(z, 0.5),
    "very skewed": lambda z: _skewed(z, 1.0),
    "shouldered": _shouldered,
    "left-skewed": lambda z: _skewed(-z, 0.5),
    "very left-skewed": lambda z: _skewed(-z, 1.0),
    "left-shouldered": lambda z: _shouldered(-z),
    "left-tailed": lambda z: _shouldered(-z, 0.1, 3.0, 3.0),
    "tailed": _tailed,
}
"""Clean angles, standardised, one function a shape."""


def _null_density(counts_B: Tensor) -> Tensor:
    """Smooth density of the null: its counts and a weak prior under a Gaussian kernel of Silverman's width."""
    middle_B = _middles()
    mean, deviation, worth = _NULL_PRIOR
    prior_B = _gaussian((middle_B - mean) / deviation)
    mass_B = counts_B + worth * prior_B / prior_B.sum()
    total = mass_B.sum()
    center = (mass_B * middle_B).sum() / total
    width = 1.06 * float(((mass_B * (middle_B - center) ** 2).sum() / total).sqrt() * total**-0.2)
    kernel_BB = _gaussian((middle_B[:, None] - middle_B) / max(width, 2 * BIN_DEG))
    density_B = (kernel_BB / kernel_BB.sum(dim=0)) @ mass_B
    return density_B / density_B.sum()


def _attracted(null_B: Tensor, mean_deg: float) -> Tensor:
    """The null moved left by a random amount of this mean, [2, B]: uniform over 0..2 mean, and exponential."""
    offset_B = torch.arange(NUM_BINS, dtype=torch.float64) * BIN_DEG
    uniform_B = (offset_B <= 2 * mean_deg).double()
    exponential_B = torch.exp(-offset_B / mean_deg) if mean_deg > 0 else uniform_B
    amount_2B = torch.stack([uniform_B / uniform_B.sum(), exponential_B / exponential_B.sum()])
    reach = 2 * NUM_BINS  # room enough that nothing wraps around
    spectrum = torch.fft.rfft(null_B.flip(0), reach) * torch.fft.rfft(amount_2B, reach)
    moved_2B = torch.fft.irfft(spectrum, reach)[:, :NUM_BINS].flip(1).clamp_min(0.0)
    density_2B: Tensor = moved_2B / moved_2B.sum(dim=1, keepdim=True)
    return density_2B


def _misfit(counts_B: Tensor, density_B: Tensor) -> float:
    """Overdispersion, at least 1: Pearson chi-square per degree of freedom in bins of 2 degrees that expect five samples or more."""
    observed, expected = counts_B.view(-1, 8).sum(dim=1), counts_B.sum() * density_B.view(-1, 8).sum(dim=1)
    filled = expected >= 5
    freedom = int(filled.sum()) - 4  # rate, mean, deviation, attraction
    if freedom < 1:
        return 1.0
    return max(1.0, float(((observed - expected) ** 2 / expected.clamp_min(1e-9))[filled].sum()) / freedom)


def _monotone(values_B: Tensor, weights_B: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to `values` in weighted squares, by pooling adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values_B.tolist(), weights_B.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while pools and pools[-1][0] >= mean:
            before, before_mass, before_length = pools.pop()
            mean = (before * before_mass + mean * mass) / (before_mass + mass)
            mass, length = before_mass + mass, before_length + length
        pools.append((mean, mass, length))
    return torch.tensor([mean for mean, _, length in pools for _ in range(length)], dtype=torch.float64).clamp(0.0, 1.0)


def _middles() -> Tensor:
    """Middles of the bins in degrees."""
    return (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * BIN_DEG


def _check_share(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share and must be in 0..1, got {value}")
