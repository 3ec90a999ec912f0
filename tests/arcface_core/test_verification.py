import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from arcface_core.angles import rowwise_cosine
from arcface_core.protocols import PROTOCOLS
from arcface_core.protocols.intervals import tar_difference, tar_interval
from arcface_core.protocols.published import tar_at_nearest_far
from arcface_core.protocols.verification import (
    auroc,
    equal_error_rate,
    fold_correct,
    genuine_impostor_pairs,
    kfold_accuracy,
    roc_points,
    tar_at_far,
)

LFW = Path(__file__).parents[2].parent / "shared" / "data"


def scored(count: int, seed: int = 0, decimals: int | None = None) -> tuple[Tensor, Tensor]:
    """Genuine around 0.5, impostors around 0; few decimals make many ties."""
    generator = torch.Generator().manual_seed(seed)
    genuine = torch.rand(count, generator=generator) < 0.4
    genuine[:2] = torch.tensor([True, False])
    scores = (genuine.double() * 0.5 + 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    return (scores if decimals is None else scores.round(decimals=decimals)), genuine


def reference_kfold(scores: list[float], genuine: list[bool], folds: int, thresholds: list[float]) -> tuple[list[float], list[float]]:
    def right(rows: range | list[int], threshold: float) -> int:
        return sum((scores[row] >= threshold) == genuine[row] for row in rows)

    bounds = [0]
    for fold in range(folds):
        bounds.append(bounds[-1] + len(scores) // folds + (fold < len(scores) % folds))
    accuracies, chosen = [], []
    for start, stop in itertools.pairwise(bounds):
        others = [row for row in range(len(scores)) if not start <= row < stop]
        best, most = thresholds[0], -1
        for threshold in thresholds:
            if right(others, threshold) > most:
                best, most = threshold, right(others, threshold)
        chosen.append(best)
        accuracies.append(right(range(start, stop), best) / (stop - start))
    return accuracies, chosen


@pytest.mark.parametrize(("count", "folds", "decimals"), [(60, 10, None), (47, 5, 2), (23, 2, 1), (11, 11, 2)])
def test_kfold_equals_plain_loops(count: int, folds: int, decimals: int | None) -> None:
    scores, genuine = scored(count, seed=count, decimals=decimals)
    thresholds = [(i - 100) / 100 for i in range(201)]
    accuracies, chosen = reference_kfold(scores.tolist(), genuine.tolist(), folds, thresholds)
    found = kfold_accuracy(scores, genuine, folds=folds, step=0.01)
    assert found.accuracies.tolist() == accuracies and found.thresholds.tolist() == chosen
    assert found.mean == pytest.approx(np.mean(accuracies), abs=1e-12) and found.std == pytest.approx(np.std(accuracies), abs=1e-12)


def test_a_score_at_the_threshold_is_accepted_and_the_lowest_best_threshold_wins() -> None:
    scores = torch.tensor([0.7, 0.2, 0.7, 0.2], dtype=torch.float64)
    found = kfold_accuracy(scores, torch.tensor([True, False, True, False]), folds=2)
    assert found.thresholds.tolist() == [0.201, 0.201] and found.mean == 1.0
    tight = torch.tensor([0.7, 0.699, 0.7, 0.699], dtype=torch.float64)
    found = kfold_accuracy(tight, torch.tensor([True, False, True, False]), folds=2)
    assert found.thresholds.tolist() == [0.7, 0.7] and found.mean == 1.0


def test_a_fold_is_judged_by_the_others_only() -> None:
    """The first fold's genuine pairs score below its impostors: a threshold of its own could not make that 0 of 4 either, but 0.5 does."""
    scores = torch.tensor([0.1, 0.9, 0.1, 0.9] + [0.9, 0.1] * 8, dtype=torch.float64)
    found = kfold_accuracy(scores, torch.tensor([True, False] * 10), folds=5)
    assert found.accuracies.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_order_inside_a_fold_changes_nothing_and_perfect_scores_are_perfect() -> None:
    scores, genuine = scored(200, seed=3)
    shuffled = torch.cat([fold[torch.randperm(20, generator=torch.Generator().manual_seed(1))] for fold in torch.arange(200).view(10, 20)])
    assert kfold_accuracy(scores, genuine).accuracies.tolist() == kfold_accuracy(scores[shuffled], genuine[shuffled]).accuracies.tolist()
    assert kfold_accuracy(genuine.float(), genuine)[:2] == (1.0, 0.0)


def reference_tar(scores: list[float], genuine: list[bool], far: float) -> tuple[float, float, int]:
    impostors = [score for score, same in zip(scores, genuine, strict=True) if not same]
    own = [score for score, same in zip(scores, genuine, strict=True) if same]
    for threshold in [*sorted(set(scores)), math.inf]:
        accepted = sum(score >= threshold for score in impostors)
        if accepted / len(impostors) <= far:
            return threshold, sum(score >= threshold for score in own) / len(own), accepted
    raise AssertionError("inf accepts nobody")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.sampled_from([None, 1, 2]), st.floats(0, 1))
def test_tar_at_far_equals_plain_loops(count: int, seed: int, decimals: int | None, far: float) -> None:
    scores, genuine = scored(count, seed, decimals)
    for point in tar_at_far(scores, genuine, [far, 0.0, 0.1, 1.0]):
        assert (point.threshold, point.tar, point.impostors_accepted) == reference_tar(scores.tolist(), genuine.tolist(), point.far)
        assert 0 <= point.tar_low <= point.tar <= point.tar_high <= 1
        assert point.resolvable == (point.far > 0 and 1 / int((~genuine).sum()) <= point.far)


def test_the_share_asked_for_is_reached_exactly_and_ties_are_refused_together() -> None:
    """0.29 of 100 impostors are 29, although 0.29 * 100 is 28.999999999999996."""
    scores = torch.cat([torch.arange(100).double(), torch.full((4,), 70.5)])
    genuine = torch.arange(104) >= 100
    (point,) = tar_at_far(scores, genuine, [0.29])
    assert (point.threshold, point.impostors_accepted, point.tar) == (70.5, 29, 1.0)
    tied = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.3, 0.9], dtype=torch.float64)
    (point,) = tar_at_far(tied, torch.tensor([False, False, False, False, True, True]), [0.5])
    assert (point.threshold, point.impostors_accepted, point.tar) == (0.9, 0, 0.5)


def test_scores_of_float32_are_judged_as_their_float64_and_stay_as_they_are() -> None:
    narrow, genuine = scored(4001, seed=5, decimals=2)
    narrow = narrow.float()
    before, fars = narrow.clone(), (0.0, 1e-3, 0.1, 1.0)
    assert tar_at_far(narrow, genuine, fars) == tar_at_far(narrow.double(), genuine, fars)
    assert tar_at_nearest_far(narrow, genuine, fars) == tar_at_nearest_far(narrow.double(), genuine, fars)
    assert tar_interval(narrow, genuine, 1e-2, resamples=50) == tar_interval(narrow.double(), genuine, 1e-2, resamples=50)
    other = narrow.flip(0)
    assert tar_difference(narrow, other, genuine, 0.1, resamples=5) == tar_difference(
        narrow.double(), other.double(), genuine, 0.1, resamples=5
    )
    assert auroc(narrow, genuine) == auroc(narrow.double(), genuine)
    assert torch.equal(narrow, before)


def test_a_rate_is_resolvable_from_one_over_it_impostors_on() -> None:
    scores, genuine = torch.linspace(-1, 1, 110), torch.arange(110) >= 100
    assert [point.resolvable for point in tar_at_far(scores, genuine, [1e-2, 9.9e-3, 0.0])] == [True, False, False]
    assert not tar_at_far(scores[1:], genuine[1:], [1e-2])[0].resolvable
    best = tar_at_far(-scores, genuine, [1e-3])[0]
    assert best.threshold == math.inf and best.tar == 0 and best.tar_low == 0 and 0.2 < best.tar_high < 0.3


def test_the_interval_is_wilsons() -> None:
    """15 of 20: 0.5313 .. 0.8881, the roots of (p - 0.75)^2 = z^2 p (1 - p) / 20."""
    scores = torch.cat([torch.zeros(10), torch.full((5,), -1.0), torch.ones(15)])
    (point,) = tar_at_far(scores, torch.arange(30) >= 10, [0.0])
    assert point.tar == 0.75
    for bound in (point.tar_low, point.tar_high):
        assert (bound - 0.75) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 20, rel=1e-6)
    assert (round(point.tar_low, 4), round(point.tar_high, 4)) == (0.5313, 0.8881)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.integers(0, 10_000), st.sampled_from([None, 0, 1]))
def test_auroc_equals_sklearn_and_the_area_under_the_points(count: int, seed: int, decimals: int | None) -> None:
    scores, genuine = scored(count, seed, decimals)
    value = auroc(scores, genuine)
    assert value == pytest.approx(roc_auc_score(genuine.numpy(), scores.numpy()), abs=1e-12)
    assert auroc(-scores, genuine) == pytest.approx(1 - value, abs=1e-12)
    far, tar = roc_points(scores, genuine)
    assert float(torch.trapezoid(tar, far)) == pytest.approx(value, abs=1e-12)
    assert [*far[[0, -1]].tolist(), *tar[[0, -1]].tolist()] == [0, 1, 0, 1]
    assert (far.diff() >= 0).all() and (tar.diff() >= 0).all() and len(far) == len(set(scores.tolist())) + 1


def test_roc_points_by_hand_and_no_skill_is_one_half() -> None:
    far, tar = roc_points(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False]))
    assert far.tolist() == [0, 0, 0.5, 1] and tar.tolist() == [0, 0.5, 1, 1]
    assert auroc(torch.zeros(7), torch.arange(7) < 3) == 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.sampled_from([None, 1]))
@example(9, 2871, None)  # two thresholds as near as each other, but for rounding
def test_equal_error_rate_equals_plain_loops(count: int, seed: int, decimals: int | None) -> None:
    scores, genuine = scored(count, seed, decimals)
    own, others = scores[genuine].tolist(), scores[~genuine].tolist()
    best = (2.0, 0.0)
    for threshold in [math.inf, *sorted(set(scores.tolist()), reverse=True)]:
        far = sum(score >= threshold for score in others) / len(others)
        frr = sum(score < threshold for score in own) / len(own)
        if abs(far - frr) < best[0] - 1e-12:
            best = (abs(far - frr), (far + frr) / 2)
    assert equal_error_rate(scores, genuine) == pytest.approx(best[1], abs=1e-9)


def test_pairs_judged_rightly_are_those_of_the_accuracy() -> None:
    scores, genuine = scored(200, seed=5)
    found = kfold_accuracy(scores, genuine)
    assert float(fold_correct(scores, genuine, found.thresholds).double().mean()) == pytest.approx(found.mean, abs=1e-12)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_refuses_what_it_cannot_measure(name: str) -> None:
    protocol = PROTOCOLS[name]
    scores, genuine = scored(200)
    protocol(scores.float(), genuine)
    with pytest.raises(ValueError, match="1 of 200 scores are NaN"):
        protocol(torch.where(torch.arange(200) == 4, torch.nan, scores), genuine)
    for same in (torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)):
        with pytest.raises(ValueError, match="at least one of each"):
            protocol(scores, same)
    for wrong in (genuine[1:], genuine.long()):
        with pytest.raises(ValueError, match=r"one of each per pair, got \(200,\)"):
            protocol(scores, wrong)


def test_settings_out_of_range_are_refused() -> None:
    scores, genuine = scored(30)
    for folds in (1, 31):
        with pytest.raises(ValueError, match=rf"folds must be in 2\.\.30, the number of pairs, got {folds}"):
            kfold_accuracy(scores, genuine, folds=folds)
    with pytest.raises(ValueError, match="step"):
        kfold_accuracy(scores, genuine, step=0.0)
    with pytest.raises(ValueError, match="scores must be cosines"):
        kfold_accuracy(scores * 60, genuine)
    with pytest.raises(ValueError, match=r"share in 0\.\.1, got 5"):
        tar_at_far(scores, genuine, [5])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 6), min_size=2, max_size=40), st.integers(2, 120), st.integers(0, 99))
def test_pairs_are_true_distinct_balanced_and_as_many_as_there_are(identities: list[int], pairs: int, seed: int) -> None:
    index = torch.tensor(identities)
    all_pairs = [(i, j) for i in range(len(index)) for j in range(i)]
    same = sum(identities[i] == identities[j] for i, j in all_pairs)
    wanted = min(pairs // 2, same, len(all_pairs) - same)
    if wanted == 0:
        with pytest.raises(ValueError, match="an identity with two samples" if same == 0 else "a second identity"):
            genuine_impostor_pairs(index, pairs=pairs, seed=seed)
        return
    left, right, genuine = genuine_impostor_pairs(index, pairs=pairs, seed=seed)
    assert genuine.tolist() == [True, False] * wanted
    assert (index[left] == index[right]).tolist() == genuine.tolist() and (left != right).all()
    assert len({frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}) == 2 * wanted
    again = genuine_impostor_pairs(index, pairs=pairs, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip((left, right, genuine), again, strict=True))


def test_a_large_identity_gives_no_more_genuine_pairs_than_the_others() -> None:
    index = torch.cat([torch.zeros(500, dtype=torch.long), torch.arange(1, 11).repeat_interleave(3)])
    left, _, genuine = genuine_impostor_pairs(index, pairs=44, seed=0)
    assert torch.bincount(index[left[genuine]], minlength=11).tolist() == [2] * 11
    left, _, genuine = genuine_impostor_pairs(index, pairs=200, seed=0)
    assert torch.bincount(index[left[genuine]], minlength=11).tolist() == [70] + [3] * 10
    left, _, genuine = genuine_impostor_pairs(index, pairs=50, seed=0)
    assert sorted(torch.bincount(index[left[genuine]], minlength=11).tolist()) == [2] * 8 + [3] * 3


def test_every_pair_is_drawn_equally_often_and_seeds_differ() -> None:
    index = torch.tensor([4, 9, 4, 9, 9, 2])
    counts: dict[tuple[int, int], int] = {}
    for seed in range(400):
        left, right, genuine = genuine_impostor_pairs(index, pairs=2, seed=seed)
        pair = int(left[~genuine]), int(right[~genuine])
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 11 and min(counts.values()) > 400 / 11 / 2 and max(counts.values()) < 2 * 400 / 11


def test_many_samples_need_no_table_of_all_pairs() -> None:
    index = torch.arange(50_000).repeat(4)
    left, right, genuine = genuine_impostor_pairs(index, pairs=6000, seed=1)
    assert len(left) == 6000 and torch.equal(index[left] == index[right], genuine)
    with pytest.raises(ValueError, match="pairs must be at least 2"):
        genuine_impostor_pairs(index, pairs=1, seed=1)
    with pytest.raises(ValueError, match=r"must be \[N\]"):
        genuine_impostor_pairs(index[None], pairs=2, seed=1)


@pytest.mark.skipif(not (LFW / "lfw_embeddings.npz").exists(), reason="no real faces here: shared/data/lfw_embeddings.npz")
def test_lfw_gives_its_known_accuracy() -> None:
    with np.load(LFW / "lfw_embeddings.npz", allow_pickle=False) as stored:
        vectors = torch.from_numpy(stored["embeddings"].astype(np.float32))
        row_of = {Path(name).stem: row for row, name in enumerate(stored["names"].tolist())}
    lines = [line.split("\t") for line in (LFW / "pairs.txt").read_text("utf-8").splitlines()[1:]]
    genuine = torch.tensor([len(line) == 3 for line in lines])
    names = [(line[0], line[1], line[0], line[2]) if len(line) == 3 else tuple(line) for line in lines]
    left = [row_of[f"{a}_{int(i):04d}"] for a, i, _, _ in names]
    right = [row_of[f"{b}_{int(j):04d}"] for _, _, b, j in names]
    scores = rowwise_cosine(vectors[left], vectors[right])
    found = kfold_accuracy(scores, genuine)
    assert (round(found.mean, 4), round(found.std, 4)) == (0.9882, 0.0049)
    assert round(float(scores[genuine].mean()), 3) == 0.626 and round(float(scores[~genuine].mean()), 3) == 0.013
