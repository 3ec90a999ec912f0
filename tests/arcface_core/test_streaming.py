import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcface_core.angles import normalize
from arcface_core.protocols import streaming
from arcface_core.protocols.streaming import (
    BINS,
    all_pairs_histogram,
    histogram_tar_at_far,
    merged,
    pair_ranks,
    replaced_by_centers,
    search_distractors,
    suggested_floor,
)
from arcface_core.protocols.verification import tar_at_far


def people(count: int, each: int, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    identity = torch.arange(count).repeat_interleave(each)
    centers = torch.randn(count, dim, generator=generator)
    return normalize(centers[identity] + 0.6 * torch.randn(count * each, dim, generator=generator)), identity


def all_scores(unit: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    row, column = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.mT)[row, column], identity[row] == identity[column]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_all_pairs_are_counted_once_whatever_the_blocks(count: int, each: int, block: int, seed: int) -> None:
    unit, identity = people(count, each, seed=seed)
    found = all_pairs_histogram(unit, identity, block=block)
    scores, genuine = all_scores(unit, identity)
    assert found.genuine_M.sum() == int(genuine.sum()) and found.impostor_M.sum() == int((~genuine).sum())
    for counts, chosen in ((found.genuine_M, genuine), (found.impostor_M, ~genuine)):
        place = np.repeat(np.arange(BINS), counts)
        assert np.allclose((place + 0.5) * 2 / BINS - 1, np.sort(scores[chosen].numpy()), atol=3 / BINS)


def test_workers_parts_add_up_and_a_floor_changes_no_small_rate() -> None:
    unit, identity = people(60, 5)
    whole = all_pairs_histogram(unit, identity)
    parts = merged([all_pairs_histogram(unit, identity, rows=rows, block=37) for rows in ((0, 100), (100, 101), (101, 300))])
    fars = [1e-3, 1e-2]
    expected = tar_at_far(*all_scores(unit, identity), fars)
    floor = suggested_floor(unit, identity, far=1e-2, sample=200)
    assert 0 < floor < expected[1].threshold
    floored = all_pairs_histogram(unit, identity, floor=floor)
    for found in (whole, parts, floored):
        for point, exact in zip(histogram_tar_at_far(found, fars), expected, strict=True):
            assert point.impostors_accepted == exact.impostors_accepted and abs(point.threshold - exact.threshold) < 0.05
            assert point.threshold <= exact.threshold and point.tar == exact.tar
    assert floored.impostor_M.sum() == whole.impostor_M.sum() and floored.impostor_M[0] > 0.8 * whole.impostor_M.sum()
    with pytest.raises(ValueError, match=r"threshold of 0\.9 lies below the floor"):
        histogram_tar_at_far(floored, [0.9])
    assert histogram_tar_at_far(floored, [1.0])[0].tar == 1
    with pytest.raises(ValueError, match="one floor"):
        merged([whole, floored])


def test_tied_scores_at_the_edge_of_the_bins_are_accepted_together() -> None:
    """Everybody is one of two vectors: cosine 1 within, 0 between; of identities 0 and 1 one image each is at the other's place."""
    unit = torch.eye(2)[torch.tensor([0, 0, 1, 1, 1, 0])]
    found = all_pairs_histogram(unit, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert (found.genuine_M.sum(), found.genuine_M[BINS - 1], found.impostor_M.sum(), found.impostor_M[BINS - 1]) == (6, 2, 9, 4)
    strict, loose = histogram_tar_at_far(found, [0.4, 0.5])
    assert (strict.threshold, strict.tar, strict.impostors_accepted) == (1.0, 0.0, 0)
    assert (loose.tar, loose.impostors_accepted) == (2 / 6, 4)


def test_a_toy_megaface_by_hand() -> None:
    """Two photos of ada 30 degrees apart at 0 and 30; distractors at -20, 90, 91, 200: one stands before the mate of the photo at 0, none before the other's."""
    angles = torch.deg2rad(torch.tensor([0.0, 30.0, 120.0]))
    probe = torch.stack([angles.cos(), angles.sin()], 1)
    identity = torch.tensor([0, 0, 1])
    angles = torch.deg2rad(torch.tensor([-20.0, 90.0, 91.0, 200.0]))
    distractor = torch.stack([angles.cos(), angles.sin()], 1)
    for blocks in ([distractor], list(distractor.split(1))):
        found = search_distractors(probe, identity, blocks, ranks=2)
        assert pair_ranks(probe, identity, found.nearest_PK).tolist() == [2, 1]
        assert (found.histogram.genuine_M.sum(), found.histogram.impostor_M.sum()) == (1, 12)
        assert found.nearest_PK[0].tolist() == pytest.approx([math.cos(math.radians(20)), 0], abs=1e-6)
    near = search_distractors(probe, identity, [probe[:1].repeat(4, 1)], ranks=2)
    assert pair_ranks(probe, identity, near.nearest_PK).tolist() == [3, 3], "beyond K is K + 1"


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(2, 4), st.integers(1, 40), st.integers(0, 99))
def test_distractors_equal_plain_loops(count: int, each: int, distractors: int, seed: int) -> None:
    probe, identity = people(count, each, seed=seed)
    keys = normalize(torch.randn(distractors, 8, generator=torch.Generator().manual_seed(seed + 1)))
    found = search_distractors(probe, identity, keys.split(7), ranks=3)
    ranks = pair_ranks(probe, identity, found.nearest_PK).tolist()
    expected = []
    for i in range(len(probe)):
        for j in range(len(probe)):
            if i != j and identity[i] == identity[j]:
                mate = float(probe[i] @ probe[j])
                expected.append(min(4, 1 + sum(float(probe[i] @ key) >= mate for key in keys)))
    assert ranks == expected
    scores = torch.cat([(probe @ keys.mT).reshape(-1), all_scores(probe, identity)[0][all_scores(probe, identity)[1]]])
    genuine = torch.arange(len(scores)) >= len(probe) * distractors
    (point,) = histogram_tar_at_far(found.histogram, [0.1])
    (exact,) = tar_at_far(scores, genuine, [0.1])
    assert abs(point.tar - exact.tar) <= 1 / int(genuine.sum()) and point.impostors_accepted <= exact.impostors_accepted


def test_blocks_smaller_than_the_probes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, identity = people(9, 4)
    keys = normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(9)))
    found = search_distractors(probe, identity, [keys], ranks=4)
    ranks = pair_ranks(probe, identity, found.nearest_PK)
    monkeypatch.setattr(streaming, "_BLOCK", 5)
    again = search_distractors(probe, identity, keys.split(11), ranks=4)
    assert torch.allclose(again.nearest_PK, found.nearest_PK, atol=1e-6) and torch.equal(
        pair_ranks(probe, identity, again.nearest_PK), ranks
    )
    assert again.histogram.genuine_M.sum() == found.histogram.genuine_M.sum() == 9 * 6


def test_published_refinement_makes_noisy_probes_easy() -> None:
    probe, identity = people(5, 4)
    noisy = torch.zeros(20, dtype=torch.bool)
    noisy[[1, 6]] = True
    refined = replaced_by_centers(probe, identity, noisy)
    assert torch.allclose(refined[~noisy], probe[~noisy])
    center = normalize(probe[[0, 2, 3]].sum(0))
    assert float(refined[1] @ center) > 0.999 and torch.allclose(refined.norm(dim=1), torch.ones(20), atol=1e-5)
    with pytest.raises(ValueError, match=r"identities \[1\] have noisy probes only"):
        replaced_by_centers(probe, identity, identity == 1)


def test_what_cannot_be_counted_is_refused() -> None:
    unit, identity = people(3, 2)
    with pytest.raises(ValueError, match="sort both by identity"):
        all_pairs_histogram(unit, identity.flip(0))
    with pytest.raises(ValueError, match="NaN"):
        all_pairs_histogram(unit * torch.nan, identity)
    with pytest.raises(ValueError, match="no distractor"):
        search_distractors(unit, identity, [])
    with pytest.raises(ValueError, match=r"distractors must be \[M, 8\]"):
        search_distractors(unit, identity, [unit[:, :4]])
    with pytest.raises(ValueError, match=r"distractors 0\.\.5 hold NaN"):
        search_distractors(unit, identity, [unit * torch.nan])
    with pytest.raises(ValueError, match="0 genuine and 3 impostor pairs"):
        histogram_tar_at_far(all_pairs_histogram(unit[::2], identity[::2]), [0.1])
