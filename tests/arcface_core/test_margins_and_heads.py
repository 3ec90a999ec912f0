"""The margin and the sub-center head against float64 loops written from the paper, and against the table of gradients in its notes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcface_core.heads import SubCenterHead
from arcface_core.margins import MARGINS, Margin


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("degrees", [0.0, 1.0, 45.0, 89.9, 120.0, 151.6, 180.0])
def test_margin_is_the_formula_of_the_paper(name: str, degrees: float) -> None:
    margin, theta = MARGINS[name], math.radians(degrees)
    wanted = math.cos(margin.m1 * theta + margin.m2_rad) - margin.m3
    assert float(margin(torch.tensor(math.cos(theta), dtype=torch.float64))) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "start", "least", "where", "end"),
    [
        ("arcface", 0.878, -1, 151.4, -0.878),
        ("cosface", 0.65, -1.35, 180, -1.35),
        ("sphereface", 1, -1, 133.3, -0.454),
        ("cm1", 0.755, -1.2, 162.8, -1.155),
        ("cm2", 0.771, -1.15, 174.5, -1.146),
        ("softmax", 1, -1, 180, -1),
    ],
)
def test_where_a_target_is_least_and_what_it_is_at_both_ends(name: str, start: float, least: float, where: float, end: float) -> None:
    """The table of docs/training.md."""
    degrees = torch.linspace(0, 180, 18_001, dtype=torch.float64)
    target = MARGINS[name](torch.cos(torch.deg2rad(degrees)))
    assert [float(target[0]), float(target.min()), float(target[-1])] == pytest.approx([start, least, end], abs=6e-4)
    assert float(degrees[target.argmin()]) == pytest.approx(where, abs=0.06)


def test_margin_constants_are_those_of_table_2() -> None:
    assert {name: (m.m1, m.m2_rad, m.m3) for name, m in MARGINS.items()} == {
        "arcface": (1, 0.5, 0),
        "cosface": (1, 0, 0.35),
        "sphereface": (1.35, 0, 0),
        "cm1": (1, 0.3, 0.2),
        "cm2": (0.9, 0.4, 0.15),
        "softmax": (1, 0, 0),
    }


@pytest.mark.parametrize(
    ("degrees", "wanted"), [(60.0, -11.58), (90.0, -64.0), (120.0, -64.0), (151.6, -64.0), (161.8, -64.0), (180.0, -64.0)]
)
def test_gradient_passes_straight_through(degrees: float, wanted: float) -> None:
    """d loss / d cos of the own identity, s = 64, m = 0.5, one other identity at logit 0. It never turns positive, and is never NaN."""
    cos = torch.tensor([math.cos(math.radians(degrees))], dtype=torch.float64, requires_grad=True)
    logits = torch.stack([64 * Margin()(cos), torch.zeros(1, dtype=torch.float64)], dim=1)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert cos.grad is not None
    assert float(cos.grad) == pytest.approx(wanted, abs=0.01)


def test_half_precision_cosines_are_widened_before_the_margin() -> None:
    assert Margin()(torch.tensor([0.5], dtype=torch.float16)).dtype == torch.float32


def reference_loss(features: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, k: int, scale: float, m: float) -> float:
    """Equation 7 with plain loops."""
    total = 0.0
    classes = len(weight) // k
    for row, own in zip(features.double().tolist(), index.tolist(), strict=True):
        length = math.sqrt(sum(x * x for x in row))
        logits = []
        for c in range(classes):
            best = -2.0
            for center in weight.double()[c * k : (c + 1) * k].tolist():
                size = math.sqrt(sum(w * w for w in center))
                best = max(best, sum(x * w for x, w in zip(row, center, strict=True)) / (length * size))
            logits.append(scale * (math.cos(math.acos(best) + m) if c == own else best))
        top = max(logits)
        total += top + math.log(sum(math.exp(value - top) for value in logits)) - logits[own]
    return total / len(index)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 4))
def test_loss_is_equation_7(seed: int, classes: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = SubCenterHead(classes, 8, num_subcenters=k, margin=Margin(), scale=16.0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    features = torch.randn(5, 8, generator=generator)
    index = torch.randint(classes, (5,), generator=generator)
    wanted = reference_loss(features, head.weight.detach(), index, k, 16.0, 0.5)
    assert float(head(features, index).detach()) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_one_subcenter_is_arcface_and_copies_of_it_change_nothing() -> None:
    torch.manual_seed(0)
    one = SubCenterHead(4, 8, num_subcenters=1, scale=16.0)
    three = SubCenterHead(4, 8, num_subcenters=3, scale=16.0)
    with torch.no_grad():
        three.weight.copy_(one.weight.repeat_interleave(3, dim=0))
    features, index = torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(one(features, index), three(features, index), atol=1e-5)


def test_only_the_nearest_subcenter_of_an_identity_gets_gradient() -> None:
    head = SubCenterHead(2, 3, num_subcenters=2, scale=8.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]]))
    head(torch.tensor([[0.9, 0.1, 0.2]]), torch.tensor([0])).backward()
    assert head.weight.grad is not None
    assert [bool(row.abs().sum() > 0) for row in head.weight.grad] == [True, False, True, False]


def test_unit_centers_are_class_major() -> None:
    head = SubCenterHead(2, 2, num_subcenters=2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0], [0, 3.0], [-4.0, 0], [0, -5.0]]))
    assert head.unit_centers().tolist() == [[[1, 0], [0, 1]], [[-1, 0], [0, -1]]]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="two identities or more"):
        SubCenterHead(1, 8)
    with pytest.raises(ValueError, match="Class indices are 0 to 2"):
        SubCenterHead(3, 8)(torch.randn(2, 8), torch.tensor([0, 3]))
