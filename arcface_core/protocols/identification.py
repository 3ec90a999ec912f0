"""One-to-many: is the right entry of the gallery the nearest (rank-k), and does a stranger stay below the threshold (TPIR@FPIR)?

A probe is mated when the gallery holds an entry of its identity. Ties go against the system: a mate is found at rank 1 only when no entry of
another identity scores as high.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from arcface_core.angles import normalize
from arcface_core.protocols.verification import allowed_impostors, wilson

__all__ = ["OpenSetPoint", "RankRate", "Search", "mean_tpir", "rank_rates", "search_gallery", "tpir_at_fpir", "tpir_by_rank_index"]

_SCORES = 1 << 22  # cosines held at a time


class Search(NamedTuple):
    """What became of P probes in a gallery.

    rank_P     rank of the best entry of the probe's identity, from 1: one more than the entries of others that score as high; 0 when it has none
    mate_P     cosine of that entry, NaN when there is none
    other_P    highest cosine of an entry of another identity; -inf when the gallery has no other
    """

    rank_P: Tensor
    mate_P: Tensor
    other_P: Tensor


class RankRate(NamedTuple):
    """Share of mated probes found at rank k or better, 0..1, with its 95 % Wilson interval."""

    k: int
    rate: float
    low: float
    high: float
    mated: int


class OpenSetPoint(NamedTuple):
    """Share of mated probes found at rank 1 above the threshold (TPIR), where at most `fpir` of the non-mated probes score above it.

    `resolvable`: there are at least 1 / fpir non-mated probes. `threshold`: a score above it is a hit; -inf when every non-mated probe may pass.
    """

    fpir: float
    threshold: float
    tpir: float
    low: float
    high: float
    mated: int
    non_mated: int
    resolvable: bool


def search_gallery(probe_PD: Tensor, identity_P: Tensor, gallery_GD: Tensor, identity_G: Tensor) -> Search:
    """Every probe against every entry of the gallery, by cosine, block by block. An identity may have several entries; its best one counts.

    Raises ValueError: an empty gallery, shapes that disagree, or vectors that are not finite.
    """
    if probe_PD.ndim != 2 or gallery_GD.ndim != 2 or probe_PD.shape[1] != gallery_GD.shape[1] or len(gallery_GD) == 0:
        raise ValueError(
            f"probes [P, D] and a gallery [G, D] are wanted, G at least 1; got {tuple(probe_PD.shape)}, {tuple(gallery_GD.shape)}"
        )
    if identity_P.shape != probe_PD.shape[:1] or identity_G.shape != gallery_GD.shape[:1]:
        raise ValueError(f"one identity each is wanted, got {tuple(identity_P.shape)} and {tuple(identity_G.shape)}")
    if not bool(probe_PD.isfinite().all()) or not bool(gallery_GD.isfinite().all()):
        raise ValueError("probes or gallery hold NaN or infinity: the backbone failed on one of these images")
    gallery = normalize(gallery_GD).float()
    parts = []
    step = max(1, _SCORES // len(gallery))
    for start in range(0, len(probe_PD), step):
        cos_PG = (normalize(probe_PD[start : start + step]).float() @ gallery.mT).clamp(-1.0, 1.0)
        own_PG = identity_P[start : start + step, None] == identity_G[None, :]
        mate_P = cos_PG.masked_fill(~own_PG, -math.inf).amax(1)
        others_PG = cos_PG.masked_fill(own_PG, -math.inf)
        has_P = own_PG.any(1)
        rank_P = torch.where(has_P, 1 + (others_PG >= mate_P[:, None]).sum(1), 0)
        parts.append(Search(rank_P, mate_P.where(has_P, torch.nan), others_PG.amax(1)))
    if not parts:
        return Search(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0))
    return Search(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def rank_rates(rank_P: Tensor, ks: Sequence[int] = (1, 5, 10)) -> list[RankRate]:
    """Share of mated probes (rank above 0) found at each rank or better: the points of the CMC curve. Raises ValueError: no mated probe, or k < 1."""
    ranks = rank_P[rank_P > 0]
    if len(ranks) == 0 or any(k < 1 for k in ks):
        raise ValueError(
            f"{len(ranks)} of {len(rank_P)} probes have a mate, and ranks begin at 1, got {list(ks)}: check the gallery's identities"
        )
    found = [int((ranks <= k).sum()) for k in ks]
    return [RankRate(k, hits / len(ranks), *wilson(hits, len(ranks)), len(ranks)) for k, hits in zip(ks, found, strict=True)]


def tpir_at_fpir(search: Search, fpirs: Sequence[float] = (1e-3, 1e-2, 1e-1)) -> list[OpenSetPoint]:
    """TPIR at each FPIR: the threshold is the highest non-mated score that may not pass, so that the rate asked for is never exceeded.

    Raises ValueError: no mated or no non-mated probe, or a rate outside 0..1.
    """
    mated_P, strangers = _parts(search)
    falling = search.other_P[~mated_P].double().sort(descending=True).values
    points = []
    for fpir in fpirs:
        allowed = allowed_impostors(fpir, strangers)
        threshold = float(falling[allowed]) if allowed < strangers else -math.inf
        points.append(_point(search, mated_P, strangers, fpir, threshold, allowed >= 1))
    return points


def tpir_by_rank_index(search: Search, fpirs: Sequence[float] = (1e-3, 1e-2, 1e-1)) -> list[OpenSetPoint]:
    """TPIR as insightface's `ijb_evals.py` takes it: threshold = the non-mated score number `max(int(n fpir) - 1, 0)` from the top, to be exceeded.

    That lets one fewer pass than allowed, and never none. Raises ValueError: as `tpir_at_fpir`. Source: `evaluation_1N` there (PR 1739).
    """
    mated_P, strangers = _parts(search)
    falling = search.other_P[~mated_P].double().sort(descending=True).values
    if any(not 0 <= fpir <= 1 for fpir in fpirs):
        raise ValueError(f"a false positive identification rate is a share in 0..1, got {list(fpirs)}")
    index = [max(int(strangers * fpir) - 1, 0) for fpir in fpirs]
    return [
        _point(search, mated_P, strangers, fpir, float(falling[at]), strangers * fpir >= 1) for fpir, at in zip(fpirs, index, strict=True)
    ]


def mean_tpir(first: Sequence[OpenSetPoint], second: Sequence[OpenSetPoint]) -> list[OpenSetPoint]:
    """Plain mean of TPIR over two galleries, as IJB-B and IJB-C report G1 and G2; thresholds differ, so there is none (NaN).

    The interval adds the two as independent: their probes are disjoint. Raises ValueError: points at different rates.
    """
    if [point.fpir for point in first] != [point.fpir for point in second]:
        raise ValueError("both galleries must be measured at the same rates")
    means = []
    for one, two in zip(first, second, strict=True):
        tpir = (one.tpir + two.tpir) / 2
        low = tpir - math.hypot(one.tpir - one.low, two.tpir - two.low) / 2
        high = tpir + math.hypot(one.high - one.tpir, two.high - two.tpir) / 2
        counts = one.mated + two.mated, min(one.non_mated, two.non_mated)
        means.append(OpenSetPoint(one.fpir, math.nan, tpir, low, high, *counts, one.resolvable and two.resolvable))
    return means


def _parts(search: Search) -> tuple[Tensor, int]:
    mated_P = search.rank_P > 0
    strangers = int((~mated_P).sum())
    if strangers == 0 or strangers == len(mated_P):
        raise ValueError(f"{len(mated_P) - strangers} probes have a mate and {strangers} have none: at least one of each is wanted")
    return mated_P, strangers


def _point(search: Search, mated_P: Tensor, strangers: int, fpir: float, threshold: float, resolvable: bool) -> OpenSetPoint:
    mated = int(mated_P.sum())
    hits = int(((search.rank_P == 1) & (search.mate_P.double() > threshold)).sum())
    return OpenSetPoint(float(fpir), threshold, hits / mated, *wilson(hits, mated), mated, strangers, resolvable)
