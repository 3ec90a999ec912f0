"""How sure a measure is, by bootstrap over pairs: 95 % intervals of one model, and of the difference between two on the same pairs.

A resample draws as many genuine and as many impostor pairs as there are, with replacement. Pairs that share a person or a picture are not
independent, which no resampling of pairs can know: where few people make many pairs the true interval is wider.
Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; percentile intervals.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.protocols.verification import allowed_impostors, checked_scores, highest_rising

__all__ = ["Interval", "accuracy_difference", "tar_difference", "tar_interval"]

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
_SPREAD = 8  # standard deviations of the number of impostors at the threshold that a resample is given room for


class Interval(NamedTuple):
    """A measure, and the range that holds the middle 95 % of its resamples."""

    value: float
    low: float
    high: float


def tar_interval(scores_N: Tensor, genuine_N: Tensor, far: float, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """TAR at `far` (that of `tar_at_far`), with the uncertainty of the threshold in its interval, which Wilson's leaves out.

    No pair is drawn: of n impostors sorted from the top, the k-th of a resample is the `ceil(n U)`-th, U distributed as Beta(k, n - k + 1), and the genuine
    pairs above it are binomial. So 15 million pairs cost as little as a thousand. Raises ValueError: as `tar_at_far`.
    """
    scores, genuine = checked_scores(scores_N, genuine_N)
    own, others = scores[genuine].sort().values.numpy(), scores[~genuine]
    allowed = allowed_impostors(far, len(others))
    if allowed == len(others):
        return Interval(1.0, 1.0, 1.0)
    rng = np.random.default_rng(seed)
    rank_R = np.maximum(1, np.ceil(len(others) * rng.beta(allowed + 1, len(others) - allowed, resamples))).astype(np.int64)
    falling = highest_rising(others, int(max(rank_R.max(), allowed + 1))).numpy()[::-1]
    share_R = _share_above(own, falling[rank_R - 1])
    tar_R = rng.binomial(len(own), share_R) / len(own)
    return _interval(float(_share_above(own, falling[allowed : allowed + 1])[0]), tar_R)


def tar_difference(
    scores_N: Tensor, other_N: Tensor, genuine_N: Tensor, far: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """TAR at `far` by `other_N` less that by `scores_N`: two models on the same pairs, resampled together, each with its own threshold.

    Only impostors that could be at a threshold of either are drawn one by one. Raises ValueError: as `tar_at_far`, or different lengths.
    """
    if scores_N.shape != other_N.shape:
        raise ValueError(f"both models must have scored the same pairs, got {tuple(scores_N.shape)} and {tuple(other_N.shape)} scores")
    first, genuine = checked_scores(scores_N, genuine_N)
    second, _ = checked_scores(other_N, genuine_N)
    own = [part[genuine].numpy() for part in (first, second)]
    others = [part[~genuine].numpy() for part in (first, second)]
    total = len(others[0])
    allowed = allowed_impostors(far, total)
    if allowed == total:
        return Interval(0.0, 0.0, 0.0)
    room = min(total, int(allowed + 1 + _SPREAD * (np.sqrt(allowed + 1) + _SPREAD)))
    top = np.zeros(total, bool)
    for part in others:
        top[np.argpartition(part, total - room)[total - room :]] = True
    tail = [part[top] for part in others]
    order = [np.argsort(-part, kind="stable") for part in tail]
    rng = np.random.default_rng(seed)
    inside_R = rng.binomial(total, len(tail[0]) / total, resamples)
    found = np.empty(resamples)
    for number in range(resamples):
        drawn = np.bincount(rng.integers(0, len(tail[0]), inside_R[number]), minlength=len(tail[0]))
        accepted = [mine > _refused(part, by, drawn, allowed) for mine, part, by in zip(own, tail, order, strict=True)]
        better, worse = int((accepted[1] & ~accepted[0]).sum()), int((accepted[0] & ~accepted[1]).sum())
        same = len(own[0]) - better - worse
        more, less, _ = rng.multinomial(len(own[0]), np.array([better, worse, same]) / len(own[0]))
        found[number] = (more - less) / len(own[0])
    once = np.ones(len(tail[0]), np.int64)
    tar = [(mine > _refused(part, by, once, allowed)).mean() for mine, part, by in zip(own, tail, order, strict=True)]
    return _interval(float(tar[1] - tar[0]), found)


def accuracy_difference(correct_N: Tensor, other_N: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Share of pairs that `other_N` judges rightly less that of `correct_N` (bool [N], of `fold_correct`): two models on the same pairs.

    The thresholds stand; pairs are resampled, which for a share is a multinomial draw of those that only one judges rightly.
    Raises ValueError: other than two bool [N], N >= 1.
    """
    if correct_N.ndim != 1 or correct_N.shape != other_N.shape or len(correct_N) == 0 or {correct_N.dtype, other_N.dtype} != {torch.bool}:
        raise ValueError(
            f"both must be bool [N], got {correct_N.dtype} {tuple(correct_N.shape)} and {other_N.dtype} {tuple(other_N.shape)}"
        )
    count = len(correct_N)
    better, worse = int((other_N & ~correct_N).sum()), int((correct_N & ~other_N).sum())
    shares = np.array([better, worse, count - better - worse]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, resamples)
    return _interval((better - worse) / count, (drawn[:, 0] - drawn[:, 1]) / count)


def _refused(part: NDArray[np.floating], falling: NDArray[np.int64], drawn: NDArray[np.int64], allowed: int) -> float:
    """The score of the impostor after the `allowed` highest, each counted as often as it was drawn; it and its ties are refused."""
    counted = np.cumsum(drawn[falling])
    at = int(np.searchsorted(counted, allowed + 1))
    return float(part[falling[min(at, len(falling) - 1)]])


def _share_above(rising: NDArray[np.floating], refused: NDArray[np.floating]) -> NDArray[np.float64]:
    above: NDArray[np.float64] = (len(rising) - np.searchsorted(rising, refused, side="right")) / len(rising)
    return above


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, _PERCENTILES)
    return Interval(value, float(low), float(high))
