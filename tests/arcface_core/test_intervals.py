import numpy as np
import pytest
import torch
from torch import Tensor

from arcface_core.protocols.intervals import accuracy_difference, tar_difference, tar_interval
from arcface_core.protocols.verification import tar_at_far


def scored(genuine: int, impostors: int, seed: int, decimals: int = 9) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(0.5, 0.2, genuine), rng.normal(0, 0.2, impostors)]).round(decimals).clip(-1, 1)
    return torch.from_numpy(scores), torch.arange(genuine + impostors) < genuine


def resampled_tars(scores: Tensor, genuine: Tensor, far: float, times: int) -> list[float]:
    rng = np.random.default_rng(99)
    own, others = scores[genuine], scores[~genuine]
    found = []
    for _ in range(times):
        drawn = torch.cat([own[rng.integers(0, len(own), len(own))], others[rng.integers(0, len(others), len(others))]])
        found.append(tar_at_far(drawn, genuine, [far])[0].tar)
    return found


@pytest.mark.parametrize(("far", "decimals"), [(0.02, 9), (0.1, 1), (0.0, 9)])
def test_the_interval_is_that_of_pairs_drawn_one_by_one(far: float, decimals: int) -> None:
    scores, genuine = scored(150, 300, 1, decimals)
    found = tar_interval(scores, genuine, far, resamples=4000)
    low, high = np.percentile(resampled_tars(scores, genuine, far, 1500), [2.5, 97.5])
    assert found.value == tar_at_far(scores, genuine, [far])[0].tar
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)
    assert found.low <= found.value <= found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """TAR at the true threshold of FAR 5 %: scores are normal, so it is known."""
    truth = float((torch.from_numpy(np.random.default_rng(5).normal(0.5, 0.2, 2_000_000)) > 0.2 * 1.6448536).double().mean())
    covered = 0
    for seed in range(60):
        found = tar_interval(*scored(200, 2000, seed + 10), 0.05, resamples=400)
        covered += found.low <= truth <= found.high
    assert 51 <= covered <= 60


def test_a_trillionth_of_the_pairs_is_no_reason_to_draw_them() -> None:
    scores, genuine = scored(2_000, 1_000_000, 0)
    found = tar_interval(scores, genuine, 1e-1)
    assert found.low < found.value < found.high < found.low + 0.05
    assert tar_interval(scores, genuine, 1.0) == (1, 1, 1)


def test_two_models_on_the_same_pairs_are_resampled_together() -> None:
    scores, genuine = scored(300, 3000, 2)
    noise = torch.from_numpy(np.random.default_rng(3).normal(0, 0.02, len(scores)))
    other = (scores + noise).clamp(-1, 1)
    same = tar_difference(scores, scores, genuine, 0.01, resamples=300)
    assert same == (0, 0, 0)
    near = tar_difference(scores, other, genuine, 0.01, resamples=500)
    assert near.value == pytest.approx(tar_at_far(other, genuine, [0.01])[0].tar - tar_at_far(scores, genuine, [0.01])[0].tar, abs=1e-12)
    alone = tar_interval(scores, genuine, 0.01)
    assert near.high - near.low < 0.7 * (alone.high - alone.low), "what is common to both cancels"
    assert near.low <= near.value <= near.high
    better = tar_difference(scores, torch.where(genuine, scores + 0.2, scores), genuine, 0.01, resamples=300)
    assert better.low > 0.1
    swapped = tar_difference(other, scores, genuine, 0.01, resamples=500)
    assert swapped.value == -near.value
    assert tar_difference(scores, other, genuine, 1.0) == (0, 0, 0)


def test_the_difference_is_that_of_pairs_drawn_one_by_one() -> None:
    scores, genuine = scored(120, 400, 4, 2)
    other = (scores + torch.from_numpy(np.random.default_rng(3).normal(0, 0.1, len(scores)))).clamp(-1, 1)
    rng, found = np.random.default_rng(7), []
    for _ in range(1200):
        drawn = torch.from_numpy(np.concatenate([rng.integers(0, 120, 120), 120 + rng.integers(0, 400, 400)]))
        found.append(tar_at_far(other[drawn], genuine, [0.05])[0].tar - tar_at_far(scores[drawn], genuine, [0.05])[0].tar)
    ours = tar_difference(scores, other, genuine, 0.05, resamples=2000)
    assert (ours.low, ours.high) == (
        pytest.approx(np.percentile(found, 2.5), abs=0.03),
        pytest.approx(np.percentile(found, 97.5), abs=0.03),
    )


def test_accuracy_of_two_models() -> None:
    first = torch.tensor([True] * 90 + [False] * 10)
    second = torch.tensor([True] * 88 + [False, False] + [True] * 6 + [False] * 4)
    found = accuracy_difference(first, second)
    assert found.value == pytest.approx(0.04) and found.low < 0 < found.high
    assert accuracy_difference(first, first) == (0, 0, 0)
    clear = accuracy_difference(torch.zeros(100, dtype=torch.bool), first)
    assert clear.value == pytest.approx(0.9) and clear.low == pytest.approx(0.83, abs=0.02)
    with pytest.raises(ValueError, match=r"both must be bool \[N\]"):
        accuracy_difference(first, second[1:])
    with pytest.raises(ValueError, match="same pairs"):
        tar_difference(torch.ones(3), torch.ones(2), torch.tensor([True, False, True]), 0.1)
