"""Verdicts at their boundaries, and the rules beside each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcface_core.noise.rules import REASONS, RULES, VERDICTS, Evidence, judge, sweep

NAN = math.nan


def evidence(
    angle: list[float], *, dominant: bool = True, other: float = 90.0, noise: float = 0.0, size: int = 9, dtype: torch.dtype = torch.float32
) -> Evidence:
    n = len(angle)
    return Evidence(
        angle_deg=torch.tensor(angle, dtype=dtype),
        nearest_angle_deg=torch.tensor(angle, dtype=dtype),
        is_dominant=torch.full((n,), dominant),
        other_angle_deg=torch.full((n,), other, dtype=dtype),
        noise_probability=torch.full((n,), noise, dtype=dtype),
        identity_size=torch.full((n,), size),
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
