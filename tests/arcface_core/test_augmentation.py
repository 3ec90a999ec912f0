"""Augmentations: who is changed follows from (seed, step, place) alone, the others stay untouched, and each does what its name says."""

import pytest
import torch
from torch import Tensor

from arcface_core.training import augmentation
from arcface_core.training.augmentation import AUGMENTATIONS, augmented, mirrored

ALL = tuple(AUGMENTATIONS)


def images(count: int = 12, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def changed(before: Tensor, after: Tensor) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("name", ALL)
def test_each_changes_its_share_and_stays_in_range(name: str) -> None:
    before = images(400, 16)
    after = augmented(before, [name], probability=0.2, seed=1, step=5)
    assert 0.12 < sum(changed(before, after)) / 400 < 0.28
    assert after.shape == before.shape and float(after.abs().max()) <= 1 + 1e-5
    assert torch.equal(after, augmented(before, [name], probability=0.2, seed=1, step=5))
    assert not torch.equal(after, augmented(before, [name], probability=0.2, seed=1, step=6))
    assert torch.equal(augmented(before, [name], probability=0.0, seed=1, step=5), before)
    assert torch.equal(augmented(before, [], probability=1.0, seed=1, step=5), before)


def test_another_augmentation_does_not_change_who_is_drawn_for_this_one() -> None:
    before = images()
    alone = augmented(before, ["occlusion"], probability=0.5, seed=1, step=0)
    both = augmented(before, ["occlusion", "colour"], probability=0.5, seed=1, step=0)
    coloured = changed(before, augmented(before, ["colour"], probability=0.5, seed=1, step=0))
    same = [torch.equal(a, b) for a, b in zip(alone, both, strict=True)]
    assert same == [not one for one in coloured] and 0 < sum(same) < len(same)


def test_a_sample_becomes_the_same_whichever_process_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mirrored(augmented(images(), ALL, probability=0.5, seed=3, step=2), 3, 2)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(augmentation, "rank_and_ranks", lambda rank=rank: (rank, 3))
        parts.append(mirrored(augmented(images()[rank::3], ALL, probability=0.5, seed=3, step=2), 3, 2))
    for rank, part in enumerate(parts):
        assert torch.allclose(part, whole[rank::3], atol=1e-6)


def test_blur_and_low_resolution_take_detail_and_leave_the_mean() -> None:
    before = images(8, 112)
    for name in ("blur", "low_resolution"):
        after = augmented(before, [name], probability=1.0, seed=0, step=0)
        assert all(float(a.std()) < 0.9 * float(b.std()) for a, b in zip(after, before, strict=True)), name
        assert torch.allclose(after.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=0.05)


def test_a_crop_moves_a_point_by_its_zoom_turn_and_shift() -> None:
    draws = torch.full((1, 6), 0.5)
    assert torch.allclose(AUGMENTATIONS["crop"](images(1), draws), images(1), atol=1e-4), "the middle of every range is no change"
    dot = torch.full((1, 3, 32, 32), -1.0)
    dot[:, :, 16, 16] = 1.0
    moved = AUGMENTATIONS["crop"](dot, torch.tensor([[0.5, 0.5, 1.0, 0.5, 0.5, 0.5]]))
    row, column = divmod(int(moved[0, 0].argmax()), 32)
    assert row == 16 and 16 - column == round(0.08 * 32)


def test_colour_of_no_change_and_of_grey() -> None:
    start = images(1) * 0.5
    same = AUGMENTATIONS["colour"](start, torch.tensor([[0.5, 0.5, 1 / 1.4, 0, 0, 0]]))
    assert torch.allclose(same, start, atol=1e-5)
    grey = AUGMENTATIONS["colour"](start, torch.tensor([[0.5, 0.5, 0.0, 0, 0, 0]]))[0]
    assert torch.allclose(grey[0], grey[1], atol=1e-6) and torch.allclose(grey[1], grey[2], atol=1e-6)


def test_an_occlusion_is_one_rectangle_of_one_grey() -> None:
    before = images(1, 40)
    after = AUGMENTATIONS["occlusion"](before, torch.tensor([[0.0, 1.0, 0.5, 0.0, 0.75, 0.0]]))
    differs = (after != before)[0].any(dim=0)
    rows, columns = differs.any(dim=1).nonzero().flatten(), differs.any(dim=0).nonzero().flatten()
    assert (len(rows), len(columns)) == (8, 20) and bool(differs[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
    assert int(columns[0]) == 0 and int(rows[0]) == 16
    assert torch.allclose(after[0, :, rows[0], 0], torch.tensor(0.5))
