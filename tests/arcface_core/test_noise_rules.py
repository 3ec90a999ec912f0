"""Verdicts at their boundaries, and the rules beside each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcface_core.noise.rules import REASONS, RULES, VERDICTS, Evidence, judge, sweep

NAN = math.nan


def evidence(
    angle: list[float],
    *,
    dominant: bool = True,
    other: float = 90.0,
    third: float = 120.0,
    noise: float = 0.0,
    size: int = 9,
    mass: float = 5.0,
    second_mass: float = 0.0,
    copy: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Evidence:
    n = len(angle)
    return Evidence(
        angle_deg=torch.tensor(angle, dtype=dtype),
        nearest_angle_deg=torch.tensor(angle, dtype=dtype),
        is_dominant=torch.full((n,), dominant),
        other_angle_deg=torch.full((n,), other, dtype=dtype),
        consensus_angle_deg=torch.tensor(angle, dtype=dtype),
        next_other_angle_deg=torch.full((n,), third, dtype=dtype),
        noise_probability=torch.full((n,), noise, dtype=dtype),
        identity_size=torch.full((n,), size),
        mass=torch.full((n,), mass),
        second_mass=torch.full((n,), second_mass),
        is_near_duplicate=torch.full((n,), copy),
    )


def said(found: Evidence, rule: str, **options: float) -> list[tuple[str, str]]:
    judged = judge(found, rule=rule, **options)  # type: ignore[arg-type]
    return [(VERDICTS[v], REASONS[r]) for v, r in zip(judged.verdict_N.tolist(), judged.reason_N.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_75_degrees_is_kept_and_the_next_number_is_not(dtype: torch.dtype) -> None:
    above = float(torch.nextafter(torch.tensor(75.0, dtype=dtype), torch.tensor(180.0, dtype=dtype)))
    assert said(evidence([75.0, above, 0.0], dtype=dtype), "angle") == [("keep", "accepted"), ("drop", "angle"), ("keep", "accepted")]


def test_a_cut_that_no_float32_is_equal_to_still_keeps_its_boundary() -> None:
    assert said(evidence([70.1]), "angle", max_angle_deg=70.1) == [("keep", "accepted")]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("angle", ["keep", "keep", "drop", "drop"]),
        ("nondominant", ["keep", "drop", "keep", "drop"]),
        ("either", ["keep", "drop", "drop", "drop"]),
        ("both", ["keep", "keep", "keep", "drop"]),
    ],
)
def test_the_published_rules_side_by_side(rule: str, wanted: list[str]) -> None:
    cases = [(40.0, True), (40.0, False), (80.0, True), (80.0, False)]
    assert [said(evidence([angle], dominant=is_dominant), rule)[0][0] for angle, is_dominant in cases] == wanted


def test_calibrated_cuts_by_probability_and_its_boundary_is_kept() -> None:
    assert said(evidence([10.0], noise=0.5), "calibrated") == [("keep", "accepted")]
    assert said(evidence([10.0], noise=0.501), "calibrated") == [("drop", "noise_probability")]


def test_without_evidence_nobody_is_judged() -> None:
    assert said(evidence([NAN]), "angle") == [("review", "no_evidence")]
    assert said(evidence([10.0], noise=NAN), "calibrated") == [("review", "no_evidence")]
    assert said(evidence([0.0], size=1), "angle") == [("review", "too_few_samples")]


def test_relabel_wants_the_other_identity_near_and_nearer() -> None:
    assert said(evidence([85.0], other=50.0), "angle", relabel_angle_deg=50.0) == [("relabel", "angle")]
    assert said(evidence([85.0], other=50.1), "angle", relabel_angle_deg=50.0) == [("drop", "angle")]
    assert said(evidence([40.0], other=20.0), "angle", relabel_angle_deg=50.0) == [("keep", "accepted")], "what is kept is not moved"
    assert said(evidence([45.0], dominant=False, other=50.0), "nondominant", relabel_angle_deg=60.0) == [("drop", "nondominant")]


@given(st.lists(st.floats(0, 180, width=32), min_size=1, max_size=50), st.floats(60, 90, width=32))
def test_a_wider_cut_never_drops_more(angles: list[float], cut: float) -> None:
    tight = {i for i, (verdict, _) in enumerate(said(evidence(angles), "angle", max_angle_deg=cut)) if verdict == "keep"}
    wide = {i for i, (verdict, _) in enumerate(said(evidence(angles), "angle", max_angle_deg=min(180, cut + 5))) if verdict == "keep"}
    assert tight <= wide
    assert int(sweep(torch.tensor(angles), [cut])[0]) == len(tight)


def test_every_rule_gives_every_sample_a_verdict_and_a_reason() -> None:
    for rule in RULES:
        assert len(said(evidence([10.0, 80.0, NAN]), rule)) == 3


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="choose one of angle, nondominant"):
        judge(evidence([1.0]), rule="best")
    with pytest.raises(ValueError, match=r"max_angle_deg must be in 0\.\.180"):
        judge(evidence([1.0]), rule="angle", max_angle_deg=190)


def test_two_people_of_one_size_under_one_name_are_a_tie_and_nobody_guesses() -> None:
    assert said(evidence([20.0, 95.0], mass=10, second_mass=8.1), "calibrated") == [("review", "tie")] * 2
    assert said(evidence([20.0], mass=10, second_mass=7.9), "calibrated") == [("keep", "accepted")]
    assert said(evidence([20.0], mass=10, second_mass=10), "angle") == [("keep", "accepted")]  # the paper's rules know no tie


def test_an_identity_in_which_nobody_agrees_has_no_consensus() -> None:
    assert said(evidence([88.0, 20.0], mass=1.4, second_mass=1.4), "calibrated") == [("review", "no_consensus")] * 2
    assert said(evidence([88.0], mass=math.nan), "calibrated") == [("review", "no_consensus")]
    assert said(evidence([20.0], mass=1.5), "calibrated") == [("keep", "accepted")]


def test_of_near_duplicates_the_stand_in_is_kept_and_a_wrong_one_is_dropped_for_being_wrong() -> None:
    assert said(evidence([20.0], copy=True), "calibrated", keep_near_duplicates=False) == [("drop", "near_duplicate")]
    assert said(evidence([20.0], copy=True), "calibrated") == [("keep", "accepted")]
    assert said(evidence([90.0], copy=True, noise=0.9), "calibrated", keep_near_duplicates=False) == [("drop", "noise_probability")]


def test_a_relabel_wants_the_other_identity_well_ahead_of_any_third() -> None:
    assert said(evidence([90.0], other=40.0, third=58.0), "angle") == [("relabel", "angle")]  # exactly 18 degrees ahead
    assert said(evidence([90.0], other=40.0, third=57.9), "angle") == [("drop", "angle")]
    assert said(evidence([90.0], other=40.0, third=math.nan), "angle") == [("relabel", "angle")]  # there is no third
