"""Evaluation protocols: how well scores of pairs tell the same person from another."""

from collections.abc import Callable

from torch import Tensor

from arcface_core.protocols.verification import auroc, kfold_accuracy, roc_points, tar_at_far

__all__ = ["PROTOCOLS", "Protocol"]

Protocol = Callable[[Tensor, Tensor], object]
"""`protocol(scores_N, genuine_N)`: a measure of N scored pairs, higher score = more alike, genuine = the same person (bool)."""

PROTOCOLS: dict[str, Protocol] = {
    "accuracy": kfold_accuracy,
    "auroc": auroc,
    "roc": roc_points,
    "tar@far": tar_at_far,
}
