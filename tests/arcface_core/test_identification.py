import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcface_core.protocols.identification import (
    Search,
    mean_tpir,
    rank_rates,
    search_gallery,
    tpir_at_fpir,
    tpir_by_rank_index,
)
from arcface_core.protocols.streaming import pair_ranks, search_distractors


def on_circle(degrees: list[float]) -> torch.Tensor:
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], 1).float()


def test_a_toy_gallery_by_hand() -> None:
    """Gallery at 0 (ada), 90 (bea), 180 (cem). A probe of ada at 40 finds her first; one of bea at 130.1 finds cem first; dan has no entry."""
    found = search_gallery(on_circle([40, 135.1, 10]), torch.tensor([0, 1, 3]), on_circle([0, 90, 180]), torch.tensor([0, 1, 2]))
    assert found.rank_P.tolist() == [1, 2, 0]
    assert found.mate_P[:2].tolist() == pytest.approx([math.cos(math.radians(40)), math.cos(math.radians(45.1))], abs=1e-6)
    assert found.mate_P[2].isnan()
    assert found.other_P.tolist() == pytest.approx([math.cos(math.radians(x)) for x in (50, 44.9, 10)], abs=1e-6)
    assert [(one.k, one.rate, one.mated) for one in rank_rates(found.rank_P, (1, 2))] == [(1, 0.5, 2), (2, 1.0, 2)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 999))
def test_ranks_equal_plain_loops_with_ties(probes: int, entries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probe, gallery = (rng.integers(-1, 2, (count, 3)) + np.array([0, 0, 0.001]) for count in (probes, entries))
    who, registered = rng.integers(0, 6, probes), rng.integers(0, 6, entries)
    unit = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in (probe, gallery)]
    found = search_gallery(*(torch.from_numpy(part) for part in (unit[0], who, unit[1], registered)))
    cosines = (unit[0].astype(np.float32) @ unit[1].astype(np.float32).T).tolist()
    for row in range(probes):
        own = [cosines[row][column] for column in range(entries) if registered[column] == who[row]]
        others = [cosines[row][column] for column in range(entries) if registered[column] != who[row]]
        best = max(own, default=math.nan)
        low, high = (1 + sum(other >= best + slack for other in others) for slack in (1e-6, -1e-6))
        assert int(found.rank_P[row]) == 0 if not own else low <= int(found.rank_P[row]) <= high
        assert float(found.other_P[row]) == pytest.approx(max(others, default=-math.inf), abs=1e-6)


def test_open_set_by_hand_both_ways() -> None:
    """Strangers at 0.9, 0.8, 0.5, 0.1. At FPIR 0.25 one may pass: above 0.8, ours. The script takes number max(int(4 x 0.25) - 1, 0) = 0: above 0.9."""
    found = Search(
        torch.tensor([1, 1, 1, 2, 0, 0, 0, 0]),
        torch.tensor([0.95, 0.85, 0.8, 0.99, math.nan, math.nan, math.nan, math.nan]),
        torch.tensor([0.1, 0.1, 0.1, 0.995, 0.5, 0.9, 0.1, 0.8]),
    )
    (ours,) = tpir_at_fpir(found, [0.25])
    assert (ours.tpir, ours.mated, ours.non_mated, ours.resolvable) == (0.5, 4, 4, True) and ours.threshold == pytest.approx(0.8)
    (theirs,) = tpir_by_rank_index(found, [0.25])
    assert theirs.tpir == 0.25 and theirs.threshold == pytest.approx(0.9)
    loose, none = tpir_at_fpir(found, [1.0, 0.1])
    assert (loose.tpir, loose.threshold) == (0.75, -math.inf), "rank 2 is never a hit"
    assert none.tpir == 0.25 and not none.resolvable


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 999), st.floats(0, 1))
def test_open_set_equals_plain_loops(count: int, seed: int, fpir: float) -> None:
    rng = np.random.default_rng(seed)
    rank = rng.integers(0, 3, count)
    rank[:2] = [0, 1]
    mate, other = rng.integers(0, 9, (2, count)) / 8
    found = Search(torch.from_numpy(rank), torch.from_numpy(np.where(rank > 0, mate, np.nan)), torch.from_numpy(other))
    (point,) = tpir_at_fpir(found, [fpir])
    strangers = [other[row] for row in range(count) if rank[row] == 0]
    best = 0
    for threshold in [-math.inf, *sorted(set(strangers))]:
        if sum(score > threshold for score in strangers) / len(strangers) <= fpir:
            best = max(best, sum(rank[row] == 1 and mate[row] > threshold for row in range(count)))
    assert point.tpir == pytest.approx(best / sum(rank > 0), abs=1e-12)


def test_the_mean_of_two_galleries() -> None:
    rank, other = torch.tensor([1, 1, 0, 0]), torch.tensor([0.0, 0.0, 0.6, 0.2])
    first = tpir_at_fpir(Search(rank, torch.tensor([0.9, 0.8, math.nan, math.nan]), other), [0.5])
    second = tpir_at_fpir(Search(rank, torch.tensor([0.9, 0.1, math.nan, math.nan]), other), [0.5])
    (mean,) = mean_tpir(first, second)
    assert mean.tpir == 0.75 and (mean.mated, mean.non_mated) == (4, 2) and mean.low < 0.75 < mean.high and math.isnan(mean.threshold)
    with pytest.raises(ValueError, match="same rates"):
        mean_tpir(first, tpir_at_fpir(Search(rank, torch.tensor([0.9, 0.1, 0, 0]), other), [0.1]))


def test_an_identity_with_several_entries_is_found_by_its_best_and_rotation_changes_nothing() -> None:
    rng = torch.Generator().manual_seed(1)
    probe, gallery = torch.randn(20, 6, generator=rng), torch.randn(30, 6, generator=rng)
    who, registered = torch.arange(20) % 7, torch.arange(30) % 7
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    found, turned = (search_gallery(p, who, g, registered) for p, g in ((probe, gallery), (probe @ turn * 3, gallery @ turn)))
    assert torch.equal(found.rank_P, turned.rank_P) and torch.allclose(found.mate_P, turned.mate_P, atol=1e-5)
    best = torch.nn.functional.cosine_similarity(probe[0][None], gallery[registered == 0]).max()
    assert float(found.mate_P[0]) == pytest.approx(float(best), abs=1e-5)


def test_what_cannot_be_measured_is_refused() -> None:
    vectors, who = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"G at least 1; got \(3, 3\), \(0, 3\)"):
        search_gallery(vectors, who, vectors[:0], who[:0])
    with pytest.raises(ValueError, match="one identity each"):
        search_gallery(vectors, who[:2], vectors, who)
    with pytest.raises(ValueError, match="NaN"):
        search_gallery(vectors * torch.nan, who, vectors, who)
    with pytest.raises(ValueError, match="0 of 3 probes have a mate"):
        rank_rates(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="3 probes have a mate and 0 have none"):
        tpir_at_fpir(search_gallery(vectors, who, vectors, who))
    assert len(search_gallery(vectors[:0], who[:0], vectors, who).rank_P) == 0


def test_a_tie_goes_against_the_system() -> None:
    vector = torch.eye(3)
    found = search_gallery(vector[:1], torch.tensor([7]), vector[[0, 0, 1]], torch.tensor([7, 8, 9]))
    assert found.rank_P.tolist() == [2] and rank_rates(found.rank_P, [1])[0].rate == 0
    nearest = search_distractors(vector[[0, 0]], torch.tensor([7, 7]), [vector[[0, 1]]], ranks=2).nearest_PK
    assert pair_ranks(vector[[0, 0]], torch.tensor([7, 7]), nearest).tolist() == [2, 2]
