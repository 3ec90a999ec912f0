"""One-to-one verification: k-fold accuracy, TAR at a fixed FAR, ROC, and the pairs to measure them on.

Everywhere a pair is accepted iff its score >= the threshold; genuine = same person, impostor = two people; higher score = more alike.
Nothing is interpolated: every rate is a count divided by a count. Scores are compared on the CPU as they come if they are float32, of which IJB has 15 million,
else in float64, which is no less exact: a comparison rounds nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "OperatingPoint",
    "VerificationAccuracy",
    "allowed_impostors",
    "auroc",
    "checked_scores",
    "equal_error_rate",
    "fold_correct",
    "genuine_impostor_pairs",
    "highest_rising",
    "kfold_accuracy",
    "roc_points",
    "tar_at_far",
    "wilson",
]

_Z_95 = 1.959963984540054
_ROUNDING = 1e-3


class VerificationAccuracy(NamedTuple):
    """Accuracy, 0..1, higher = better: mean and population standard deviation over folds, then that of each fold, float64 [folds].

    `thresholds`, float64 [folds]: the cosine at which each fold was judged, chosen on the others.
    """

    mean: float
    std: float
    accuracies: Tensor
    thresholds: Tensor


class OperatingPoint(NamedTuple):
    """What a system accepts when at most a share `far` of impostors may pass.

    far                  the share asked for
    threshold            smallest observed score at which the share of accepted impostors is <= far; inf when there is none
    tar                  share of genuine pairs accepted there, 0..1, higher = better
    impostors_accepted   how many impostor pairs are accepted there
    tar_low, tar_high    95 % Wilson interval of `tar`
    resolvable           there are at least 1 / far impostor pairs, so that `far` allows one; else `tar` is that of a stricter point
    """

    far: float
    threshold: float
    tar: float
    impostors_accepted: int
    tar_low: float
    tar_high: float
    resolvable: bool


def kfold_accuracy(scores_N: Tensor, genuine_N: Tensor, *, folds: int = 10, step: float = 0.001) -> VerificationAccuracy:
    """Accuracy on each fold at the threshold that is best on all other folds.

    Scores are cosines; thresholds run from -1 to 1 in `step` (2 / step is rounded to a whole number of steps). Several best thresholds:
    the lowest. Folds are contiguous and as equal as possible, the first `N mod folds` one longer; LFW's `pairs.txt` order is 10 x 600.

    Raises ValueError: fewer pairs than folds, no genuine or no impostor pair, NaN, or scores that are no cosines.
    Source: LFW view 2; insightface `eval/verification.py`, which thresholds squared distances `2 - 2 cos` in steps of 0.01 instead.
    """
    checked, genuine = checked_scores(scores_N, genuine_N)
    scores = checked.double()
    if not 2 <= folds <= len(scores):
        raise ValueError(f"folds must be in 2..{len(scores)}, the number of pairs, got {folds}: use fewer folds or more pairs")
    if not 0.0 < step <= 1.0:
        raise ValueError(f"step must be in (0, 1], got {step}: 0.001 is usual")
    if scores.abs().max() > 1.0 + _ROUNDING:
        raise ValueError(f"scores must be cosines, got {scores.min():g} .. {scores.max():g}: use arcface_core.angles.rowwise_cosine")
    steps = round(2 / step)
    threshold_M = (2 * torch.arange(steps + 1, dtype=torch.float64) - steps) / steps
    parts = list(zip(scores.tensor_split(folds), genuine.tensor_split(folds), strict=True))
    correct_FM = torch.stack([_count_correct(part, same, threshold_M) for part, same in parts])
    size_F = torch.tensor([len(part) for part, _ in parts])
    best_F = (correct_FM.sum(0) - correct_FM).argmax(dim=1)  # the first, hence lowest, of equals
    accuracy_F = correct_FM.gather(1, best_F[:, None])[:, 0].double() / size_F
    return VerificationAccuracy(float(accuracy_F.mean()), float(accuracy_F.std(correction=0)), accuracy_F, threshold_M[best_F])


def fold_correct(scores_N: Tensor, genuine_N: Tensor, thresholds_F: Tensor) -> Tensor:
    """Whether each pair is judged rightly at its fold's threshold (of `kfold_accuracy`), bool [N]; its mean over equal folds is the accuracy."""
    parts = zip(scores_N.double().tensor_split(len(thresholds_F)), genuine_N.tensor_split(len(thresholds_F)), thresholds_F, strict=True)
    return torch.cat([(scores >= threshold) == genuine for scores, genuine, threshold in parts])


def tar_at_far(scores_N: Tensor, genuine_N: Tensor, fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4)) -> list[OperatingPoint]:
    """Share of genuine pairs accepted at each false accept rate, exact; see OperatingPoint.

    The threshold is the smallest observed score (of any pair) that accepts at most `far * impostors` impostors, never the one nearest to
    `far`, so the rate asked for is never exceeded; ties with the first refused impostor are refused as well.

    Raises ValueError: a rate outside 0..1, no genuine or no impostor pair, or NaN.
    Source: of the interval, Wilson, JASA 1927. IJB scripts take the nearest rate, which is unstable where few impostors pass.
    """
    scores, genuine = checked_scores(scores_N, genuine_N)
    genuine_sorted, impostors = scores[genuine].sort().values, scores[~genuine]
    allowed_F = [allowed_impostors(far, len(impostors)) for far in fars]
    highest = highest_rising(impostors, min(max(allowed_F, default=0) + 1, len(impostors)))
    points = []
    for far, allowed in zip(fars, allowed_F, strict=True):
        refused = float(highest[-1 - allowed]) if allowed < len(impostors) else -math.inf
        above = [part[at] for part in (genuine_sorted, highest) if (at := int(torch.searchsorted(part, refused, right=True))) < len(part)]
        threshold = float(min(above)) if above else math.inf
        accepted, passed = _count_from(genuine_sorted, threshold), _count_from(highest, threshold)
        low, high = wilson(accepted, len(genuine_sorted))
        points.append(OperatingPoint(float(far), threshold, accepted / len(genuine_sorted), passed, low, high, allowed >= 1))
    return points


def auroc(scores_N: Tensor, positive_N: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counting half: the area under the ROC, 0..1, 0.5 = chance. Exact.

    Raises ValueError: no positive or no negative, or NaN. Source: Mann and Whitney 1947.
    """
    scores, positive = checked_scores(scores_N, positive_N, names=("positive", "negative"))
    negatives = scores[~positive].sort().values
    below = torch.searchsorted(negatives, scores[positive]).sum()
    not_above = torch.searchsorted(negatives, scores[positive], right=True).sum()
    return int(below + not_above) / (2 * len(negatives) * int(positive.sum()))


def equal_error_rate(scores_N: Tensor, genuine_N: Tensor) -> float:
    """Where the shares of impostors accepted and of genuine pairs refused are nearest to each other: their mean there, 0..1, lower = better.

    Over all thresholds, one per distinct score and one above; of equally near ones the highest. Raises ValueError: as `roc_points`.
    """
    far_M, tar_M = roc_points(scores_N, genuine_N)
    gap_M = (far_M - (1 - tar_M)).abs()
    at = int((gap_M <= gap_M.min() + 1e-12).nonzero()[0])
    return float(far_M[at] + 1 - tar_M[at]) / 2


def roc_points(scores_N: Tensor, genuine_N: Tensor) -> tuple[Tensor, Tensor]:
    """(far, tar), float64 [M], both rising from 0 to 1: the origin, then one point per distinct score taken as threshold, highest first.

    Raises ValueError: no genuine or no impostor pair, or NaN.
    """
    scores, genuine = checked_scores(scores_N, genuine_N)
    level, place_N = torch.unique(scores, return_inverse=True)
    rates = []
    for chosen in (~genuine, genuine):
        passed = torch.bincount(place_N[chosen], minlength=len(level)).flip(0).cumsum(0).double() / int(chosen.sum())
        rates.append(torch.cat([passed.new_zeros(1), passed]))
    return rates[0], rates[1]


def genuine_impostor_pairs(identity_index_N: Tensor, *, pairs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(left, right, is_genuine): sample numbers int64 [M] and bool [M], genuine and impostor pairs in turn: contiguous folds balance.

    `M = 2 min(pairs // 2, genuine pairs, impostor pairs)`: no pair comes twice, since repeats would fake certainty, hence fewer than
    `pairs` of few samples. Genuine pairs are spread evenly over identities, lest one large identity decide (an identity of n samples has
    n (n - 1) / 2 pairs); impostor pairs are drawn uniformly from all. The same arguments give the same pairs.

    Raises ValueError: `pairs` below 2, or samples among which there is no genuine or no impostor pair.
    """
    if identity_index_N.ndim != 1:
        raise ValueError(f"identity_index_N must be [N], got {tuple(identity_index_N.shape)}")
    if pairs < 2:
        raise ValueError(f"pairs must be at least 2, one genuine and one impostor, got {pairs}")
    identity = identity_index_N.cpu().numpy()
    order = np.argsort(identity, kind="stable")
    size_C = np.unique(identity, return_counts=True)[1].astype(np.int64)
    end_N = np.repeat(np.cumsum(size_C), size_C)
    position_N = np.arange(len(order))
    # Each sample pairs with later ones only: with those up to the end of its identity, or with those beyond it.
    same_N, other_N = end_N - position_N - 1, len(order) - end_N
    wanted = min(pairs // 2, int(same_N.sum()), int(other_N.sum()))
    if wanted == 0:
        lacking = "an identity with two samples" if same_N.sum() == 0 else "a second identity"
        raise ValueError(f"{len(order)} samples of {len(size_C)} identities make no such pair: verification wants {lacking}")
    rng = np.random.default_rng(seed)
    columns = []
    for later_N, first_N, number in (
        (same_N, position_N + 1, _spread_over_identities(size_C * (size_C - 1) // 2, wanted, rng)),
        (other_N, end_N, rng.choice(int(other_N.sum()), wanted, replace=False)),
    ):
        stop_N = np.cumsum(later_N)
        left = np.searchsorted(stop_N, number, side="right")
        right = first_N[left] + number - (stop_N - later_N)[left]
        columns.append((order[left], order[right]))
    (genuine_left, genuine_right), (impostor_left, impostor_right) = columns
    left_M, right_M = np.stack([genuine_left, impostor_left], 1).ravel(), np.stack([genuine_right, impostor_right], 1).ravel()
    return torch.from_numpy(left_M), torch.from_numpy(right_M), torch.tensor([True, False]).repeat(wanted)


def _spread_over_identities(available_C: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`wanted` pair numbers, shuffled: identity c owns `available_C[c]` numbers, after those of c - 1, and gives them round by round."""
    low, high = 0, wanted
    while low < high:  # the number of full rounds
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(available_C, middle).sum() <= wanted else (low, middle - 1)
    quota_C = np.minimum(available_C, low)
    more = np.flatnonzero(available_C > low)
    quota_C[rng.choice(more, wanted - int(quota_C.sum()), replace=False)] += 1
    start_C = np.cumsum(available_C) - available_C
    drawn = [start_C[c] + rng.choice(int(available_C[c]), int(quota_C[c]), replace=False) for c in np.flatnonzero(quota_C)]
    return rng.permutation(np.concatenate(drawn))


def checked_scores(scores_N: Tensor, genuine_N: Tensor, names: tuple[str, str] = ("genuine", "impostor")) -> tuple[Tensor, Tensor]:
    """(scores, genuine) on the CPU, scores in float32 if they are, else in float64. Raises ValueError: other shapes or types, NaN, or none of one kind."""
    if scores_N.ndim != 1 or scores_N.shape != genuine_N.shape or genuine_N.dtype != torch.bool:
        got = f"{tuple(scores_N.shape)} and {genuine_N.dtype} {tuple(genuine_N.shape)}"
        raise ValueError(f"scores must be [N] and {names[0]} bool [N], one of each per pair, got {got}")
    scores, genuine = scores_N.detach().cpu(), genuine_N.cpu()
    if scores.dtype != torch.float32:
        scores = scores.double()
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN: leave out what has no embedding")
    count = int(genuine.sum())
    if count in (0, len(genuine)):
        raise ValueError(f"there are {count} {names[0]} and {len(genuine) - count} {names[1]} scores: at least one of each is wanted")
    return scores, genuine


def highest_rising(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of `scores` [N], lowest first. In place, so that nothing of N is allocated: `scores` are left in another order."""
    values = scores.numpy()
    values.partition(max(0, len(values) - count))
    return torch.from_numpy(np.sort(values[len(values) - count :]))


def _count_correct(scores: Tensor, genuine: Tensor, threshold_M: Tensor) -> Tensor:
    refused_M = torch.searchsorted(scores[~genuine].sort().values, threshold_M)
    lost_M = torch.searchsorted(scores[genuine].sort().values, threshold_M)
    return refused_M + int(genuine.sum()) - lost_M


def _count_from(ascending: Tensor, threshold: float) -> int:
    return len(ascending) - int(torch.searchsorted(ascending, threshold))


def allowed_impostors(far: float, impostors: int) -> int:
    """Largest k with `k / impostors <= far`, compared as divided: `floor(0.29 * 100)` would be 28."""
    if not 0.0 <= far <= 1.0:
        raise ValueError(f"a false accept rate is a share in 0..1, got {far}")
    near = math.floor(far * impostors)
    return max(k for k in range(max(near - 1, 0), min(near + 1, impostors) + 1) if k == 0 or k / impostors <= far)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval (low, high) of a share, from `successes` of `trials` >= 1. Source: Wilson 1927."""
    share, square = successes / trials, _Z_95**2 / trials
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))
