import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold
from torch import Tensor

from arcface_core.protocols.identification import search_gallery, tpir_by_rank_index
from arcface_core.protocols.published import kfold_accuracy_by_distance, tar_at_nearest_far, val_at_far
from arcface_core.protocols.templates import image_weights, pair_cosines, pooled_templates
from tests.arcface_core.insightface_golden import FARS, FPIRS, GOLDEN, gallery_case, pairs_case, templates_case


def scored(count: int, seed: int, decimals: int | None) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    genuine = rng.random(count) < 0.4
    genuine[:2] = [True, False]
    scores = np.clip(genuine * 0.5 + 0.3 * rng.standard_normal(count), -1, 1)
    return torch.from_numpy(scores if decimals is None else scores.round(decimals)), torch.from_numpy(genuine)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 10_000), st.sampled_from([None, 1, 2]), st.floats(0, 1))
def test_the_nearest_rate_is_read_off_scikit_learns_curve(count: int, seed: int, decimals: int | None, far: float) -> None:
    scores, genuine = scored(count, seed, decimals)
    false_rate, true_rate, _ = roc_curve(genuine.numpy(), scores.numpy())
    false_rate, true_rate = np.flipud(false_rate), np.flipud(true_rate)
    for point in tar_at_nearest_far(scores, genuine, [far, 1e-6, 0.1]):
        at = int(np.argmin(abs(false_rate - point.far_wanted)))
        assert (point.far, point.tar) == (pytest.approx(false_rate[at], abs=1e-12), pytest.approx(true_rate[at], abs=1e-12))


def test_only_the_upper_end_of_many_scores_is_sorted_and_says_the_same() -> None:
    scores, genuine = scored(20_000, 3, 3)
    false_rate, true_rate, _ = roc_curve(genuine.numpy(), scores.numpy())
    false_rate, true_rate = np.flipud(false_rate), np.flipud(true_rate)
    for point in tar_at_nearest_far(scores, genuine, [1e-4, 1e-3, 1e-2]):
        assert point.tar == pytest.approx(true_rate[int(np.argmin(abs(false_rate - point.far_wanted)))], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 999), st.integers(2, 10))
def test_accuracy_by_distance_equals_plain_loops(count: int, seed: int, folds: int) -> None:
    scores, genuine = scored(max(count, folds), seed, 2)
    distance, same = 2 - 2 * scores.numpy(), genuine.numpy()
    expected = []
    for train, test in KFold(folds).split(distance):
        right = [((distance[train] < threshold) == same[train]).mean() for threshold in np.arange(0, 4, 0.01)]
        expected.append(((distance[test] < np.arange(0, 4, 0.01)[int(np.argmax(right))]) == same[test]).mean())
    assert kfold_accuracy_by_distance(scores, genuine, folds=folds).accuracies.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_fold_without_impostors_has_no_val() -> None:
    scores, genuine = scored(40, 0, None)
    order = genuine.int().argsort(stable=True)
    with pytest.raises(ValueError, match="every one of the 10 folds needs genuine and impostor pairs"):
        val_at_far(scores[order], genuine[order])
    with pytest.raises(ValueError, match="share above 0"):
        val_at_far(scores, genuine, far=0)


def test_insightfaces_own_scripts_give_the_same_figures() -> None:
    """Golden figures: insightface's functions run on the same features, see insightface_golden.py."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["source"].startswith("deepinsight/insightface@")
    left, right, same = pairs_case()
    scores = torch.from_numpy((left * right).sum(1))
    accuracy = kfold_accuracy_by_distance(scores, torch.from_numpy(same))
    assert accuracy.accuracies.tolist() == pytest.approx(golden["accuracy_of_folds"], abs=1e-12)
    val = val_at_far(scores, torch.from_numpy(same), far=golden["val_far"])
    assert [val.val, val.std, val.far] == pytest.approx(golden["val"], abs=1e-12)

    feature, mirrored, detector, template, media, first, second, label = map(torch.from_numpy, templates_case())
    for name, keep_norm, scored_by, flip in (("N1D1F2", True, True, True), ("N0D0F2", False, False, True), ("N0D1F0", False, True, False)):
        images = feature + mirrored if flip else feature
        weights = image_weights(images, keep_norm=keep_norm, detector_N=detector if scored_by else None)
        cosines = pair_cosines(pooled_templates(images, template, media, weights), first, second)
        assert cosines[::997].tolist() == pytest.approx(golden["ijb"][name]["scores"], abs=2e-6)
        points = tar_at_nearest_far(cosines, label.bool(), FARS)
        assert [point.tar for point in points] == pytest.approx(golden["ijb"][name]["tar"], abs=1e-12)

    probes, probe_ids, gallery, gallery_ids = map(torch.from_numpy, gallery_case())
    found = search_gallery(probes, probe_ids, gallery, gallery_ids)
    assert [int(((found.rank_P > 0) & (found.rank_P <= k)).sum()) for k in (1, 5, 10)] == golden["gallery"]["top"]
    points_of = tpir_by_rank_index(found, FPIRS)
    assert [point.tpir for point in points_of] == pytest.approx(golden["gallery"]["tpir"], abs=1e-12)
    assert [point.threshold for point in points_of] == pytest.approx(golden["gallery"]["threshold"], abs=1e-6)
