"""What the released scripts compute, where it differs from ours: to compare with published figures, digit for digit.

Ours accept at a score >= the threshold and never exceed the rate asked for; insightface's accept below a squared distance from a fixed grid,
and its IJB scripts take the point of the curve whose rate is nearest, above or below. Where the scripts disagree with each other, both stand here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.protocols.verification import VerificationAccuracy, checked_scores, highest_rising

__all__ = ["NearestPoint", "Validation", "kfold_accuracy_by_distance", "tar_at_nearest_far", "val_at_far"]

_MARGIN = 1000  # scores beyond the largest rate wanted that are sorted too


class Validation(NamedTuple):
    """Of VAL@FAR: mean and population standard deviation over folds of the share of genuine pairs accepted, and the mean FAR that came out."""

    val: float
    std: float
    far: float


class NearestPoint(NamedTuple):
    """The point of an ROC whose false accept rate is nearest to the one asked for."""

    far_wanted: float
    far: float
    tar: float


def kfold_accuracy_by_distance(scores_N: Tensor, genuine_N: Tensor, *, folds: int = 10) -> VerificationAccuracy:
    """Accuracy as insightface computes it: squared distances `2 - 2 cos`, thresholds 0, 0.01 ... 3.99, accepted below, the first best of nine folds.

    Folds are those of `sklearn.model_selection.KFold(shuffle=False)`: contiguous, the first `N mod folds` one longer. `thresholds` are distances.
    Raises ValueError: as `kfold_accuracy`. Source: insightface `eval/verification.py`, `calculate_roc`.
    """
    checked, genuine = checked_scores(scores_N, genuine_N)
    if not 2 <= folds <= len(checked):
        raise ValueError(f"folds must be in 2..{len(checked)}, the number of pairs, got {folds}: use fewer folds or more pairs")
    threshold_M = np.arange(0, 4, 0.01)
    distance, same = (2 - 2 * checked.double()).numpy(), genuine.numpy()
    parts = np.array_split(np.arange(len(distance)), folds)
    correct_FM = np.stack([_correct(distance[part], same[part], threshold_M) for part in parts])
    best_F = (correct_FM.sum(0) - correct_FM).argmax(1)
    accuracy_F = correct_FM[np.arange(folds), best_F] / np.array([len(part) for part in parts])
    return VerificationAccuracy(
        float(accuracy_F.mean()), float(accuracy_F.std()), torch.from_numpy(accuracy_F), torch.from_numpy(threshold_M[best_F])
    )


def val_at_far(scores_N: Tensor, genuine_N: Tensor, *, far: float = 1e-3, folds: int = 10) -> Validation:
    """VAL@FAR as insightface computes it: on each fold, at the distance that gives `far` on the others, read off a grid of 0.001 by linear interpolation.

    Where several distances give exactly `far`, the largest; when even the largest of the grid gives less, 0, as there. Their scipy call leaves such ties
    undefined (and refuses them in newer versions). A fold without genuine or without impostor pairs divides by zero there; here it is refused.
    Raises ValueError: a fold without genuine or impostor pairs, `far` outside 0..1, else as `kfold_accuracy`.
    Source: insightface `eval/verification.py`, `calculate_val`.
    """
    checked, genuine = checked_scores(scores_N, genuine_N)
    if not 0 < far <= 1:
        raise ValueError(f"a false accept rate is a share above 0, up to 1; got {far}")
    threshold_M = np.arange(0, 4, 0.001)
    distance, same = (2 - 2 * checked.double()).numpy(), genuine.numpy()
    parts = np.array_split(np.arange(len(distance)), folds)
    if any(same[part].all() or not same[part].any() for part in parts):
        raise ValueError(f"every one of the {folds} folds needs genuine and impostor pairs: keep the order of the protocol's pair list")
    impostors_F = np.array([(~same[part]).sum() for part in parts])
    passed_FM = np.stack([np.searchsorted(np.sort(distance[part][~same[part]]), threshold_M) for part in parts])
    vals, fars = [], []
    for fold, part in enumerate(parts):
        far_train_M = (passed_FM.sum(0) - passed_FM[fold]) / (impostors_F.sum() - impostors_F[fold])
        threshold = float(np.interp(far, far_train_M, threshold_M)) if far_train_M.max() >= far else 0.0
        accepted = distance[part] < threshold
        vals.append(float(accepted[same[part]].mean()))
        fars.append(float(accepted[~same[part]].mean()))
    return Validation(float(np.mean(vals)), float(np.std(vals)), float(np.mean(fars)))


def tar_at_nearest_far(
    scores_N: Tensor, genuine_N: Tensor, fars: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
) -> list[NearestPoint]:
    """TAR at the point of scikit-learn's ROC whose FAR is nearest to each wanted one, as the IJB scripts take it; of equally near ones the larger FAR.

    The curve is the one that `roc_curve` returns: points on a straight line between their neighbours are left out. With N impostors a wanted rate of 1e-6 may
    be met by 0 or 2 of them: say `tar_at_far` beside it. Raises ValueError: as `tar_at_far`.
    Source: insightface `eval_ijbc.py`, scikit-learn `roc_curve(drop_intermediate=True)`.
    """
    checked, genuine = checked_scores(scores_N, genuine_N)
    if any(not 0 <= far <= 1 for far in fars):
        raise ValueError(f"a false accept rate is a share in 0..1, got {list(fars)}")
    scores, same = checked.numpy(), genuine.numpy()
    genuines = int(same.sum())
    impostors = len(same) - genuines
    wanted = int(2 * max(fars, default=0) * impostors) + _MARGIN
    if wanted < impostors:  # only the upper end matters
        above = scores >= float(highest_rising(checked[~genuine], wanted)[0])
        far_M, tar_M, is_end = *_curve(scores[above], same[above], genuines, impostors), False
    else:
        far_M, tar_M, is_end = *_curve(scores, same, genuines, impostors), True
    points = []
    for far in fars:
        distance = np.abs(far_M - far)
        nearest = len(distance) - 1 - int(distance[::-1].argmin())
        if not is_end and nearest == len(far_M) - 1:  # the true neighbour may lie beyond what was sorted
            far_M, tar_M, is_end = *_curve(scores, same, genuines, impostors), True
            distance = np.abs(far_M - far)
            nearest = len(distance) - 1 - int(distance[::-1].argmin())
        points.append(NearestPoint(far, float(far_M[nearest]), float(tar_M[nearest])))
    return points


def _curve(
    scores: NDArray[np.floating], same: NDArray[np.bool_], genuines: int, impostors: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(far, tar) from the highest score down, as scikit-learn's; the last point may be one that the whole curve would leave out."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true_M = np.cumsum(same[order])[ends]
    false_M = 1 + ends - true_M
    if len(ends) > 2:
        kept = np.concatenate([[True], (np.diff(false_M, 2) != 0) | (np.diff(true_M, 2) != 0), [True]])
        true_M, false_M = true_M[kept], false_M[kept]
    return np.append(0, false_M) / impostors, np.append(0, true_M) / genuines


def _correct(distance: NDArray[np.float64], same: NDArray[np.bool_], threshold_M: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs judged rightly at each threshold: genuine ones below it, impostors not."""
    accepted = np.searchsorted(np.sort(distance[same]), threshold_M)
    passed = np.searchsorted(np.sort(distance[~same]), threshold_M)
    right: NDArray[np.int64] = accepted + (~same).sum() - passed
    return right
