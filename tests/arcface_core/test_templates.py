import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arcface_core.protocols.templates import Templates, group_means, image_weights, mode_name, pair_cosines, pooled_templates


def test_a_toy_ijb_by_hand() -> None:
    """Template 5: a still (3, 0), and two frames of one video whose mean is (0, 4): their sum is (3, 4), so (0.6, 0.8). Template 9: (1, 0)."""
    feature = torch.tensor([[0.0, 6.0], [3.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    pooled = pooled_templates(feature, torch.tensor([5, 5, 5, 9]), torch.tensor([70, 71, 70, 70]))
    assert pooled.ids_T.tolist() == [5, 9]
    assert pooled.vectors_TD.tolist() == [pytest.approx([0.6, 0.8]), [1.0, 0.0]]
    cosines = pair_cosines(pooled, torch.tensor([5, 9, 5]), torch.tensor([9, 9, 5]))
    assert cosines.tolist() == pytest.approx([0.6, 1.0, 1.0])


def test_modes_by_hand() -> None:
    """Norms 5 and 1, detector scores 0.5 and 1: N1 weighs the first image five times, N0 equally; D1 halves it."""
    feature, score = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0.5, 1.0, 1.0])
    assert image_weights(feature).tolist() == [1, 1, 1]
    assert image_weights(feature, keep_norm=False).tolist() == [pytest.approx(0.2), 1, 0]
    assert image_weights(feature, detector_N=score).tolist() == [0.5, 1, 1]
    assert image_weights(feature, keep_norm=False, detector_N=score).tolist() == [pytest.approx(0.1), 1, 0]
    weighed = pooled_templates(feature, torch.zeros(3, dtype=torch.long), torch.arange(3), image_weights(feature, keep_norm=False))
    assert weighed.vectors_TD[0].tolist() == pytest.approx([0.6 / math.sqrt(3.6), 1.8 / math.sqrt(3.6)])
    assert mode_name(keep_norm=True, detector_scores=True, mirrored=True) == "N1D1F2"
    assert mode_name(keep_norm=False, detector_scores=True, mirrored=False) == "N0D1F0"


def reference_templates(feature: list[list[float]], template: list[int], media: list[int]) -> dict[int, list[float]]:
    found = {}
    for one in sorted(set(template)):
        total = [0.0] * len(feature[0])
        rows = [row for row in range(len(feature)) if template[row] == one]
        for medium in {media[row] for row in rows}:
            frames = [feature[row] for row in rows if media[row] == medium]
            total = [
                sum(values, start)
                for start, values in zip(total, ([f / len(frames) for f in axis] for axis in zip(*frames, strict=True)), strict=True)
            ]
        length = math.sqrt(sum(value * value for value in total))
        found[one] = [value / length for value in total]
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9999))
def test_templates_and_pairs_equal_plain_loops(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feature = torch.from_numpy(rng.standard_normal((count, 5))).float()
    template, media = torch.from_numpy(rng.integers(-3, 9, count)), torch.from_numpy(rng.integers(0, 4, count))
    pooled = pooled_templates(feature, template, media)
    expected = reference_templates(feature.double().tolist(), template.tolist(), media.tolist())
    assert pooled.ids_T.tolist() == list(expected)
    assert torch.allclose(pooled.vectors_TD.double(), torch.tensor(list(expected.values()), dtype=torch.float64), atol=1e-5)
    left, right = (torch.from_numpy(rng.choice(pooled.ids_T.numpy(), 50)) for _ in range(2))
    cosines = [
        sum(a * b for a, b in zip(expected[i], expected[j], strict=True)) for i, j in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert pair_cosines(pooled, left, right).tolist() == pytest.approx(cosines, abs=1e-5)


def test_dense_and_sparse_pair_lists_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((90, 8))).float())
    pooled = Templates(torch.from_numpy(np.sort(rng.choice(10**12, 90, replace=False))), vectors)
    left, right = (pooled.ids_T[torch.from_numpy(rng.integers(0, 90, 3000))] for _ in range(2))
    monkeypatch.setattr("arcface_core.protocols.templates._SCORES", 700)
    dense = pair_cosines(pooled, left, right)
    monkeypatch.setattr("arcface_core.protocols.templates._SPARSE", 0)
    assert torch.allclose(pair_cosines(pooled, left, right), dense, atol=1e-6)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(pair_cosines(pooled, left[order], right[order]), dense[order], atol=1e-6)


@pytest.mark.parametrize("sparse", [0, 10**9])
def test_pairs_are_the_same_however_many_are_looked_at_at_a_time(monkeypatch: pytest.MonkeyPatch, sparse: int) -> None:
    rng = np.random.default_rng(1)
    pooled = Templates(torch.arange(7, 47), torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((40, 8))).float()))
    left, right = (torch.from_numpy(rng.integers(7, 47, 1001)) for _ in range(2))
    expected = (pooled.vectors_TD[left - 7] * pooled.vectors_TD[right - 7]).sum(1)
    monkeypatch.setattr("arcface_core.protocols.templates._SPARSE", sparse)
    for at_a_time in (1, 17, 1000, 1001):
        monkeypatch.setattr("arcface_core.protocols.templates._PAIRS", at_a_time)
        assert torch.allclose(pair_cosines(pooled, left.int(), right), expected, atol=1e-6)
    assert len(pair_cosines(pooled, left[:0], right[:0])) == 0


def test_rotating_all_features_changes_no_score() -> None:
    generator = torch.Generator().manual_seed(2)
    feature = torch.randn(60, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    template, media = torch.arange(60) % 12, torch.arange(60) % 5
    left, right = torch.arange(12).repeat(12), torch.arange(12).repeat_interleave(12)

    def scores(rows: Tensor) -> Tensor:
        return pair_cosines(pooled_templates(rows, template, media, image_weights(rows, keep_norm=False)), left, right)

    assert torch.allclose(scores(feature), scores(feature @ turn), atol=1e-5)


def test_a_video_is_the_mean_of_its_frames() -> None:
    frames = torch.tensor([[1.0, 0.0], [0.0, 3.0], [3.0, 1.0]])
    assert group_means(frames, torch.tensor([1, 0, 1]), 2).tolist() == [[0, 1], pytest.approx([4 / math.sqrt(17), 1 / math.sqrt(17)])]
    with pytest.raises(ValueError, match="every one of the 3 groups needs a feature: 1 have none"):
        group_means(frames, torch.tensor([1, 0, 1]), 3)


def test_what_cannot_be_compared_is_refused() -> None:
    feature = torch.ones(3, 2)
    pooled = pooled_templates(feature, torch.tensor([1, 2, 2]), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match=r"2 templates of the pairs have no image \(-4, 3"):
        pair_cosines(pooled, torch.tensor([1, 3, -4]), torch.tensor([2, 2, 2]))
    with pytest.raises(ValueError, match=r"features 0\.\.2 hold NaN"):
        pooled_templates(feature * torch.nan, torch.tensor([1, 2, 2]), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"templates and media \[N\]"):
        pooled_templates(feature, torch.tensor([1, 2]), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match=r"scores \[N\], got"):
        image_weights(feature, detector_N=torch.ones(2))
    for score in (-0.1, math.nan):
        with pytest.raises(ValueError, match="check the last column"):
            image_weights(feature, detector_N=torch.tensor([1.0, score, 1.0]))
