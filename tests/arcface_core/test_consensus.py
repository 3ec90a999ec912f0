"""The consensus of one identity: against plain loops, under planted noise, and at its edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from arcface_core.noise import consensus as module
from arcface_core.noise.centers import groups_of_one_size
from arcface_core.noise.consensus import Consensus, consensus

DIM = 32


def clean(angle: Tensor) -> Tensor:
    """A known calibration: surely clean at 40 degrees, surely wrong at 80."""
    return ((80 - angle) / 40).clamp(0, 1)


def people(seed: int, count: int) -> Tensor:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def pictures(of: Tensor, count: int, seed: int, spread: float = 0.08) -> Tensor:
    return normalize(of + spread * torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def found_in(vectors: Tensor, starts: Tensor | None = None, **options: float) -> Consensus:
    starts = vectors.mean(dim=0, keepdim=True) if starts is None else starts
    return consensus(vectors[None], starts[None], clean, **options)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9))
def test_each_sample_is_compared_with_the_others_as_plain_loops_say(seed: int, size: int) -> None:
    vectors = pictures(people(seed, 1), size, seed + 1, 0.2).double()
    found = found_in(vectors)
    center, angles = vectors.mean(dim=0), None
    for _ in range(3):
        base = [float(torch.rad2deg(torch.arccos((v @ center) / center.norm()))) for v in vectors] if angles is None else angles
        weights = [float(clean(torch.tensor(a, dtype=torch.float64))) for a in base]
        center = sum(w * v for w, v in zip(weights, vectors, strict=True))  # type: ignore[assignment]
        angles = []
        for w, v in zip(weights, vectors, strict=True):
            rest = center - w * v
            angles.append(float(torch.rad2deg(torch.arccos((v @ rest / rest.norm()).clamp(-1, 1)))))
    assert found.angle_Gn[0].tolist() == pytest.approx(angles, abs=1e-3)
    assert float(found.mass_G[0]) == pytest.approx(sum(float(clean(torch.tensor(a))) for a in angles or []), abs=1e-4)


def test_half_an_identity_of_strangers_does_not_move_its_consensus() -> None:
    own = people(0, 1)
    vectors = torch.cat([pictures(own, 20, 1), people(2, 20)])
    found = found_in(vectors)
    assert float(torch.rad2deg(torch.arccos(found.center_GD[0] @ own[0]))) < 10
    assert bool((found.angle_Gn[0, :20] < 45).all()) and bool((found.angle_Gn[0, 20:] > 55).all())
    assert float(found.mass_G[0]) == pytest.approx(20, abs=2) and float(found.second_mass_G[0]) < 3


def test_the_start_with_most_agreement_wins_not_the_first() -> None:
    first, second = people(0, 2)[:, None]
    vectors = torch.cat([pictures(first, 4, 1), pictures(second, 9, 2)])
    found = found_in(vectors, torch.cat([first, second]))
    assert float(found.center_GD[0] @ second[0]) > 0.95
    assert float(found.second_GD[0] @ first[0]) > 0.9, "and the others are the second person"
    assert float(found.second_mass_G[0]) == pytest.approx(4, abs=0.8)


def test_two_people_of_one_size_tie() -> None:
    first, second = people(0, 2)[:, None]
    found = found_in(torch.cat([pictures(first, 8, 1), pictures(second, 8, 2)]), torch.cat([first, second]))
    assert float(found.second_mass_G[0] / found.mass_G[0]) > 0.8


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_identities(size: int) -> None:
    same = found_in(pictures(people(0, 1), size, 1))
    strangers = found_in(people(3, size))
    if size == 1:
        assert bool(same.angle_Gn.isnan().all()) and float(same.mass_G[0]) == 0.0 and bool(same.density_Gn.isnan().all())
        return
    assert float(same.mass_G[0]) > 1.5 and bool((same.angle_Gn < 50).all())
    assert float(strangers.mass_G[0]) < 1.5, "nobody agrees with anybody"


def test_copies_of_one_wrong_photograph_count_once() -> None:
    own, other = people(0, 2)[:, None]
    wrong = pictures(other, 1, 9)
    copies = normalize(wrong + 0.002 * torch.randn(12, DIM, generator=torch.Generator().manual_seed(4)), dim=1)
    found = found_in(torch.cat([pictures(own, 6, 1), copies]), torch.cat([own, other]))
    assert float(found.center_GD[0] @ own[0]) > 0.9, "twelve copies are one vote, six photographs are six"
    assert bool((found.angle_Gn[0, 6:] > 60).all()), "and copies do not vouch for each other"
    stand_in = found.duplicate_Gn[0]
    assert stand_in[:6].tolist() == [0, 1, 2, 3, 4, 5] and len(set(stand_in[6:].tolist())) == 1
    assert int(stand_in[6]) in range(6, 18)


def test_of_near_duplicates_the_one_of_most_worth_stands_for_the_others_unless_it_is_doubtful() -> None:
    generator = torch.Generator().manual_seed(3)
    mean = normalize(torch.randn(DIM, generator=generator), dim=0)
    vectors = normalize(mean + 0.05 * torch.randn(8, DIM, generator=generator), dim=1)
    vectors[5:] = normalize(vectors[5] + 0.002 * torch.randn(3, DIM, generator=generator), dim=1)
    worth = torch.tensor([[0.0, 0, 0, 0, 0, 4, 9, 1]])
    found = consensus(vectors[None], mean[None, None], clean, worth_Gn=worth)
    assert found.duplicate_Gn[0].tolist() == [0, 1, 2, 3, 4, 6, 6, 6]
    all_near, angle = torch.ones(1, 3, 3, dtype=torch.bool), torch.tensor([[30.0, 20.0, 25.0]])
    doubtful = torch.tensor([[False, True, False]])
    heads = module._stand_ins(all_near, angle, doubtful, torch.tensor([[1.0, 9.0, 1.0]]), torch.arange(3))
    assert heads.tolist() == [[2, 2, 2]], "what does not agree stands for nobody that does; of equal worth the nearest"


def test_a_chain_of_near_duplicates_is_not_one_photograph() -> None:
    plane = [torch.tensor([math.cos(math.radians(d)), math.sin(math.radians(d))] + [0.0] * (DIM - 2)) for d in (0, 10, 20)]
    assert found_in(torch.stack(plane), duplicate_angle_deg=12.0).duplicate_Gn[0].tolist() in ([0, 0, 2], [1, 1, 1], [0, 2, 2])
    apart = found_in(torch.stack([plane[0], plane[2]]), duplicate_angle_deg=12.0)
    assert apart.duplicate_Gn[0].tolist() == [0, 1]
    assert found_in(torch.stack([plane[0], plane[0]]), duplicate_angle_deg=0.1).duplicate_Gn[0].tolist() == [0, 0]


def test_a_large_identity_is_compared_with_an_even_choice_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    own = people(0, 1)
    vectors = torch.cat([pictures(own, 60, 1), people(2, 60)])
    whole = found_in(vectors)
    monkeypatch.setattr(module, "MAX_REFERENCES", 40)
    part = found_in(vectors)
    assert torch.allclose(whole.angle_Gn, part.angle_Gn, atol=1.0) and part.density_Gn.shape == (1, 120)
    assert bool((part.density_Gn[0, :60] < 60).all())


def test_what_has_no_direction_takes_no_part() -> None:
    vectors = pictures(people(0, 1), 5, 1)
    broken = torch.cat([vectors, torch.zeros(1, DIM), torch.full((1, DIM), torch.nan)])
    found = found_in(broken, vectors.mean(dim=0, keepdim=True))
    assert bool(found.angle_Gn[0, 5:].isnan().all())
    assert found.angle_Gn[0, :5].tolist() == pytest.approx(found_in(vectors).angle_Gn[0].tolist(), abs=1e-3)
    nothing = found_in(torch.zeros(3, DIM), torch.zeros(1, DIM))
    assert float(nothing.mass_G[0]) == 0.0 and bool((nothing.center_GD == 0).all()) and nothing.duplicate_Gn[0].tolist() == [0, 1, 2]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_rotating_and_permuting_change_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.cat([pictures(people(seed, 1), 8, seed + 1), people(seed + 2, 5)]).double()
    before = found_in(vectors)
    turn, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))
    assert torch.allclose(found_in(vectors @ turn).angle_Gn, before.angle_Gn, atol=1e-2)
    order = torch.randperm(len(vectors), generator=generator)
    assert torch.allclose(found_in(vectors[order]).angle_Gn[0], before.angle_Gn[0, order], atol=1e-2)


def test_groups_hold_every_sample_once_and_one_size_each() -> None:
    index = torch.tensor([4, 1, 4, 2, 2, 4, 7])
    seen = []
    for identities, rows in groups_of_one_size(index, DIM):
        assert rows.shape[0] == len(identities)
        for identity, its in zip(identities.tolist(), rows.tolist(), strict=True):
            assert index[its].tolist() == [identity] * len(its) and len(its) == int((index == identity).sum())
            seen += its
    assert sorted(seen) == list(range(7))
