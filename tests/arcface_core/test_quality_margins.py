"""AdaFace and MagFace against float64 loops written from the papers' formulas, at norms of every size; what has a gradient; what is remembered."""

import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arcface_core.backbones import build_backbone, let_norms_move
from arcface_core.heads import SubCenterHead
from arcface_core.margins import MARGINS
from arcface_core.quality import QUALITY_MARGINS, AdaFace, MagFace, QualityMargin
from arcface_core.training import LoopOptions, TrainState, load_state_tensors, new_state, state_tensors, training_steps
from pipeline.config import TrainConfig

EXTREME = {
    "zero": [0.0] * 5,
    "tiny": [1e-30, 1e-12, 1e-6, 1e-3, 1e-2],
    "huge": [1e3, 1e6, 1e12, 1e18, 3e38],
    "all equal": [22.5] * 5,
    "apart": [0.0, 1e-8, 22.5, 60.0, 1e20],
}
norms_of_any_size = st.lists(
    st.one_of(st.floats(0, 200, width=32), st.sampled_from([0.0, 1e-12, 10.0, 110.0, 1e12])), min_size=1, max_size=8
)
cosines = st.floats(-1, 1)


def adaface(batches: list[list[float]], cos: float, norm: float, m: float, h: float, weight: float) -> float:
    """Equations of the paper's section 3, and the bounds of the published code."""
    mean, std = 20.0, 100.0
    for batch in batches:
        held = [min(max(value, 0.001), 100.0) for value in batch]
        middle = sum(held) / len(held)
        spread = math.sqrt(sum((value - middle) ** 2 for value in held) / (len(held) - 1)) if len(held) > 1 else 0.0
        mean, std = weight * middle + (1 - weight) * mean, weight * spread + (1 - weight) * std
    z = min(max((min(max(norm, 0.001), 100.0) - mean) / (std + 0.001) * h, -1.0), 1.0)
    g_angle, g_add = -m * z, m * z + m
    return math.cos(min(max(math.acos(cos) + g_angle, 0.0), math.pi)) - g_add


def magface(cos: float, norm: float, norms: tuple[float, float], margins: tuple[float, float]) -> float:
    """Section 3.2 and its m(a)."""
    a = min(max(norm, norms[0]), norms[1])
    m = margins[0] + (margins[1] - margins[0]) / (norms[1] - norms[0]) * (a - norms[0])
    return math.cos(min(math.acos(cos) + m, math.pi))


@given(st.lists(norms_of_any_size, min_size=1, max_size=4), cosines, st.floats(0, 0.8), st.floats(0, 1), st.floats(0.001, 1))
def test_adaface_is_the_formula_of_the_paper(batches: list[list[float]], cos: float, m: float, h: float, weight: float) -> None:
    margin = AdaFace(m_rad=m, h=h, new_weight=weight).double()
    for batch in batches:
        margin.observe(torch.tensor(batch, dtype=torch.float64))
    newest = torch.tensor(batches[-1], dtype=torch.float64)
    wanted = [adaface(batches, cos, norm, m, h, weight) for norm in batches[-1]]
    assert margin(torch.full_like(newest, cos), newest).tolist() == pytest.approx(wanted, abs=1e-6)


@given(norms_of_any_size, cosines, st.floats(0.1, 50), st.floats(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_magface_is_the_formula_of_the_paper(batch: list[float], cos: float, least: float, more: float, m: float, rise: float) -> None:
    margin = MagFace(least_norm=least, most_norm=least + more, least_m_rad=m, most_m_rad=m + rise, norm_weight=7.0)
    norm = torch.tensor(batch, dtype=torch.float64)
    wanted = [magface(cos, value, (least, least + more), (m, m + rise)) for value in batch]
    assert margin(torch.full_like(norm, cos), norm).tolist() == pytest.approx(wanted, abs=1e-9)
    bounded = [min(max(value, least), least + more) for value in batch]
    assert margin.penalty(norm).tolist() == pytest.approx([7.0 * (a / (least + more) ** 2 + 1 / a) for a in bounded], rel=1e-9)


def test_the_published_constants() -> None:
    ada, mag = AdaFace(), MagFace()
    assert (ada.m_rad, ada.h, ada.new_weight, float(ada.mean), float(ada.std)) == (0.4, 0.333, 0.01, 20, 100)
    assert (mag.least_norm, mag.most_norm, mag.least_m_rad, mag.most_m_rad, mag.norm_weight) == (10, 110, 0.45, 0.8, 35)
    for name, published in (("adaface", ada), ("magface", mag)):
        proportional = QUALITY_MARGINS[name](margin_rad=0.5, scale=64.0, embedding_dim=512)
        assert vars(proportional).keys() == vars(published).keys()
        numbers = {key: value for key, value in vars(published).items() if isinstance(value, float)}
        assert {key: vars(proportional)[key] for key in numbers} == pytest.approx(numbers)


def test_every_margin_of_the_settings_is_there() -> None:
    assert set(get_args(get_type_hints(TrainConfig)["margin"])) == set(MARGINS) | set(QUALITY_MARGINS)


def test_adaface_goes_from_arcface_through_cosface_to_a_negative_angle() -> None:
    """By the norm: far below the mean, at it, and far above."""
    margin = AdaFace(m_rad=0.4)
    margin.mean.fill_(20.0)
    margin.std.fill_(2.0)
    theta = torch.tensor([1.0], dtype=torch.float64)
    low, middle, high = (float(margin(theta.cos(), torch.tensor([norm], dtype=torch.float64))) for norm in (1.0, 20.0, 99.0))
    assert [low, middle, high] == pytest.approx([math.cos(1.4), math.cos(1.0) - 0.4, math.cos(0.6) - 0.8], abs=1e-6)


def head(margin: QualityMargin, classes: int = 6, dim: int = 8, k: int = 2) -> SubCenterHead:
    made = SubCenterHead(classes, dim, num_subcenters=k, margin=margin, scale=16.0)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(1)))
    return made


def of_norms(norms: list[float], dim: int = 8) -> Tensor:
    directions = torch.nn.functional.normalize(torch.randn(len(norms), dim, generator=torch.Generator().manual_seed(2)), dim=1)
    return (directions * torch.tensor(norms, dtype=torch.float64).unsqueeze(1)).float()


INDEX = torch.tensor([0, 1, 2, 3, 5])


@pytest.mark.parametrize("norms", EXTREME.values(), ids=EXTREME.keys())
@pytest.mark.parametrize("kind", [AdaFace, MagFace])
def test_the_loss_of_a_head_is_finite_and_moves_the_features_at_any_norm(kind: type[QualityMargin], norms: list[float]) -> None:
    made = head(kind())
    features = of_norms(norms).requires_grad_()
    for _ in range(3):
        loss = made(features, INDEX)
    loss.backward()
    assert features.grad is not None and made.weight.grad is not None
    assert bool(loss.isfinite()) and bool(features.grad.isfinite().all()) and bool(made.weight.grad.isfinite().all())
    assert all(bool(buffer.isfinite()) for buffer in made.buffers())


@pytest.mark.parametrize("kind", [AdaFace, MagFace])
def test_the_loss_of_a_head_is_that_of_its_logits_and_penalty(kind: type[QualityMargin]) -> None:
    made = head(kind()).double()
    features = of_norms([0.5, 11.0, 20.0, 90.0, 200.0]).double()
    loss = float(made(features, INDEX).detach())
    plain = torch.nn.functional.cross_entropy(made.logits(features, INDEX), INDEX)
    assert isinstance(made.margin, QualityMargin)
    assert loss == pytest.approx(float((plain + made.margin.penalty(features.norm(dim=1)).mean()).detach()), rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("kind", [AdaFace, MagFace])
def test_a_gpu_has_the_loss_and_the_memory_of_the_processor(kind: type[QualityMargin]) -> None:
    here, there = head(kind()), head(kind()).cuda()
    features = of_norms([0.5, 11.0, 20.0, 90.0, 200.0])
    assert float(there(features.cuda(), INDEX.cuda())) == pytest.approx(float(here(features, INDEX)), rel=1e-5)
    assert [float(buffer) for buffer in there.buffers()] == pytest.approx([float(buffer) for buffer in here.buffers()], rel=1e-5)


def gradient(margin: QualityMargin, norm: float, degrees: float) -> tuple[float, float]:
    """Of the target, by cosine and by norm."""
    cos = torch.tensor([math.cos(math.radians(degrees))], dtype=torch.float64, requires_grad=True)
    length = torch.tensor([norm], dtype=torch.float64, requires_grad=True)
    (target,) = margin(cos, length)
    by_cos, by_norm = torch.autograd.grad(target, (cos, length), allow_unused=True)
    return float(by_cos), 0.0 if by_norm is None else float(by_norm)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 150.0, 179.0, 180.0])
@pytest.mark.parametrize("norm", [0.0, 5.0, 30.0, 60.0, 500.0])
def test_the_gradient_is_straight_through_the_cosine_and_by_the_norm_where_magface_has_one(norm: float, degrees: float) -> None:
    assert gradient(AdaFace(), norm, degrees) == (1.0, 0.0)
    by_cos, by_norm = gradient(MagFace(), norm, degrees)
    m = 0.45 + 0.0035 * (norm - 10)
    turned = math.radians(degrees) + m
    wanted = -math.sin(turned) * 0.0035 if 10 <= norm <= 110 and turned < math.pi else 0.0
    assert by_cos == 1.0 and by_norm == pytest.approx(wanted, abs=1e-12) and by_norm <= 0, "a margin never raises a norm"


def test_magface_settles_on_a_norm_that_is_higher_for_the_sample_that_is_surer() -> None:
    """Gradient descent on the norm alone, of samples 20 to 120 degrees from their center: each settles inside the bounds, up to theta + m = 90 degrees
    the further out the lower (the paper's proof), and those beyond stay low."""
    margin = MagFace()
    degrees = torch.tensor([20.0, 40.0, 50.0, 60.0, 100.0, 120.0], dtype=torch.float64)
    norm = torch.full_like(degrees, 50.0).requires_grad_()
    for _ in range(4000):
        logits = 64 * margin(torch.deg2rad(degrees).cos(), norm)
        loss = (torch.nn.functional.softplus(64 * 0.4 - logits) + margin.penalty(norm)).sum()
        (slope,) = torch.autograd.grad(loss, norm)
        with torch.no_grad():
            norm -= 20 * slope.clamp(-0.1, 0.1)
    settled = norm.tolist()
    assert settled[:4] == sorted(settled[:4], reverse=True) and settled[0] > 80 and min(settled) > 10 and max(settled[2:]) < 25


@pytest.mark.parametrize("name", QUALITY_MARGINS)
def test_another_scale_width_and_strength_keep_the_balance(name: str) -> None:
    """Of the loss, as a function of relative norm: wherever a sample's norm settles at 512 dimensions it settles at 128, the root of a quarter of it."""
    wide = QUALITY_MARGINS[name](margin_rad=0.5, scale=64.0, embedding_dim=512)
    thin = QUALITY_MARGINS[name](margin_rad=0.25, scale=32.0, embedding_dim=128)
    relative = torch.linspace(0.3, 6, 40, dtype=torch.float64)
    rewards = [margin.penalty(relative * math.sqrt(dim)) for margin, dim in ((wide, 512), (thin, 128))]
    assert torch.allclose(rewards[0] * (32 / 64) * (0.25 / 0.5), rewards[1])
    if isinstance(wide, MagFace) and isinstance(thin, MagFace):
        angle = [
            torch.arccos(margin(torch.ones(40, dtype=torch.float64), relative * math.sqrt(dim)))
            for margin, dim in ((wide, 512), (thin, 128))
        ]
        assert torch.allclose(angle[0] / 2, angle[1], atol=1e-6)


def test_norms_are_observed_in_training_alone() -> None:
    made = head(AdaFace())
    features = of_norms([1.0, 2.0, 3.0, 4.0, 5.0])
    made.eval()(features, INDEX)
    made.logits(features, INDEX)
    assert [float(buffer) for buffer in made.buffers()] == [20, 100]
    made.train()(features, INDEX)
    assert [float(buffer) for buffer in made.buffers()] == pytest.approx([0.99 * 20 + 0.01 * 3, 0.99 * 100 + 0.01 * math.sqrt(2.5)])


def test_half_precision_features_have_norms_in_float32() -> None:
    """300 ones and more have a square sum that float16 rounds, and 70,000 one that it does not hold."""
    made = SubCenterHead(3, 70_000, num_subcenters=1, margin=AdaFace(new_weight=1.0), scale=16.0)
    made(torch.ones(2, 70_000, dtype=torch.float16) * 0.25, torch.tensor([0, 1]))
    assert float(made.get_buffer("margin.mean")) == pytest.approx(0.25 * math.sqrt(70_000), rel=1e-6)


def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        yield torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(16) % 4


@pytest.mark.parametrize("name", QUALITY_MARGINS)
@pytest.mark.parametrize("options", [{}, {"precision": torch.bfloat16, "accumulation": 2}, {"precision": torch.float16}])
def test_resumed_training_gives_the_same_losses_and_weights(name: str, options: dict[str, Any]) -> None:
    def fresh(seed: int = 0) -> TrainState:
        torch.manual_seed(seed)
        backbone = build_backbone("tiny", embedding_dim=16, input_px=16)
        let_norms_move(backbone)
        margin = QUALITY_MARGINS[name](margin_rad=0.5, scale=16.0, embedding_dim=16)
        return new_state(
            backbone, SubCenterHead(4, 16, margin=margin, scale=16.0, sample_rate=0.5, seed=seed), momentum=0.9, weight_decay=5e-4
        )

    def steps(state: TrainState, first: int, last: int) -> list[float]:
        how = LoopOptions(**{"seed": 3, "grad_clip_norm": 5.0} | options)
        taken = training_steps(state, batches(first, last), learning_rate=lambda _: 0.05, device=torch.device("cpu"), options=how)
        return [one.loss for one in taken]

    whole, begun, resumed = fresh(), fresh(), fresh(seed=9)
    losses = steps(whole, 0, 6)
    first = steps(begun, 0, 3)
    load_state_tensors(resumed, {name: tensor.clone() for name, tensor in state_tensors(begun).items()}, begun.step)
    assert first + steps(resumed, 3, 6) == losses
    wanted, got = state_tensors(whole), state_tensors(resumed)
    assert wanted.keys() == got.keys() and all(torch.equal(tensor, got[name]) for name, tensor in wanted.items())
    assert ("head.margin.mean" in wanted) == (name == "adaface") and not bool((wanted["backbone.features.weight"] == 1).all())


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="0 < least_norm < most_norm"):
        MagFace(least_norm=110.0, most_norm=10.0)
    made, other = head(AdaFace()), head(MagFace())
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    saved = other.state_tensors(optimizer)
    assert saved is not None
    with pytest.raises(ValueError, match="belongs to another model: it holds no mean for the margin AdaFace"):
        made.load_state_tensors(saved, optimizer)
