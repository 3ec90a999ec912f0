"""One noise probability from three kinds of evidence: agreement with the identity's consensus, the rival, and the density around the sample.

The calibration says what clean and wrong look like in the first (`calibration.py`). What they look like in the other two is then read off the
crawl itself by EM: a histogram of the rival's angle under the present guess of who is noise and one under who is not give a likelihood ratio,
which changes the guess. All of it happens on one joint histogram, so a crawl of any size costs one pass and a few megabytes.

The own angles are calibrated twice. Flips to a look-alike lie at 60 degrees where strangers lie at 90, and one attraction that fits both calls
hard photographs noise. So the samples that plainly belong to another identity are set aside, and the rest, whose noise is strangers, is
calibrated alone.

For identities that trained the head, noise that was learned by heart looks clean, and the rate comes out low. Identities that were held out
have no such excuse: where there are enough of them, the odds of noise are shifted so that the rate agrees with theirs.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from arcface_core.noise.calibration import Calibration, angle_of_probability
from arcface_core.noise.rivals import belongs_elsewhere

__all__ = ["DENSITY_BINS", "OWN_BINS", "RIVAL_BINS", "FusedJudge", "JointHistogram", "OwnAngles", "fit_fusion"]

OWN_BINS, RIVAL_BINS, DENSITY_BINS = 180, 60, 60
_MOST_EVIDENCE = 4.0  # log-likelihood ratio that one histogram bin may add: half a crawl of noise never makes one kind of evidence certain
_DENSITY_SHARE = 0.3  # the density repeats in part what the own angle says; measured, DECISIONS.md
_EM_STEPS = 5
_SMOOTHING_BINS = 2.0


def _bins(angle_deg_N: Tensor, bins: int) -> Tensor:
    """Bin of each angle, the last one (index `bins`) for NaN: no evidence is a kind of evidence, and shifts nothing by itself."""
    place_N = (angle_deg_N / (180 / bins)).nan_to_num(nan=0.0).long().clamp(0, bins - 1)
    return place_N.masked_fill(angle_deg_N.isnan(), bins)


@dataclass
class JointHistogram:
    """Counts over (own angle, rival angle, density angle), int64 [181, 61, 61]; the last bin of each is "unknown". Additive over parts."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(OWN_BINS + 1, RIVAL_BINS + 1, DENSITY_BINS + 1, dtype=torch.int64))

    def add(self, own_deg_N: Tensor, rival_deg_N: Tensor, density_deg_N: Tensor) -> None:
        """Count the samples of one part."""
        _, rivals, densities = self.counts.shape
        flat_N = (_bins(own_deg_N, OWN_BINS) * rivals + _bins(rival_deg_N, RIVAL_BINS)) * densities + _bins(density_deg_N, DENSITY_BINS)
        self.counts = self.counts + torch.bincount(flat_N.cpu(), minlength=self.counts.numel()).view_as(self.counts)


@dataclass(frozen=True, kw_only=True)
class OwnAngles:
    """What the own angle alone says.

    everyone          calibration of all samples; judges those that belong elsewhere, who are noise more probably than not
    rest              calibration of the others
    elsewhere_share   share of all samples that belong elsewhere, 0..1
    """

    everyone: Calibration
    rest: Calibration
    elsewhere_share: float

    @property
    def clean_deg(self) -> float:
        """Within this angle of an identity a sample is more probably its than not, by the calibration of everyone."""
        return angle_of_probability(self.everyone, 0.5)

    @property
    def noise_rate_interval(self) -> tuple[float, float]:
        """95 % interval of the share of noise: what belongs elsewhere is noise, of the rest as much as its calibration says."""
        rest = 1 - self.elsewhere_share
        return self.elsewhere_share + rest * self.rest.noise_rate_low, self.elsewhere_share + rest * self.rest.noise_rate_high

    def log_odds(self, own_deg_N: Tensor, rival_deg_N: Tensor) -> Tensor:
        """Log odds of noise [N], float64; NaN where the own angle is NaN."""
        elsewhere_N = belongs_elsewhere(own_deg_N, rival_deg_N, self.clean_deg)
        noise_N = torch.where(
            elsewhere_N, self.everyone.noise_probability(own_deg_N).clamp_min(0.5), self.rest.noise_probability(own_deg_N)
        )
        return torch.logit(noise_N.double(), eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class FusedJudge:
    """Noise probabilities from all evidence.

    own_angles      what the own angle says
    rival_llr       log-likelihood ratio noise : clean per bin of the rival's angle, 0 for unknown
    density_llr     the same per bin of the density angle
    log_odds_shift  what held-out identities add to the log odds of noise
    noise_rate      mean probability over the crawl
    """

    own_angles: OwnAngles
    rival_llr: tuple[float, ...]
    density_llr: tuple[float, ...]
    log_odds_shift: float
    noise_rate: float

    def noise_probability(self, own_deg_N: Tensor, rival_deg_N: Tensor, density_deg_N: Tensor) -> Tensor:
        """Probability [N] in 0..1, float32, higher = worse, that a sample is not of its identity. NaN where the own angle is NaN."""
        odds_N = self.own_angles.log_odds(own_deg_N, rival_deg_N)
        odds_N = odds_N + _interpolated(self.rival_llr, rival_deg_N) + _interpolated(self.density_llr, density_deg_N)
        return torch.sigmoid(odds_N + self.log_odds_shift).float()

    def threshold_for_noise(self, joint: JointHistogram, max_noise: float) -> float:
        """The largest noise probability that may be kept so that at most this share of the kept is expected to be noise; 0.0 when none."""
        probability, count = self._cells(joint)
        noise, all_ = (count * probability).cumsum(0), count.cumsum(0)
        fine = noise <= max_noise * all_
        return float(probability[fine].max()) if bool(fine.any()) else 0.0

    def threshold_for_retention(self, joint: JointHistogram, min_retention: float) -> float:
        """The smallest threshold that is expected to keep at least this share of the clean samples."""
        probability, count = self._cells(joint)
        kept = (count * (1 - probability)).cumsum(0)
        if len(kept) == 0:
            return 1.0
        enough = int((kept < min_retention * kept[-1] - 1e-9).sum())
        return float(probability[min(enough, len(probability) - 1)])

    def _cells(self, joint: JointHistogram) -> tuple[Tensor, Tensor]:
        """Noise probability and count of every filled cell, by rising probability."""
        place = joint.counts[:OWN_BINS].nonzero()
        own, rival, density = (_middle(place[:, axis], bins) for axis, bins in enumerate((OWN_BINS, RIVAL_BINS, DENSITY_BINS)))
        probability, order = self.noise_probability(own, rival, density).double().sort()
        return probability, joint.counts[:OWN_BINS][tuple(place.T)][order].double()


def fit_fusion(own_angles: OwnAngles, joint: JointHistogram, *, held_out_rate: float | None = None) -> FusedJudge:
    """The fused judge of one crawl. `held_out_rate`: noise rate of identities that trained no head, when there are enough to tell.

    The rival is read first, from the calibrated guess; the density then, from the guess that both make. Each ratio is smoothed over bins and
    bounded by e^4. The shift is never negative: a held-out rate below ours says that the held-out are few, not that the noise is less.
    """
    counts = joint.counts[:OWN_BINS].double()
    own_OR, rival_OR = torch.meshgrid(
        _middle(torch.arange(OWN_BINS), OWN_BINS), _middle(torch.arange(RIVAL_BINS + 1), RIVAL_BINS), indexing="ij"
    )
    odds = own_angles.log_odds(own_OR, rival_OR)[:, :, None].expand(counts.shape)
    rival_llr, density_llr = torch.zeros(RIVAL_BINS + 1).double(), torch.zeros(DENSITY_BINS + 1).double()
    for _ in range(_EM_STEPS):
        noise = torch.sigmoid(odds + rival_llr[:, None])
        rival_llr = _ratio((counts * noise).sum(dim=(0, 2)), (counts * (1 - noise)).sum(dim=(0, 2)))
    odds = odds + rival_llr[:, None]
    for _ in range(_EM_STEPS):
        noise = torch.sigmoid(odds + density_llr)
        density_llr = _DENSITY_SHARE * _ratio((counts * noise).sum(dim=(0, 1)), (counts * (1 - noise)).sum(dim=(0, 1)))
    odds = odds + density_llr
    total = counts.sum().clamp_min(1)
    shift = _shift(odds, counts, held_out_rate) if held_out_rate is not None else 0.0
    return FusedJudge(
        own_angles=own_angles,
        rival_llr=tuple(rival_llr.tolist()),
        density_llr=tuple(density_llr.tolist()),
        log_odds_shift=shift,
        noise_rate=float((counts * torch.sigmoid(odds + shift)).sum() / total),
    )


def _ratio(noise_B: Tensor, clean_B: Tensor) -> Tensor:
    """Bounded log ratio of two smoothed histograms; 0 in the last bin, and where neither has been seen."""
    if float(noise_B[:-1].sum()) < 1 or float(clean_B[:-1].sum()) < 1:
        return torch.zeros_like(noise_B)
    noise_B, clean_B = _smooth(noise_B[:-1]), _smooth(clean_B[:-1])
    # What a handful of samples says counts as little: both densities are mixed with the whole crawl's, worth 10 samples.
    whole_B = (noise_B + clean_B) / (noise_B.sum() + clean_B.sum())
    ratio_B = ((noise_B + 10 * whole_B + 1e-9) / (noise_B.sum() + 10)).log() - (
        (clean_B + 10 * whole_B + 1e-9) / (clean_B.sum() + 10)
    ).log()
    return torch.cat([ratio_B.clamp(-_MOST_EVIDENCE, _MOST_EVIDENCE), torch.zeros(1).double()])


def _smooth(counts_B: Tensor) -> Tensor:
    reach = math.ceil(4 * _SMOOTHING_BINS)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / _SMOOTHING_BINS) ** 2)
    padded = torch.nn.functional.pad(counts_B[None, None], (reach, reach))
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]


def _shift(odds: Tensor, counts: Tensor, rate: float) -> float:
    """What has to be added to the log odds so that the mean probability is `rate`; 0 when it is that or more already."""
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = float((counts * torch.sigmoid(odds + middle)).sum() / counts.sum().clamp_min(1)) >= rate
        low, high = (low, middle) if enough else (middle, high)
    return low


def _middle(place_N: Tensor, bins: int) -> Tensor:
    return ((place_N + 0.5) * (180 / bins)).float().masked_fill(place_N == bins, torch.nan)


def _interpolated(llr: tuple[float, ...], angle_deg_N: Tensor) -> Tensor:
    """The ratio at each angle, linear between the middles of bins; 0 for NaN."""
    table = torch.tensor(llr[:-1], dtype=torch.float64, device=angle_deg_N.device)
    place_N = (angle_deg_N.double() * len(table) / 180 - 0.5).nan_to_num(nan=0.0).clamp(0, len(table) - 1)
    left_N = place_N.floor().long().clamp_max(len(table) - 2)
    value_N = table[left_N] + (place_N - left_N) * (table[left_N + 1] - table[left_N])
    return value_N.masked_fill(angle_deg_N.isnan(), 0.0)
