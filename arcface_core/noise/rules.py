"""Verdicts from evidence: keep, drop, relabel or review, each with its reason.

Published rules differ. The paper's prose reads as if every non-dominant sample went, its script drops by angle to the dominant
sub-center only; so each is a function here, by name. A rule returns reason codes, not a mask: nothing is dropped without a reason.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["LEAST_MASS", "REASONS", "RULES", "TIE_SHARE", "VERDICTS", "Evidence", "Judgement", "Rule", "Thresholds", "judge", "sweep"]

VERDICTS = ("keep", "drop", "relabel", "review")
REASONS = (
    "accepted",
    "angle",
    "nondominant",
    "angle_and_nondominant",
    "noise_probability",
    "too_few_samples",
    "no_evidence",
    "no_consensus",
    "tie",
    "near_duplicate",
)
LEAST_MASS = 1.5
"""An identity has a consensus when more than one sample agrees: two, of which both probably."""
TIE_SHARE = 0.8
"""Two people under one name tie when the second has this share of the first one's mass, or more."""
_KEEP, _DROP, _RELABEL, _REVIEW = range(len(VERDICTS))
(
    _ACCEPTED,
    _ANGLE,
    _NONDOMINANT,
    _ANGLE_AND_NONDOMINANT,
    _NOISE_PROBABILITY,
    _TOO_FEW_SAMPLES,
    _NO_EVIDENCE,
    _NO_CONSENSUS,
    _TIE,
    _NEAR_DUPLICATE,
) = range(len(REASONS))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of N samples, each tensor [N]. Angles in degrees, NaN where unknown.

    angle_deg           to the dominant sub-center of the claimed identity
    nearest_angle_deg   to the nearest sub-center of the claimed identity
    is_dominant         the nearest sub-center is the dominant one (bool)
    consensus_angle_deg to the consensus of the identity's other samples
    other_angle_deg     to the nearest other identity's consensus
    next_other_angle_deg to the second nearest other identity's
    noise_probability   that the sample is not of this person, 0..1, higher = worse; NaN when not calibrated
    identity_size       samples of the claimed identity (int64)
    mass                how many samples agree with the identity's consensus
    second_mass         how many agree with each other, but not with the consensus
    is_near_duplicate   another sample of the identity stands for this one (bool)
    """

    angle_deg: Tensor
    nearest_angle_deg: Tensor
    is_dominant: Tensor
    consensus_angle_deg: Tensor
    other_angle_deg: Tensor
    next_other_angle_deg: Tensor
    noise_probability: Tensor
    identity_size: Tensor
    mass: Tensor
    second_mass: Tensor
    is_near_duplicate: Tensor

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.angle_deg.ndim != 1:
            raise ValueError(f"every field of Evidence must be [N] with one N, got {shapes}")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The numbers that rules compare with. A value exactly at its threshold is kept; `relabel_angle_deg` None proposes no relabelling.

    Source: 75 degrees, ArcFace TPAMI table 3 row 7.
    """

    max_angle_deg: float = 75.0
    max_noise_probability: float = 0.5
    relabel_angle_deg: float | None = 60.0
    relabel_gap_deg: float = 18.0

    def __post_init__(self) -> None:
        for name, top in (
            ("max_angle_deg", 180.0),
            ("max_noise_probability", 1.0),
            ("relabel_angle_deg", 180.0),
            ("relabel_gap_deg", 180.0),
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= top:
                raise ValueError(f"{name} must be in 0..{top:g}, got {value}: angles are in degrees, probabilities in 0..1")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Codes into VERDICTS and REASONS, int8 [N] each. A relabelled sample carries the reason for which it leaves its claimed identity."""

    verdict_N: Tensor
    reason_N: Tensor


Rule = Callable[[Evidence, Thresholds], Tensor]


def judge(
    evidence: Evidence,
    *,
    rule: str,
    max_angle_deg: float = 75.0,
    max_noise_probability: float = 0.5,
    relabel_angle_deg: float | None = 60.0,
    relabel_gap_deg: float = 18.0,
    keep_near_duplicates: bool = True,
) -> Judgement:
    """Verdict and reason of every sample; each depends on that sample's evidence only.

    keep      the rule has nothing against it; a value exactly at its threshold is kept, as float32 sees it
    drop      the rule gave a reason; or it would be kept, and another sample is the same photograph (reason near_duplicate)
    relabel   as drop, and another identity lies within `relabel_angle_deg` (inclusive), nearer than its own consensus, and nearer than any third
              by `relabel_gap_deg` (inclusive): among 100,000 identities somebody is always near to a stranger. A proposal, not a move
    review    nobody can say: evidence that the rule needs is NaN (no_evidence); the identity has one sample, which is its own center
              (too_few_samples); and by the rule `calibrated` only, fewer than two samples of the identity agree (no_consensus), or as many
              agree on somebody else (tie)
    Raises ValueError for an unknown rule or a threshold out of range.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
    limits = Thresholds(
        max_angle_deg=max_angle_deg,
        max_noise_probability=max_noise_probability,
        relabel_angle_deg=relabel_angle_deg,
        relabel_gap_deg=relabel_gap_deg,
    )
    reason_N = RULES[rule](evidence, limits)
    if not keep_near_duplicates:
        reason_N = reason_N.masked_fill((reason_N == _ACCEPTED) & evidence.is_near_duplicate, _NEAR_DUPLICATE)
    blind_N = evidence.angle_deg.isnan()
    if rule == "calibrated":
        reason_N = reason_N.masked_fill(evidence.second_mass >= TIE_SHARE * evidence.mass, _TIE)
        reason_N = reason_N.masked_fill(~(evidence.mass >= LEAST_MASS), _NO_CONSENSUS)
        blind_N = blind_N | (evidence.noise_probability.isnan() & (reason_N != _NO_CONSENSUS))
    reason_N = reason_N.masked_fill(evidence.identity_size <= 1, _TOO_FEW_SAMPLES)
    reason_N = reason_N.masked_fill(blind_N, _NO_EVIDENCE)
    verdict_N = torch.full_like(reason_N, _DROP).masked_fill(reason_N == _ACCEPTED, _KEEP)
    if relabel_angle_deg is not None:
        nearer_N = ~(evidence.other_angle_deg >= evidence.consensus_angle_deg)  # than its own, or it has no own
        alone_N = ~(evidence.next_other_angle_deg - evidence.other_angle_deg < relabel_gap_deg)
        close_N = ~_exceeds(evidence.other_angle_deg, relabel_angle_deg) & nearer_N & alone_N
        verdict_N = verdict_N.masked_fill((verdict_N == _DROP) & (reason_N != _NEAR_DUPLICATE) & close_N, _RELABEL)
    for reason in (_TOO_FEW_SAMPLES, _NO_EVIDENCE, _NO_CONSENSUS, _TIE):
        verdict_N = verdict_N.masked_fill(reason_N == reason, _REVIEW)
    return Judgement(verdict_N=verdict_N, reason_N=reason_N)


def sweep(angle_deg_N: Tensor, degrees: Iterable[float] = range(60, 91)) -> Tensor:
    """How many samples each cut of `angle_deg <= degrees` keeps, int64, one count per cut. Additive over parts; NaN is never kept."""
    cuts = torch.tensor(list(degrees), dtype=angle_deg_N.dtype, device=angle_deg_N.device)
    ordered_N = angle_deg_N[~angle_deg_N.isnan()].sort().values
    return torch.searchsorted(ordered_N, cuts, right=True)


def by_angle(evidence: Evidence, limits: Thresholds) -> Tensor:
    """Reason `angle` where the angle to the dominant sub-center exceeds the cut. Source: insightface subcenter drop.py (there strict)."""
    return _reasons(_exceeds(evidence.angle_deg, limits.max_angle_deg), _ANGLE)


def by_nondominant(evidence: Evidence, limits: Thresholds) -> Tensor:
    """Reason `nondominant` where another sub-center is nearer than the dominant one. Source: one reading of ArcFace TPAMI 3.2."""
    return _reasons(~evidence.is_dominant, _NONDOMINANT)


def by_either(evidence: Evidence, limits: Thresholds) -> Tensor:
    """A reason where the sample is beyond the cut, non-dominant, or both; the code says which."""
    beyond_N, outside_N = _exceeds(evidence.angle_deg, limits.max_angle_deg), ~evidence.is_dominant
    return _reasons(beyond_N, _ANGLE) + _reasons(outside_N, _NONDOMINANT)  # 1 + 2 = 3, angle_and_nondominant


def by_both(evidence: Evidence, limits: Thresholds) -> Tensor:
    """Reason `angle_and_nondominant` where the sample is beyond the cut and non-dominant."""
    return _reasons(_exceeds(evidence.angle_deg, limits.max_angle_deg) & ~evidence.is_dominant, _ANGLE_AND_NONDOMINANT)


def by_noise_probability(evidence: Evidence, limits: Thresholds) -> Tensor:
    """Reason `noise_probability` where the calibrated probability of noise exceeds its cut."""
    return _reasons(_exceeds(evidence.noise_probability, limits.max_noise_probability), _NOISE_PROBABILITY)


def _exceeds(value_N: Tensor, limit: float) -> Tensor:
    """value > limit, the limit rounded to the value's own precision: a stored float32 of 70.1 does not exceed 70.1. NaN exceeds."""
    return ~(value_N <= torch.tensor(limit, dtype=value_N.dtype, device=value_N.device))


def _reasons(drop_N: Tensor, reason: int) -> Tensor:
    """int8 codes: `reason` where dropped, else accepted."""
    return torch.zeros_like(drop_N, dtype=torch.int8).masked_fill(drop_N, reason)


RULES: dict[str, Rule] = {
    "angle": by_angle,
    "nondominant": by_nondominant,
    "either": by_either,
    "both": by_both,
    "calibrated": by_noise_probability,
}
