"""Verification over more pairs than fit anywhere: scores are counted into fine bins, block by block, and no N x N matrix ever exists.

2^20 bins over [-1, 1] are 2e-6 wide: the operating point read off them is a true one (its threshold is an edge, its counts are exact), at most one bin
stricter than the best. Below a `floor`, where no threshold of a small rate can lie, impostors are only counted, which saves half of the time.
Histograms of parts add up, so that workers can each take some rows.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import normalize
from arcface_core.protocols.verification import OperatingPoint, allowed_impostors, wilson

__all__ = [
    "BINS",
    "DistractorSearch",
    "ScoreHistogram",
    "all_pairs_histogram",
    "histogram_tar_at_far",
    "merged",
    "pair_ranks",
    "replaced_by_centers",
    "search_distractors",
    "suggested_floor",
]

BINS = 1 << 20
_BLOCK = 2048
_SPREAD = 6  # standard deviations that the floor of a sample stays below the one wanted


class ScoreHistogram(NamedTuple):
    """How many scores of each kind lie in each of BINS equal bins over [-1, 1], int64; impostors below `floor` (a bin's edge) are all in bin 0."""

    genuine_M: NDArray[np.int64]
    impostor_M: NDArray[np.int64]
    floor: float


class DistractorSearch(NamedTuple):
    """`nearest_PK`: the K highest cosines of each probe with a distractor, highest first (-inf when there are fewer), and all scores by bins."""

    nearest_PK: Tensor
    histogram: ScoreHistogram


class _Counter:
    """Counts scores into bins; they are collected first, since a count costs as much as there are bins."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self._held: list[NDArray[np.float32]] = []
        self._size = 0

    def add(self, scores: NDArray[np.float32]) -> None:
        self._held.append(scores)
        self._size += len(scores)
        if self._size >= BINS:
            self.settle()

    def settle(self) -> NDArray[np.int64]:
        if self._held:
            self.counts += np.bincount(_bin_of(np.concatenate(self._held)), minlength=BINS)
        self._held, self._size = [], 0
        return self.counts


def all_pairs_histogram(
    unit_ND: Tensor, identity_N: Tensor, *, floor: float = -1.0, rows: tuple[int, int] | None = None, block: int = _BLOCK
) -> ScoreHistogram:
    """Scores of all pairs i < j: genuine where the identity is the same, impostors else. Rows are unit vectors, sorted by identity.

    `rows` (first, end): only pairs whose i is among these, for one of several workers. Trillion-Pairs and MFR-ALL are measured so.
    Raises ValueError: identities that are not sorted, shapes that disagree, or vectors that are not finite.
    """
    if unit_ND.ndim != 2 or identity_N.shape != unit_ND.shape[:1] or bool((identity_N.diff() < 0).any()):
        raise ValueError("vectors must be [N, D] and identities [N] in rising order: sort both by identity first")
    if not bool(unit_ND.isfinite().all()):
        raise ValueError("the vectors hold NaN or infinity: the backbone failed on one of these images")
    first, end = (0, len(unit_ND)) if rows is None else rows
    genuine, impostor = _Counter(), _Counter()
    edge, below = _edge(floor), 0
    for top in range(first, end, block):
        bottom = min(top + block, end)
        for left in range(top, len(unit_ND), block):
            right = min(left + block, len(unit_ND))
            cos = (unit_ND[top:bottom] @ unit_ND[left:right].mT).cpu()
            pairs = (bottom - top) * (right - left)
            if left < bottom or identity_N[left] == identity_N[bottom - 1]:
                later = torch.arange(left, right)[None, :] > torch.arange(top, bottom)[:, None]
                same = (identity_N[top:bottom, None] == identity_N[None, left:right]).cpu()
                genuine.add(cos[same & later].numpy())
                scores = cos[~same & later].numpy()
                pairs = len(scores)
            else:
                scores = cos.numpy().reshape(-1)
            kept = _from(scores, edge)
            below += pairs - len(kept)
            impostor.add(kept)
    return _histogram(genuine, impostor, below, edge)


def search_distractors(
    probe_PD: Tensor, identity_P: Tensor, distractors: Iterable[Tensor], *, ranks: int = 10, floor: float = -1.0
) -> DistractorSearch:
    """MegaFace's challenge 1 in one pass over blocks of distractors [M, D]: the nearest of each probe, and the histogram of verification.

    Genuine pairs are the probes of one identity with each other, impostors every probe with every distractor. Of the distractors one block is held at a
    time. Raises ValueError: shapes that disagree, `ranks` below 1, vectors that are not finite, or no distractor.
    """
    if probe_PD.ndim != 2 or identity_P.shape != probe_PD.shape[:1] or ranks < 1:
        raise ValueError(
            f"probes [P, D], identities [P] and ranks from 1 are wanted, got {tuple(probe_PD.shape)}, {tuple(identity_P.shape)}, {ranks}"
        )
    probes = normalize(probe_PD).float()
    nearest_PK = torch.full((len(probes), ranks), -math.inf, device=probes.device)
    genuine, impostor = _Counter(), _Counter()
    edge, below, seen = _edge(floor), 0, 0
    for raw in distractors:
        if raw.ndim != 2 or raw.shape[1] != probes.shape[1]:
            raise ValueError(f"distractors must be [M, {probes.shape[1]}], got {tuple(raw.shape)}: embed both with the same backbone")
        if not bool(raw.isfinite().all()):
            raise ValueError(f"distractors {seen}..{seen + len(raw) - 1} hold NaN or infinity: leave them out")
        seen += len(raw)
        keys = normalize(raw.to(probes.device)).float()
        for top in range(0, len(probes), _BLOCK):
            cos = (probes[top : top + _BLOCK] @ keys.mT).clamp_(-1.0, 1.0)
            _keep_nearest(nearest_PK[top : top + _BLOCK], cos)
            kept = _from(cos.cpu().numpy().reshape(-1), edge)
            below += cos.numel() - len(kept)
            impostor.add(kept)
    if seen == 0:
        raise ValueError("there is no distractor: give the list of the set's distractors")
    for top in range(0, len(probes), _BLOCK):
        same = identity_P[top : top + _BLOCK, None] == identity_P[None, :]
        later = torch.arange(len(probes))[None, :] > torch.arange(top, min(top + _BLOCK, len(probes)))[:, None]
        genuine.add((probes[top : top + _BLOCK] @ probes.mT).clamp_(-1.0, 1.0).cpu()[same.cpu() & later].numpy())
    return DistractorSearch(nearest_PK.cpu(), _histogram(genuine, impostor, below, edge))


def pair_ranks(probe_PD: Tensor, identity_P: Tensor, nearest_PK: Tensor) -> Tensor:
    """Rank, int64 [ordered genuine pairs], of the second probe of each pair among the first one's distractors, from 1; K + 1 means "beyond K".

    As in MegaFace, a gallery is all distractors and one mate; a distractor that scores as high as the mate stands before it.
    """
    probes = normalize(probe_PD).float()
    found = []
    for top in range(0, len(probes), _BLOCK):
        same = (identity_P[top : top + _BLOCK, None] == identity_P[None, :]).cpu()
        same[torch.arange(len(same)), torch.arange(top, top + len(same))] = False
        row, column = same.nonzero(as_tuple=True)
        mate = (probes[top : top + _BLOCK] @ probes.mT).clamp_(-1.0, 1.0).cpu()[row, column]
        found.append(1 + (nearest_PK[top + row] >= mate[:, None]).sum(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def replaced_by_centers(probe_PD: Tensor, identity_P: Tensor, noisy_P: Tensor, *, seed: int = 0) -> Tensor:
    """Unit probes of which the noisy are replaced by the sum of their identity's others plus U(-0.001, 0.001), as published refined results have it.

    That makes the noisy probes the easiest of all, so such results are not comparable with those that leave them out. Raises ValueError when all
    probes of an identity are noisy. Source: insightface `_evaluation_/megaface/remove_noises.py`.
    """
    probes = normalize(probe_PD).float().clone()
    classes, place_P = torch.unique(identity_P, return_inverse=True)
    center_CD = torch.zeros(len(classes), probes.shape[1]).index_add_(0, place_P[~noisy_P], probes[~noisy_P])
    lost = [int(classes[place]) for place in torch.unique(place_P[noisy_P]) if not bool((place_P[~noisy_P] == place).any())]
    if lost:
        raise ValueError(f"identities {lost[:3]} have noisy probes only: the list of noise is of another set")
    jitter = np.random.default_rng(seed).uniform(-0.001, 0.001, (int(noisy_P.sum()), probes.shape[1]))
    probes[noisy_P] = normalize(center_CD[place_P[noisy_P]] + torch.from_numpy(jitter).float())
    return probes


def suggested_floor(unit_ND: Tensor, identity_N: Tensor, *, far: float, sample: int = 4096, seed: int = 0) -> float:
    """A floor that the threshold of `far` lies above: the impostor score that four times `far` (and some deviations) exceed, in a sample of rows.

    -1, which means no floor, where the sample cannot say.
    """
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(unit_ND))[:sample])
    unit, identity = unit_ND[chosen], identity_N[chosen]
    cos = (unit @ unit.mT).cpu()[(identity[:, None] != identity[None, :]).cpu()]
    above = int(4 * far * len(cos) + _SPREAD * math.sqrt(4 * far * len(cos)) + _SPREAD**2)
    return float(cos.kthvalue(len(cos) - above).values) if 0 < above < len(cos) // 4 else -1.0


def merged(parts: Sequence[ScoreHistogram]) -> ScoreHistogram:
    """The histogram of all parts together. Raises ValueError: no part, or parts with different floors."""
    if not parts or len({part.floor for part in parts}) != 1:
        raise ValueError("histograms of one floor are wanted, at least one: give every worker the same floor")
    return ScoreHistogram(sum(part.genuine_M for part in parts), sum(part.impostor_M for part in parts), parts[0].floor)  # type: ignore[arg-type]


def histogram_tar_at_far(histogram: ScoreHistogram, fars: Sequence[float]) -> list[OperatingPoint]:
    """TAR at each FAR, at the lowest edge of a bin where no more than `far` of the impostors are accepted; see OperatingPoint.

    Raises ValueError: no genuine or no impostor pair, a rate outside 0..1, or a threshold below the floor.
    """
    genuine, impostors = int(histogram.genuine_M.sum()), int(histogram.impostor_M.sum())
    if genuine == 0 or impostors == 0:
        raise ValueError(f"there are {genuine} genuine and {impostors} impostor pairs: at least one of each is wanted")
    passed_M = np.append(histogram.impostor_M[::-1].cumsum()[::-1], 0)  # accepted at the lower edge of bin m
    accepted_M = np.append(histogram.genuine_M[::-1].cumsum()[::-1], 0)
    points = []
    for far in fars:
        allowed = allowed_impostors(far, impostors)
        at = int(np.searchsorted(-passed_M, -allowed))  # the first edge at which so few pass
        threshold = at * 2 / BINS - 1
        if threshold <= histogram.floor and histogram.floor > -1 and allowed < impostors:
            raise ValueError(f"the threshold of {far:g} lies below the floor {histogram.floor:.3f}: count again with a lower floor")
        accepted = int(accepted_M[at])
        ends = wilson(accepted, genuine)
        points.append(OperatingPoint(float(far), threshold, accepted / genuine, int(passed_M[at]), *ends, allowed >= 1))
    return points


def _bin_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    places: NDArray[np.int64] = ((scores.astype(np.float64) + 1) * (BINS / 2)).astype(np.int64).clip(0, BINS - 1)
    return places


def _edge(floor: float) -> float:
    return math.floor((floor + 1) * BINS / 2) * 2 / BINS - 1


def _from(scores: NDArray[np.float32], edge: float) -> NDArray[np.float32]:
    return scores if edge <= -1 else scores[np.flatnonzero(scores >= np.float32(edge))]


def _keep_nearest(nearest_BK: Tensor, cos_BM: Tensor) -> None:
    """Merge a block's cosines into the K highest of each row, in place: only rows that hold something higher are sorted."""
    rows = (cos_BM.amax(1) > nearest_BK[:, -1]).nonzero()[:, 0]
    if len(rows):
        both = torch.cat([nearest_BK[rows], cos_BM[rows]], 1)
        nearest_BK[rows] = both.topk(nearest_BK.shape[1], dim=1).values


def _histogram(genuine: _Counter, impostor: _Counter, below: int, edge: float) -> ScoreHistogram:
    counts = impostor.settle()
    counts[0] += below
    return ScoreHistogram(genuine.settle(), counts, edge)
