"""Evaluation protocols: how well a model tells the same person from another. Vectors and scores in, counted rates out.

verification     pairs, one score each: k-fold accuracy, TAR@FAR, ROC, equal error rate
published        the same as insightface's scripts compute it, where that differs
intervals        bootstrap intervals, also of the difference between two models
templates        IJB templates, videos, and cosines of millions of pairs of them
identification   rank-k, TPIR@FPIR in galleries
streaming        a million distractors, a trillion pairs: by histograms, in blocks
"""

from collections.abc import Callable

from torch import Tensor

from arcface_core.protocols.published import kfold_accuracy_by_distance, tar_at_nearest_far, val_at_far
from arcface_core.protocols.verification import auroc, equal_error_rate, kfold_accuracy, roc_points, tar_at_far

__all__ = ["PROTOCOLS", "Protocol"]

Protocol = Callable[[Tensor, Tensor], object]
"""`protocol(scores_N, genuine_N)`: a measure of N scored pairs, higher score = more alike, genuine = the same person (bool)."""

PROTOCOLS: dict[str, Protocol] = {
    "accuracy": kfold_accuracy,
    "accuracy_by_distance": kfold_accuracy_by_distance,
    "auroc": auroc,
    "eer": equal_error_rate,
    "roc": roc_points,
    "tar@far": tar_at_far,
    "tar@nearest_far": tar_at_nearest_far,
    "val@far": val_at_far,
}
