"""Noise rates planted in mixtures of angles, asked back."""

import pytest
import torch

from arcface_core.noise.calibration import (
    AngleHistogram,
    Calibration,
    auroc,
    fit_calibration,
    threshold_for_noise,
    threshold_for_retention,
)
from arcface_core.noise.degenerate import degenerate_head, no_better_than_chance, too_few_pairs


def histogram(angles: torch.Tensor) -> AngleHistogram:
    found = AngleHistogram()
    found.add(angles.clamp(0, 180))
    return found


def mixture(
    rate: float, samples: int, *, pulled: float = 0.0, left_tail: float = 0.0, seed: int = 0
) -> tuple[AngleHistogram, AngleHistogram, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    is_noise = torch.rand(samples, generator=generator) < rate
    clean = 50 + 8 * torch.randn(samples, generator=generator)
    in_tail = torch.rand(samples, generator=generator) < left_tail
    clean = torch.where(in_tail, 25 + 8 * torch.randn(samples, generator=generator), clean)
    noise = 90 - pulled + 7 * torch.randn(samples, generator=generator)
    angles = torch.where(is_noise, noise, clean)
    return histogram(angles), histogram(90 + 7 * torch.randn(samples, generator=generator)), angles, is_noise


@pytest.mark.parametrize("left_tail", [0.0, 0.12])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.7])
def test_planted_noise_rate_is_found(rate: float, left_tail: float) -> None:
    own, null, _, is_noise = mixture(rate, 6000, pulled=4.0, left_tail=left_tail)
    found = fit_calibration(own, null)
    assert found.noise_rate == pytest.approx(float(is_noise.float().mean()), abs=0.05)
    assert found.noise_rate_low <= found.noise_rate <= found.noise_rate_high


def test_probability_judges_planted_noise_and_never_falls_with_the_angle() -> None:
    own, null, angles, is_noise = mixture(0.5, 4000)
    found = fit_calibration(own, null)
    probability = found.noise_probability(torch.arange(0, 180.5, 0.5))
    assert bool((probability.diff() >= -1e-6).all()) and float(probability.min()) >= 0 and float(probability.max()) <= 1
    wrong = (found.noise_probability(angles) > 0.5) != is_noise
    assert float(wrong.float().mean()) < 0.02
    assert bool(found.noise_probability(torch.tensor([float("nan")])).isnan())


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_hard_photographs_among_good_ones_are_not_called_noise(rate: float) -> None:
    """Clean angles with an exponential tail: of the real faces of docs/benchmarks.md, one in 300 lies beyond 4 deviations, where a normal has none."""
    generator = torch.Generator().manual_seed(1)
    is_noise = torch.rand(6000, generator=generator) < rate
    clean = 31 + 5 * torch.randn(6000, generator=generator) - 6.5 * torch.rand(6000, generator=generator).log()
    angles = torch.where(is_noise, 87 + 7 * torch.randn(6000, generator=generator), clean)
    found = fit_calibration(histogram(angles), histogram(87 + 7 * torch.randn(6000, generator=generator)))
    assert found.noise_rate == pytest.approx(float(is_noise.float().mean()), abs=0.002)
    dropped = (found.noise_probability(angles) > 0.5) & ~is_noise
    assert int(dropped.sum()) <= 20


@pytest.mark.parametrize("samples", [1, 5, 30])
def test_small_crawls_get_sane_numbers(samples: int) -> None:
    own, null, angles, _ = mixture(0.4, samples, seed=3)
    found = fit_calibration(own, null)
    assert 0 <= found.noise_rate_low <= found.noise_rate <= found.noise_rate_high <= 1
    assert bool(found.noise_probability(angles).isfinite().all())


def test_thresholds_keep_what_they_promise() -> None:
    own, null, angles, is_noise = mixture(0.5, 6000)
    found = fit_calibration(own, null)
    kept = angles <= threshold_for_noise(found, 0.02)
    assert float(is_noise[kept].float().mean()) < 0.04 and int(kept.sum()) > 1000
    kept = angles <= threshold_for_retention(found, 0.95)
    assert 0.92 < float(kept[~is_noise].float().mean()) < 0.99
    with pytest.raises(ValueError, match=r"share and must be in 0\.\.1"):
        threshold_for_noise(found, 1.2)


def test_histograms_add_up_and_are_stored() -> None:
    own, null, angles, _ = mixture(0.3, 500)
    assert torch.equal(histogram(angles[:200]).merge(histogram(angles[200:])).counts, own.counts)
    found = fit_calibration(own, null)
    assert Calibration.from_dict(found.to_dict()) == found
    with pytest.raises(ValueError, match="not a stored calibration"):
        Calibration.from_dict({"noise_rate": 1})
    with pytest.raises(ValueError, match="radians or cosines"):
        histogram(angles).add(torch.tensor([200.0]))


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    assert auroc(histogram(torch.tensor([10.0, 20.0])), histogram(torch.tensor([20.0, 30.0]))) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_a_head_that_learned_nothing_is_noticed() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = histogram(85 + 6 * torch.randn(3000, generator=generator))
    other = histogram(86 + 6 * torch.randn(3000, generator=generator))
    said = degenerate_head(chance, other)
    assert said is not None and "do not tell identities apart" in said
    collapsed = degenerate_head(
        histogram(20 + torch.randn(100, generator=generator)), histogram(30 + torch.randn(100, generator=generator))
    )
    assert collapsed is not None and "collapsed" in collapsed
    own, null, _, _ = mixture(0.6, 3000)
    assert degenerate_head(own, null) is None
    with pytest.raises(ValueError, match="no own angles"):
        fit_calibration(AngleHistogram(), null)


def test_pairs_of_a_model_that_sees_nothing_and_of_one_that_sees_a_fifth() -> None:
    generator = torch.Generator().manual_seed(0)

    def angles(count: int, mean: float) -> torch.Tensor:
        return (mean + 8 * torch.randn(count, generator=generator)).clamp(0, 180)

    def counted(*parts: torch.Tensor) -> AngleHistogram:
        histogram = AngleHistogram()
        for part in parts:
            histogram.add(part)
        return histogram

    other = counted(angles(20_000, 90))
    said = no_better_than_chance(counted(angles(20_000, 90)), other)
    assert said is not None and "do not tell identities apart" in said and "AUROC of 20000 pairs" in said and "0.52 wanted" in said
    assert no_better_than_chance(counted(angles(18_000, 90), angles(2_000, 40)), other) is None, (
        "at 70 % of noise a tenth of the pairs is of one person"
    )
    few = counted(angles(90, 90), angles(10, 40))
    said = too_few_pairs(few, other)
    assert no_better_than_chance(few, other) is None and said is not None, "a model that may be good is not called bad"
    assert "too small" in said and "100 pairs" in said and "up to 0.587 is chance" in said
    assert too_few_pairs(counted(angles(50, 90), angles(50, 40)), other) is None is too_few_pairs(AngleHistogram(), other)
    collapsed = no_better_than_chance(counted(angles(100, 20)), counted(angles(100, 30)))
    assert collapsed is not None and "collapsed" in collapsed
    assert no_better_than_chance(AngleHistogram(), other) is None
