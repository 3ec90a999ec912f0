"""Votes, angles and rivals against float64 loops written from the paper (section 3.2), and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcface_core.noise.centers import (
    angle_to,
    cluster_centers,
    cluster_groups,
    dominant,
    dominant_centers,
    nearest_subcenter,
    random_other,
    vote,
    with_direction,
)
from arcface_core.noise.rivals import RivalSearch


def angle(a: list[float], b: list[float]) -> float:
    dot, size = sum(x * y for x, y in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
    return math.degrees(math.acos(max(-1.0, min(1.0, dot / size))))


def planted(seed: int, samples: int = 40, classes: int = 5, k: int = 3, dim: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, k, dim, generator=generator, dtype=torch.float64)
    index = torch.randint(classes, (samples,), generator=generator)
    return torch.randn(samples, dim, generator=generator, dtype=torch.float64), index, centers


def dominant_of(vectors: Tensor, index: Tensor, centers: Tensor) -> Tensor:
    nearest, _ = nearest_subcenter(vectors, index, centers)
    return dominant(vote(nearest, index, len(centers), centers.shape[1]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_vote_and_angles_equal_plain_loops(seed: int, k: int) -> None:
    vectors, index, centers = planted(seed, k=k)
    nearest, nearest_deg = nearest_subcenter(vectors, index, centers)
    votes = [[0] * k for _ in range(len(centers))]
    for n, (vector, own) in enumerate(zip(vectors.tolist(), index.tolist(), strict=True)):
        angles = [angle(vector, centers[own, j].tolist()) for j in range(k)]
        assert int(nearest[n]) == angles.index(min(angles))
        assert float(nearest_deg[n]) == pytest.approx(min(angles), abs=1e-6)
        votes[own][int(nearest[n])] += 1
    assert vote(nearest, index, len(centers), k).tolist() == votes
    wanted = [row.index(max(row)) if sum(row) else -1 for row in votes]
    chosen = dominant(torch.tensor(votes))
    assert chosen.tolist() == wanted
    center_CD = dominant_centers(centers, chosen)
    for n, own in enumerate(index.tolist()):
        assert float(angle_to(vectors, index, center_CD)[n]) == pytest.approx(
            angle(vectors[n].tolist(), centers[own, wanted[own]].tolist()), abs=1e-6
        )
        others = [
            (angle(vectors[n].tolist(), centers[c, wanted[c]].tolist()), c) for c in range(len(centers)) if c != own and wanted[c] >= 0
        ]
        wanted_deg, wanted_at = zip(*sorted(others)[:2], strict=True)
        everybody = torch.ones(len(centers), dtype=torch.bool)
        found, found_deg = RivalSearch.over(center_CD.float(), everybody).nearest(vectors.float(), index, 2)
        assert found[n, : len(wanted_at)].tolist() == list(wanted_at)
        assert found_deg[n, : len(wanted_deg)].tolist() == pytest.approx(wanted_deg, abs=1e-3)


def test_ties_go_to_the_lowest_subcenter() -> None:
    centers = torch.tensor([[[1.0, 0], [1.0, 0], [0, 1.0]]])
    assert nearest_subcenter(torch.tensor([[1.0, 0]]), torch.tensor([0]), centers)[0].tolist() == [0]
    assert dominant(torch.tensor([[0, 3, 3], [2, 2, 2], [0, 0, 0]])).tolist() == [1, 0, -1]


def test_an_identity_without_samples_has_no_center_and_is_nobodys_rival() -> None:
    centers = torch.eye(3)[:, None, :]
    chosen = dominant_centers(centers, torch.tensor([0, -1, 0]))
    assert chosen[1].tolist() == [0, 0, 0]
    found, _ = RivalSearch.over(chosen, torch.ones(3, dtype=torch.bool)).nearest(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([0]), 1)
    assert found.tolist() == [[2]]


def test_what_has_no_direction_takes_no_part() -> None:
    vectors = torch.tensor([[0.0, 0], [float("nan"), 1], [1.0, 0]])
    index = torch.tensor([0, 0, 0])
    centers = torch.tensor([[[1.0, 0]], [[0.0, 1]]])
    nearest, degrees = nearest_subcenter(vectors, index, centers)
    assert nearest.tolist() == [-1, -1, 0] and degrees[:2].isnan().all()
    assert vote(nearest, index, 2, 1).tolist() == [[1], [0]]
    found, far = RivalSearch.over(centers[:, 0], torch.ones(2, dtype=torch.bool)).nearest(vectors, index, 1)
    assert found.tolist() == [[-1], [-1], [1]] and far[:2].isnan().all()


def test_one_identity_has_no_rival() -> None:
    alone = RivalSearch.over(torch.tensor([[1.0, 0]]), torch.tensor([True]))
    found, far = alone.nearest(torch.tensor([[1.0, 0]]), torch.tensor([0]), 2)
    assert found.tolist() == [[-1, -1]] and bool(far.isnan().all())
    assert bool(alone.to_random_other(torch.tensor([[1.0, 0]]), torch.tensor([0]), torch.tensor([3])).isnan().all())


def test_who_is_not_present_is_nobodys_rival_and_no_null() -> None:
    search = RivalSearch.over(torch.eye(4), torch.tensor([True, True, False, True]))
    found, far = search.nearest(torch.tensor([[0.1, 0.2, 0.9, 0.0]]), torch.tensor([1]), 3)
    assert found.tolist() == [[0, 3, -1]] and bool(far[0, 2].isnan())
    salts = torch.arange(50)
    null = search.to_random_other(torch.eye(4)[2].expand(50, 4), torch.zeros(50, dtype=torch.int64), salts)
    assert set(null.tolist()) == {90.0}, "identity 2, at 0 degrees, is not there"
    among = torch.tensor([False, False, False, True])
    assert bool(search.to_random_other(torch.eye(4)[[3]], torch.tensor([3]), torch.tensor([5]), among_C=among).isnan().all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_rotating_permuting_and_splitting_change_nothing(seed: int) -> None:
    vectors, index, centers = planted(seed)
    before = dominant_of(vectors, index, centers)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    assert torch.equal(dominant_of(vectors @ turn, index, centers @ turn), before)
    order = torch.randperm(len(vectors), generator=generator)
    assert torch.equal(dominant_of(vectors[order], index[order], centers), before)
    nearest, _ = nearest_subcenter(vectors, index, centers)
    halves = vote(nearest[:17], index[:17], 5, 3) + vote(nearest[17:], index[17:], 5, 3)
    assert torch.equal(dominant(halves), before)
    assert torch.equal(dominant(2 * halves), before), "a shard given twice changes no vote"


def test_random_other_is_never_ones_own_and_follows_the_sample() -> None:
    centers = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    centers[3] = 0
    index = torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    salt = torch.randint(2**60, (500,), generator=torch.Generator().manual_seed(2))
    there = with_direction(centers)
    chosen = random_other(index, salt, there)
    assert not bool((chosen == index).any()) and set(chosen.tolist()) == {0, 1, 2, 4, 5, 6}
    order = torch.randperm(500)
    assert torch.equal(random_other(index[order], salt[order], there), chosen[order])
    assert random_other(torch.tensor([0]), torch.tensor([5]), torch.tensor([0])).tolist() == [-1]


def test_cluster_centers_find_planted_groups_and_give_no_empty_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(8)[:3]
    vectors = torch.cat(
        [groups[0] + 0.05 * torch.randn(20, 8, generator=generator), groups[1] + 0.05 * torch.randn(6, 8, generator=generator)]
    )
    found = cluster_centers(vectors, 3)
    sure = (found @ groups.T).max(dim=0).values
    assert bool((sure[:2] > 0.98).all())
    assert cluster_centers(vectors[:1], 3).norm(dim=1).tolist() == pytest.approx([1, 0, 0])
    assert cluster_centers(torch.zeros(2, 8), 2).tolist() == torch.zeros(2, 8).tolist()


def one_by_one(vectors: Tensor, count: int) -> Tensor:
    """Spherical K-means of one identity, in float64 loops."""
    unit = [row / row.norm() for row in vectors.double() if bool(row.isfinite().all()) and bool((row != 0).any())]
    centers = torch.zeros(count, vectors.shape[1], dtype=torch.float64)
    if not unit:
        return centers
    mean = torch.stack(unit).sum(0)
    starts = [max(range(len(unit)), key=lambda at: (float(unit[at] @ mean), -at))]
    while len(starts) < count:
        near = [max(float(one @ unit[start]) for start in starts) for one in unit]
        farthest = min(range(len(unit)), key=lambda at: (near[at], at))
        if near[farthest] > 1 - 1e-6:
            break
        starts.append(farthest)
    centers[: len(starts)] = torch.stack([unit[start] for start in starts])
    for _ in range(20):
        assigned = [max(range(len(starts)), key=lambda k: (float(one @ centers[k]), -k)) for one in unit]
        for k in range(len(starts)):
            members = [one for one, mine in zip(unit, assigned, strict=True) if mine == k]
            if members:
                centers[k] = torch.stack(members).sum(0) / torch.stack(members).sum(0).norm()
    return centers


def test_many_identities_are_clustered_at_once_as_each_alone() -> None:
    vectors = torch.randn(9, 11, 6, generator=torch.Generator().manual_seed(3)).double()
    vectors[1, 4] = 0
    vectors[2, :3] = torch.nan
    vectors[3] = 0
    vectors[4] = vectors[4, :1] * torch.arange(1, 12)[:, None]  # one direction
    vectors[5, 2:] = vectors[5, :1]  # two
    found = cluster_groups(vectors, 3)
    assert torch.allclose(found, torch.stack([one_by_one(group, 3) for group in vectors]), atol=1e-9)
    assert (found.norm(dim=2) > 0).sum(dim=1).tolist() == [3, 3, 3, 0, 1, 2, 3, 3, 3]
    assert torch.allclose(torch.stack([cluster_centers(group, 3) for group in vectors]), found, atol=1e-9)


def test_wrong_use_says_what_to_do() -> None:
    vectors, index, centers = planted(0)
    with pytest.raises(ValueError, match=r"class_index must be in 0\.\.1"):
        nearest_subcenter(vectors, index, centers[:2])
    with pytest.raises(ValueError, match="do not fit"):
        nearest_subcenter(vectors, index[:-1], centers)
    with pytest.raises(ValueError, match="another head"):
        vote(torch.tensor([5]), torch.tensor([0]), 2, 3)
