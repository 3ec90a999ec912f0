"""The fused head against the plain one in float64: loss, both gradients, ties, parts, budgets, margins, and what it holds in memory."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from arcface_core.angles import cosine, normalize
from arcface_core.fused import own_and_others
from arcface_core.heads import SubCenterHead
from arcface_core.margins import MARGINS, Margin


def draw(seed: int, batch: int, classes: int, k: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and centers of any length, class indices, float32."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(classes * k, 1, generator=generator) + 0.01
    weight = torch.randn(classes * k, dim, generator=generator) * lengths
    return torch.randn(batch, dim, generator=generator) * 3, weight, torch.randint(classes, (batch,), generator=generator)


def plain(features: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, k: int, scale: float, margin: Margin) -> list[torch.Tensor]:
    """Loss and gradients by the definition, in float64."""
    head = SubCenterHead(len(weight) // k, weight.shape[1], num_subcenters=k, margin=margin, scale=scale).double()
    head.weight.data = weight.double()
    wide = features.double().requires_grad_()
    loss = functional.cross_entropy(head.logits(wide, index), index)
    return [loss.detach(), *torch.autograd.grad(loss, (wide, head.weight))]


def fused(
    features: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, k: int, scale: float, margin: Margin, **how: object
) -> list[torch.Tensor]:
    ours, centers = features.clone().requires_grad_(), weight.clone().requires_grad_()
    own, others = own_and_others(normalize(ours), centers, index, num_subcenters=k, scale=scale, **how)  # type: ignore[arg-type]
    loss = functional.softplus(others - scale * margin(own), threshold=50.0).mean()
    return [loss.detach(), *torch.autograd.grad(loss, (ours, centers))]


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 12),
    classes=st.integers(2, 40),
    k=st.integers(1, 5),
    dim=st.integers(4, 24),
    scale=st.sampled_from([1.0, 16.0, 64.0]),
    margin=st.sampled_from(sorted(MARGINS)),
    part=st.integers(1, 50),
    budget=st.sampled_from([0, None]),
)
def test_loss_and_gradients_are_the_plain_heads(
    seed: int, batch: int, classes: int, k: int, dim: int, scale: float, margin: str, part: int, budget: int | None
) -> None:
    features, weight, index = draw(seed, batch, classes, k, dim)
    cos_BCK = cosine(features.double(), weight.double()).view(batch, classes, k)
    if k > 1:
        best = cos_BCK.topk(2, dim=2).values
        assume(float((best[..., 0] - best[..., 1]).min()) > 1e-5)  # nearer ones may change places by rounding alone
    wanted = plain(features, weight, index, k, scale, MARGINS[margin])
    got = fused(features, weight, index, k, scale, MARGINS[margin], part_size=part, budget_bytes=budget)
    assert [error(*pair) <= 1e-5 for pair in zip(got, wanted, strict=True)] == [True] * 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 4), part=st.integers(1, 8), budget=st.sampled_from([0, None]))
def test_of_equal_subcenters_the_lowest_has_the_gradient(seed: int, k: int, part: int, budget: int | None) -> None:
    """Vectors of +-1 in four dimensions: every product and length is exact, and most maxima are shared."""
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randint(2, (rows, 4), generator=generator) * 2.0 - 1 for rows in (6, 7 * k))
    index = torch.randint(7, (6,), generator=generator)
    wanted = plain(features, weight, index, k, 16.0, Margin())
    got = fused(features, weight, index, k, 16.0, Margin(), part_size=part, budget_bytes=budget)
    assert max(error(*pair) for pair in zip(got, wanted, strict=True)) <= 1e-5
    copies = weight.view(7, k, 4)[:, :1].expand(7, k, 4).reshape(7 * k, 4)
    grad = fused(features, copies, index, k, 16.0, Margin(), part_size=part, budget_bytes=budget)[2].view(7, k, 4)
    assert grad[:, 0].abs().sum() > 0 and grad[:, 1:].abs().sum() == 0


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("degrees", [0.0, 30.0, 151.352, 151.353, 180.0])
def test_every_margin_from_0_through_pi_minus_m_to_pi(name: str, degrees: float) -> None:
    """pi - 0.5 is 151.352 degrees: nothing jumps there but what the formula says, and both ends have finite gradients."""
    theta = math.radians(degrees)
    features = torch.tensor([[math.cos(theta), math.sin(theta), 0.0]])
    weight = torch.tensor([[1.0, 0, 0], [0, 0, 2.0], [0, 3.0, 3.0]])
    wanted = plain(features, weight, torch.tensor([0]), 1, 8.0, MARGINS[name])
    got = fused(features, weight, torch.tensor([0]), 1, 8.0, MARGINS[name])
    assert all(bool(torch.isfinite(part).all()) for part in got)
    assert [torch.allclose(g.double(), w, rtol=1e-4, atol=1e-5) for g, w in zip(got, wanted, strict=True)] == [True] * 3


def test_gradients_are_those_of_finite_differences() -> None:
    """Of the loss without a margin, which passes gradients straight through."""
    features, weight, index = draw(3, 3, 5, 2, 4)
    inputs = (features.double().requires_grad_(), weight.double().requires_grad_())

    def outputs(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return own_and_others(normalize(x), w, index, num_subcenters=2, scale=4.0, part_size=2)

    assert torch.autograd.gradcheck(outputs, inputs)


def test_a_zero_center_is_at_90_degrees_and_can_leave() -> None:
    features, weight, index = draw(1, 4, 3, 1, 5)
    weight[1] = 0
    got = fused(features, weight, index, 1, 8.0, Margin())
    assert max(error(*pair) for pair in zip(got, plain(features, weight, index, 1, 8.0, Margin()), strict=True)) <= 1e-5
    assert float(got[2][1].norm()) > 0


def test_a_sample_of_another_shard_has_all_identities_as_others() -> None:
    features, weight, _ = draw(2, 3, 6, 2, 5)
    own, others = own_and_others(normalize(features), weight, torch.tensor([-1, -1, 2]), num_subcenters=2, scale=8.0, part_size=4)
    logits = 8 * cosine(features, weight).view(3, 6, 2).max(dim=2).values
    assert own.tolist()[:2] == [0, 0] and float(own[2]) == pytest.approx(float(logits[2, 2]) / 8, abs=1e-6)
    logits[2, 2] = -torch.inf
    assert torch.allclose(others, logits.logsumexp(dim=1), atol=1e-5)


def test_sampled_identities_give_a_sparse_gradient_of_their_rows() -> None:
    features, weight, _ = draw(5, 4, 9, 2, 6)
    chosen, index = torch.tensor([0, 3, 4, 8]), torch.tensor([0, 3, 1, 1])
    got = fused(features, weight, index, 2, 8.0, Margin(), identities_S=chosen, part_size=3)
    rows = (chosen[:, None] * 2 + torch.arange(2)).view(-1)
    wanted = plain(features, weight[rows], index, 2, 8.0, Margin())
    assert got[2].is_sparse and got[2].indices()[0].tolist() == rows.tolist()
    assert max(error(*pair) for pair in zip((got[0], got[1], got[2].values()), wanted, strict=True)) <= 1e-5


def test_narrow_operands_cost_a_cosine_a_thousandth_and_sums_stay_wide() -> None:
    features, weight, index = draw(7, 16, 200, 3, 512)
    exact = own_and_others(normalize(features), weight, index, num_subcenters=3, scale=64.0)
    narrow = own_and_others(normalize(features), weight, index, num_subcenters=3, scale=64.0, narrow=torch.bfloat16)
    assert narrow[0].dtype == torch.float32
    assert 0 < float((narrow[0] - exact[0]).abs().max()) < 1e-3 and float((narrow[1] - exact[1]).abs().max()) < 0.02


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() // 4 > self.numbers:
                self.numbers = tensor.untyped_storage().nbytes() // 4
        return made


@pytest.mark.parametrize(("budget", "most"), [(None, 40 * 1000), (0, 40 * 64 * 3)])
def test_b_x_c_x_k_never_exists(budget: int | None, most: int) -> None:
    """Beside the centers' own size (12,000 numbers) nothing is larger than B x C with the budget, and than a part without."""
    features, weight, index = draw(0, 40, 1000, 3, 4)
    with Largest() as seen:
        fused(features, weight, index, 3, 64.0, Margin(), part_size=64, budget_bytes=budget)
    assert weight.numel() <= seen.numbers <= max(most, weight.numel())


def test_a_centers_row_that_is_nan_makes_the_loss_nan() -> None:
    head = SubCenterHead(3, 4, num_subcenters=2)
    with torch.no_grad():
        head.weight[5] = torch.nan
    assert bool(head(torch.randn(2, 4), torch.tensor([0, 1])).isnan())


def test_a_class_index_that_nobody_looked_at_makes_the_loss_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where looking would be waiting, indices are not checked."""
    monkeypatch.setattr(SubCenterHead, "_check", lambda *_: None)
    head = SubCenterHead(3, 4)
    for index in (3, -1):
        assert bool(head(torch.randn(2, 4), torch.tensor([0, index])).isnan())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("is_narrow", [False, True])
def test_a_gpu_gives_what_the_cpu_gives(is_narrow: bool) -> None:
    features, weight, index = draw(11, 32, 500, 3, 64)
    wanted = plain(features, weight, index, 3, 64.0, Margin())
    head = SubCenterHead(500, 64).cuda()
    head.weight.data = weight.cuda()
    ours = features.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=is_narrow):
        loss = head(ours, index.cuda())
    loss.backward()
    assert ours.grad is not None and head.weight.grad is not None
    bound = 0.05 if is_narrow else 1e-4
    assert max(error(*pair) for pair in zip((loss.detach().cpu(), ours.grad.cpu(), head.weight.grad.cpu()), wanted, strict=True)) < bound
