"""The fused judge on planted distributions: it uses each kind of evidence, holds its promises on thresholds, and knows no noise where none is."""

import pytest
import torch
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram, Calibration, angle_of_probability, fit_calibration
from arcface_core.noise.fusion import FusedJudge, JointHistogram, OwnAngles, fit_fusion
from arcface_core.noise.rivals import belongs_elsewhere


def planted(noise: int, clean: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(is noise, own, rival, density) in degrees. Half of the noise are flips, whose rival is near."""
    draw = torch.Generator().manual_seed(seed)

    def normal(mean: float, deviation: float, count: int) -> Tensor:
        return (mean + deviation * torch.randn(count, generator=draw)).clamp(0, 180)

    wrong = torch.cat([torch.ones(noise, dtype=torch.bool), torch.zeros(clean, dtype=torch.bool)])
    own = torch.cat([normal(80, 8, noise), normal(50, 12, clean)])
    rival = torch.cat([normal(48, 8, noise // 2), normal(72, 4, noise - noise // 2 + clean)])
    density = torch.cat([normal(85, 6, noise), normal(60, 8, clean)])
    return wrong, own, rival, density


def fitted(own: Tensor, rival: Tensor, density: Tensor, rate: float | None = None) -> tuple[FusedJudge, JointHistogram, Calibration]:
    histogram, null, joint = AngleHistogram(), AngleHistogram(), JointHistogram()
    histogram.add(own)
    null.add((80 + 8 * torch.randn(len(own), generator=torch.Generator().manual_seed(9))).clamp(0, 180))
    joint.add(own[::2], rival[::2], density[::2])
    joint.add(own[1::2], rival[1::2], density[1::2])
    everyone = fit_calibration(histogram, null)
    rest = AngleHistogram()
    elsewhere = belongs_elsewhere(own, rival, angle_of_probability(everyone, 0.5))
    rest.add(own[~elsewhere])
    split = OwnAngles(everyone=everyone, rest=fit_calibration(rest, null), elsewhere_share=float(elsewhere.float().mean()))
    return fit_fusion(split, joint, held_out_rate=rate), joint, everyone


def errors(removed: Tensor, wrong: Tensor) -> int:
    return int((removed != wrong).sum())


def test_all_evidence_judges_better_than_the_own_angle() -> None:
    wrong, own, rival, density = planted(2000, 2000)
    judge, _, calibration = fitted(own, rival, density)
    alone, fused = calibration.noise_probability(own) > 0.5, judge.noise_probability(own, rival, density) > 0.5
    assert errors(fused, wrong) < 0.7 * errors(alone, wrong)
    assert judge.noise_rate == pytest.approx(0.5, abs=0.04)


def test_without_noise_next_to_nothing_is_called_noise() -> None:
    _, own, rival, density = planted(0, 3000)
    judge, _, _ = fitted(own, rival, density)
    assert float((judge.noise_probability(own, rival, density) > 0.5).float().mean()) < 0.02


def test_unknown_rival_and_density_shift_nothing() -> None:
    _, own, rival, density = planted(500, 500)
    judge, _, _ = fitted(own, rival, density)
    unknown, rest = torch.full_like(own, torch.nan), judge.own_angles.rest
    assert judge.noise_probability(own, unknown, unknown).tolist() == pytest.approx(rest.noise_probability(own).tolist(), abs=1e-4)
    assert bool(judge.noise_probability(unknown, rival, density).isnan().all())


def test_one_identity_without_rivals_is_judged_by_what_there_is() -> None:
    wrong, own, _, density = planted(300, 300)
    judge, _, _ = fitted(own, torch.full_like(own, torch.nan), density)
    assert errors(judge.noise_probability(own, torch.full_like(own, torch.nan), density) > 0.5, wrong) < 60


def test_a_wanted_purity_and_a_wanted_retention_are_met() -> None:
    wrong, own, rival, density = planted(3000, 3000)
    judge, joint, _ = fitted(own, rival, density)
    probability = judge.noise_probability(own, rival, density)
    for wanted in (0.01, 0.03):
        kept = probability <= judge.threshold_for_noise(joint, wanted)
        assert float(wrong[kept].float().mean()) < wanted + 0.01 and int(kept.sum()) > 1500
    for wanted in (0.9, 0.99):
        kept = probability <= judge.threshold_for_retention(joint, wanted)
        assert float(kept[~wrong].float().mean()) == pytest.approx(wanted, abs=0.04)
    assert judge.threshold_for_noise(joint, 0.0) < judge.threshold_for_noise(joint, 0.05) <= judge.threshold_for_noise(joint, 1.0)


def test_a_higher_rate_among_the_held_out_shifts_the_odds_and_a_lower_one_does_not() -> None:
    _, own, rival, density = planted(1000, 1000)
    plain, _, _ = fitted(own, rival, density)
    more, _, _ = fitted(own, rival, density, rate=plain.noise_rate + 0.05)
    less, _, _ = fitted(own, rival, density, rate=plain.noise_rate - 0.05)
    assert more.noise_rate == pytest.approx(plain.noise_rate + 0.05, abs=1e-3) and more.log_odds_shift > 0
    assert less.log_odds_shift == pytest.approx(0, abs=1e-6) and less.noise_rate == pytest.approx(plain.noise_rate, abs=1e-6)


def test_probabilities_are_reliable_on_planted_truth() -> None:
    wrong, own, rival, density = planted(6000, 6000)
    judge, _, _ = fitted(own, rival, density)
    probability = judge.noise_probability(own, rival, density)
    for low in (0.0, 0.9):
        chosen = (probability >= low) & (probability <= low + 0.1)
        assert float(wrong[chosen].float().mean()) == pytest.approx(float(probability[chosen].mean()), abs=0.06)


def test_look_alikes_are_told_from_hard_photographs_by_the_rival() -> None:
    """Flips to the nearest identity lie where hard photographs of the right person lie; only the rival tells them apart."""
    draw = torch.Generator().manual_seed(4)
    wrong = torch.cat([torch.ones(400, dtype=torch.bool), torch.zeros(3600, dtype=torch.bool)])
    own = torch.cat([62 + 4 * torch.randn(400, generator=draw), 42 + 8 * torch.randn(3600, generator=draw)])
    own[400:580] += 18  # one clean photograph in twenty is hard
    rival = torch.cat([35 + 6 * torch.randn(400, generator=draw), 68 + 4 * torch.randn(3600, generator=draw)])
    judge, _, everyone = fitted(own, rival, own + 5)
    removed = judge.noise_probability(own, rival, own + 5) > 0.5
    assert float(removed[wrong].float().mean()) > 0.95 and int(removed[~wrong].sum()) < 20
    alone = everyone.noise_probability(own) > 0.5
    assert errors(alone, wrong) > 300, "the own angle alone sees one population with a long tail"
    low, high = judge.own_angles.noise_rate_interval
    assert low - 0.005 <= 0.1 <= high + 0.005 and judge.noise_rate == pytest.approx(0.1, abs=0.01)
