"""Scores and searches to rows of the metrics table, each with its 95 % interval, operating point and numbers of pairs; and what a comparison of two models needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.protocols.identification import Search, mean_tpir, rank_rates, tpir_at_fpir, tpir_by_rank_index
from arcface_core.protocols.intervals import RESAMPLES, Interval, accuracy_difference, tar_difference, tar_interval
from arcface_core.protocols.published import kfold_accuracy_by_distance, tar_at_nearest_far, val_at_far
from arcface_core.protocols.streaming import BINS, DistractorSearch, ScoreHistogram, histogram_tar_at_far
from arcface_core.protocols.verification import (
    OperatingPoint,
    auroc,
    equal_error_rate,
    fold_correct,
    kfold_accuracy,
    tar_at_far,
    wilson,
)

FARS = (1e-4, 1e-3, 1e-2, 1e-1)
IJB_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
SCORE_BINS = 200
_CURVE_POINTS = 300
_FEWEST_RESAMPLES = 200
_DRAWS = 2e8

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What one model reached on one dataset."""

    dataset: str
    protocol: str
    rows: list[Row]
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(far, tar), rising; empty where there is no verification."""
    counts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    """Genuine and impostor scores in SCORE_BINS equal bins over [-1, 1]."""
    scores_N: Tensor | None = None
    genuine_N: Tensor | None = None
    fars: Sequence[float] = ()
    hits: dict[str, Tensor] = field(default_factory=dict)
    """Of metrics that are a share of pairs or probes: which of them are right, bool."""


def measure_pairs(
    dataset: str, scores_N: Tensor, genuine_N: Tensor, *, folds: int, protocol: str, fars: Sequence[float] = FARS
) -> Measured:
    """Accuracy by folds, ours and insightface's; VAL@FAR where every fold has both kinds; TAR@FAR; AUROC; equal error rate."""
    genuine, impostor = int(genuine_N.sum()), int((~genuine_N).sum())
    pairs = {"genuine": genuine, "impostor": impostor}
    fold = kfold_accuracy(scores_N, genuine_N, folds=folds)
    correct = fold_correct(scores_N, genuine_N, fold.thresholds)
    low, high = wilson(int(correct.sum()), len(correct))
    rows = [
        {
            "metric": "accuracy",
            "value": fold.mean,
            "low": min(low, fold.mean),
            "high": max(high, fold.mean),
            "threshold": float(fold.thresholds.mean()),
        },
        {"metric": "accuracy_std", "value": fold.std},
        {"metric": "accuracy_by_distance", "value": kfold_accuracy_by_distance(scores_N, genuine_N, folds=folds).mean},
        {"metric": "auroc", "value": auroc(scores_N, genuine_N)},
        {"metric": "eer", "value": equal_error_rate(scores_N, genuine_N)},
    ]
    if all(0 < int(part.sum()) < len(part) for part in genuine_N.tensor_split(folds)):
        val = val_at_far(scores_N, genuine_N, far=1e-3, folds=folds)
        rows.append(
            {
                "metric": "val@far=0.001",
                "value": val.val,
                "low": max(0.0, val.val - val.std),
                "high": min(1.0, val.val + val.std),
                "far": val.far,
            }
        )
    rows += tar_rows(scores_N, genuine_N, fars)
    return _verified(dataset, protocol, scores_N, genuine_N, fars, [row | pairs for row in rows], {"accuracy": correct})


def measure_templates(dataset: str, scores_N: Tensor, genuine_N: Tensor, *, protocol: str) -> Measured:
    """TAR at IJB's rates: the largest with a FAR no higher (ours), and that at the nearest FAR (the released script's)."""
    pairs = {"genuine": int(genuine_N.sum()), "impostor": int((~genuine_N).sum())}
    rows = tar_rows(scores_N, genuine_N, IJB_FARS)
    rows += [
        {"metric": f"tar@nearest_far={point.far_wanted:g}", "value": point.tar, "far": point.far}
        for point in tar_at_nearest_far(scores_N, genuine_N, IJB_FARS)
    ]
    return _verified(dataset, protocol, scores_N, genuine_N, IJB_FARS, [row | pairs for row in rows], {})


def tar_rows(scores_N: Tensor, genuine_N: Tensor, fars: Sequence[float]) -> list[Row]:
    """TAR at each rate with its bootstrap interval; no value where the impostor pairs are too few to say."""
    return [
        _tar_row(point) | ({} if not point.resolvable else _ends(tar_interval(scores_N, genuine_N, point.far)))
        for point in tar_at_far(scores_N, genuine_N, fars)
    ]


def measure_histogram(dataset: str, histogram: ScoreHistogram, fars: Sequence[float], *, protocol: str) -> Measured:
    """TAR@FAR of pairs that were only counted."""
    genuine, impostor = int(histogram.genuine_M.sum()), int(histogram.impostor_M.sum())
    rows = [_tar_row(point) | {"genuine": genuine, "impostor": impostor} for point in histogram_tar_at_far(histogram, fars)]
    reached = histogram_tar_at_far(histogram, np.geomspace(min(1 / impostor, max(fars)), max(fars), _CURVE_POINTS).tolist())
    curve = [(point.impostors_accepted / impostor, point.tar) for point in reached]
    coarse = [
        counts[: BINS // SCORE_BINS * SCORE_BINS].reshape(SCORE_BINS, -1).sum(1) for counts in (histogram.genuine_M, histogram.impostor_M)
    ]
    return Measured(dataset, protocol, rows, curve, (coarse[0], coarse[1]), fars=fars)


def measure_distractors(dataset: str, found: DistractorSearch, rank_P: Tensor, *, ranks: Sequence[int], protocol: str) -> Measured:
    """MegaFace's Id (rank-k) and Ver (TAR@FAR=1e-6)."""
    verified = measure_histogram(dataset, found.histogram, (1e-6,), protocol=protocol)
    rows = [_rank_row(one) for one in rank_rates(rank_P, ranks)]
    hits = {f"rank-{k}": rank_P <= k for k in ranks}
    return Measured(dataset, protocol, rows + verified.rows, verified.curve, verified.counts, fars=verified.fars, hits=hits)


def measure_galleries(dataset: str, searches: dict[str, Search], *, protocol: str) -> list[Measured]:
    """Rank-k and TPIR@FPIR of each gallery, and their mean: of ranks over all mated probes, of TPIR over the galleries, as `ijb_evals.py`."""
    found, open_set = [], []
    for gallery, search in searches.items():
        open_set.append((tpir_at_fpir(search, FPIRS), tpir_by_rank_index(search, FPIRS)))
        found.append(_searched(f"{dataset} {gallery}", protocol, search.rank_P, *open_set[-1]))
    if len(searches) > 1:
        rank_P = torch.cat([search.rank_P for search in searches.values()])
        means = [mean_tpir(*points[:2]) for points in zip(*open_set, strict=True)]
        found.append(_searched(f"{dataset} mean", protocol, rank_P, *means))
    return found


def differences(first: Measured, second: Measured) -> list[Row]:
    """The second less the first, on the same pairs or probes, with the 95 % interval of a paired bootstrap: rows of the differences table."""
    value_of = [{row["metric"]: row["value"] for row in one.rows} for one in (first, second)]
    found: dict[str, Interval] = {
        metric: accuracy_difference(right, second.hits[metric])
        for metric, right in first.hits.items()
        if len(right) == len(second.hits[metric])
    }
    if first.scores_N is not None and second.scores_N is not None and first.genuine_N is not None:
        impostors = int((~first.genuine_N).sum())
        for far in first.fars:
            metric = f"tar@far={far:g}"
            if value_of[0][metric] is not None:
                times = int(min(RESAMPLES, max(_FEWEST_RESAMPLES, _DRAWS / (far * impostors + 1))))
                found[metric] = tar_difference(first.scores_N, second.scores_N, first.genuine_N, far, resamples=times)
    rows = []
    for metric, one in value_of[0].items():
        other = value_of[1].get(metric)
        if one is None or other is None:
            continue
        ends = _ends(found[metric]) if metric in found else {}
        rows.append(
            {"dataset": first.dataset, "metric": metric, "first_value": one, "second_value": other, "difference": other - one} | ends
        )
    return rows


def gap_recovered(noisy: float, purified: float, truth: float) -> float | None:
    """Share of the way from the noisy-trained to the truth-trained model that purification went: 1 is all of it. None where truth is no better than noise."""
    return (purified - noisy) / (truth - noisy) if truth > noisy else None


def _verified(
    dataset: str, protocol: str, scores_N: Tensor, genuine_N: Tensor, fars: Sequence[float], rows: list[Row], hits: dict[str, Tensor]
) -> Measured:
    impostors = int((~genuine_N).sum())
    wanted = np.unique(np.concatenate([np.geomspace(1 / impostors, 1, _CURVE_POINTS), np.linspace(0, 1, _CURVE_POINTS // 3)]))
    curve = sorted(
        {(point.impostors_accepted / impostors, point.tar) for point in tar_at_far(scores_N, genuine_N, wanted.clip(max=1).tolist())}
    )
    counts = [np.histogram(scores_N[chosen].numpy(), SCORE_BINS, (-1, 1))[0].astype(np.int64) for chosen in (genuine_N, ~genuine_N)]
    return Measured(dataset, protocol, rows, curve, (counts[0], counts[1]), scores_N, genuine_N, fars, hits)


def _tar_row(point: OperatingPoint) -> Row:
    said = {"value": point.tar, "low": point.tar_low, "high": point.tar_high} if point.resolvable else {"value": None}
    return {
        "metric": f"tar@far={point.far:g}",
        **said,
        "far": point.far,
        "threshold": point.threshold if np.isfinite(point.threshold) else None,
    }


def _rank_row(one: Any) -> Row:
    return {"metric": f"rank-{one.k}", "value": one.rate, "low": one.low, "high": one.high, "genuine": one.mated}


def _searched(dataset: str, protocol: str, rank_P: Tensor, ours: Sequence[Any], theirs: Sequence[Any]) -> Measured:
    rows = [_rank_row(one) for one in rank_rates(rank_P, RANKS)]
    for name, points in (("tpir@fpir", ours), ("tpir@rank_index_fpir", theirs)):
        for point in points:
            said = {"value": point.tpir, "low": point.low, "high": point.high} if point.resolvable else {"value": None}
            threshold = point.threshold if np.isfinite(point.threshold) else None
            counts = {"genuine": point.mated, "impostor": point.non_mated}
            rows.append({"metric": f"{name}={point.fpir:g}", **said, "far": point.fpir, "threshold": threshold, **counts})
    mated = rank_P[rank_P > 0]
    return Measured(dataset, protocol, rows, hits={f"rank-{k}": mated <= k for k in RANKS})


def _ends(interval: Interval) -> Row:
    return {"low": interval.low, "high": interval.high}
