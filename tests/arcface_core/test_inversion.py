import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from arcface_core.angles import angle_deg, rowwise_cosine
from arcface_core.heads import SubCenterHead
from arcface_core.inversion import (
    RECIPES,
    Recipe,
    _batchnorm_gaps,
    _batchnorm_term,
    _sides,
    _total_variation,
    closed_set,
    invert,
    open_set,
)

PX, DIM, BATCH = 16, 8, 4


class Tiny(nn.Module):
    """Convolution, BatchNorm2d, linear, BatchNorm1d, as in a face backbone; with running statistics of its own."""

    def __init__(self, batchnorm: bool = True) -> None:
        super().__init__()
        norm2, norm1 = (nn.BatchNorm2d(6), nn.BatchNorm1d(DIM)) if batchnorm else (nn.Identity(), nn.Identity())
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), norm2, nn.PReLU(6), nn.Dropout(0.5), nn.Flatten())
        self.tail = nn.Sequential(nn.Linear(6 * PX * PX // 4, DIM), norm1)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.tail(self.body(x))
        return embedding


def tiny(batchnorm: bool = True) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tiny(batchnorm)
        for _ in range(20):
            net(torch.rand(32, 3, PX, PX) * 2 - 1)
        return net.eval()


def centers(count: int = BATCH) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(5))


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """What is asked of a frozen backbone: tensors, gradients, flags, modes and hooks as before, and no global random number drawn."""
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    modes, random = [module.training for module in net.modules()], torch.get_rng_state()
    yield
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    for (wanted, gradient), parameter in zip(flags, net.parameters(), strict=True):
        assert parameter.requires_grad == wanted
        assert parameter.grad is None if gradient is None else torch.equal(gradient, parameter.grad)  # type: ignore[arg-type]
    assert [module.training for module in net.modules()] == modes and hooks(net) == 0
    assert torch.equal(random, torch.get_rng_state())


def mixed() -> Tiny:
    """Some modules in training mode, some parameters frozen, one with a gradient."""
    net = tiny()
    net.body.train()
    net.body[1].eval()
    net.tail[0].weight.requires_grad_(False)
    net.tail[0].bias.grad = torch.ones(DIM)
    return net


@pytest.mark.parametrize("batchnorm", [True, False])
def test_the_angle_falls_and_is_that_of_the_images_given_back(batchnorm: bool) -> None:
    net = tiny(batchnorm)
    start = invert(net, centers(), input_px=PX, steps=0, seed=1, device="cpu")
    done = invert(net, centers(), input_px=PX, steps=150, seed=1, device="cpu")
    assert done.images.shape == (BATCH, 3, PX, PX) and done.images.dtype == torch.uint8
    with torch.no_grad():
        again = angle_deg(rowwise_cosine(net((done.images.float() - 127.5) / 127.5), centers()))
    assert done.angle_deg.numpy() == pytest.approx(again.numpy(), abs=1e-3)
    assert (start.angle_deg > 60).all() and (done.angle_deg < start.angle_deg / 2).all()
    assert done.loss_history.shape == (150,) and done.loss_history[-10:].mean() < done.loss_history[0] / 2
    assert start.loss_history.shape == (0,)


def test_from_coarse_to_fine() -> None:
    given = {"input_px": PX, "steps": 60, "seed": 1, "device": "cpu"}
    found = invert(tiny(), centers(), recipe=RECIPES["coarse"], **given)
    assert found.images.shape == (BATCH, 3, PX, PX) and len(found.loss_history) == 60 and float(found.angle_deg.max()) < 30
    assert _sides(RECIPES["coarse"], PX, 60) == [4] * 15 + [8] * 21 + [16] * 24
    bent = []  # a picture that was scaled up from 4 x 4 bends less than any other
    for levels in (((4, 1.0),), ()):
        images = invert(tiny(), centers(), recipe=replace(RECIPES["coarse"], coarse=levels), **given).images.float()
        bent.append(float(images.diff(n=2, dim=-1).abs().mean()))
    assert bent[0] < bent[1] / 3


def test_each_image_goes_to_its_own_center() -> None:
    net = tiny()
    done = invert(net, centers(), input_px=PX, steps=150, seed=1, device="cpu")
    with torch.no_grad():
        emb_BD = net((done.images.float() - 127.5) / 127.5)
    crossed = angle_deg(torch.nn.functional.cosine_similarity(emb_BD[:, None], centers()[None], dim=-1))
    assert crossed.argmin(dim=1).tolist() == list(range(BATCH))
    turned = invert(net, centers() * torch.tensor([[0.1], [1.0], [7.0], [100.0]]), input_px=PX, steps=150, seed=1, device="cpu")
    assert turned.angle_deg.numpy() == pytest.approx(done.angle_deg.numpy(), abs=5), "only the direction of a center counts"


def test_one_seed_gives_one_image_whatever_else_is_random() -> None:
    net = tiny()
    first = invert(net, centers(), input_px=PX, steps=8, seed=3, device="cpu")
    torch.rand(100)
    second = invert(net, centers(), input_px=PX, steps=8, seed=3, device="cpu")
    other = invert(net, centers(), input_px=PX, steps=8, seed=4, device="cpu")
    assert torch.equal(first.images, second.images) and torch.equal(first.loss_history, second.loss_history)
    assert not torch.equal(first.images, other.images)


def test_the_backbone_is_left_as_it_was() -> None:
    net = mixed()
    with untouched(net):
        invert(net, centers(), input_px=PX, steps=3, seed=0, device="cpu")


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_backbone_is_left_as_it_was_also_after_an_error(fails_at: int) -> None:
    net = mixed()

    def stop(step: int, loss: float) -> None:
        assert hooks(net) == 2, "the statistics of both BatchNorm layers are watched"
        if step == fails_at:
            raise KeyboardInterrupt

    with untouched(net), pytest.raises(KeyboardInterrupt):
        invert(net, centers(), input_px=PX, steps=3, seed=0, device="cpu", on_step=stop)
    with untouched(net), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        invert(net, centers(), input_px=PX + 4, steps=3, seed=0, device="cpu")


def test_evaluation_mode_is_used_whatever_the_mode_was() -> None:
    evaluated, training = tiny(), tiny().train()
    expected = invert(evaluated, centers(), input_px=PX, steps=5, seed=0, device="cpu")
    found = invert(training, centers(), input_px=PX, steps=5, seed=0, device="cpu")
    assert torch.equal(found.images, expected.images), "dropout or batch statistics were at work"


def test_the_papers_terms_reach_their_goals_by_the_papers_recipe() -> None:
    net = tiny()
    with torch.no_grad():
        wanted = net(torch.rand(BATCH, 3, PX, PX, generator=torch.Generator().manual_seed(9)) * 2 - 1)
    others = torch.randn(20, DIM, generator=torch.Generator().manual_seed(6))
    known = torch.cat([others, centers()])
    common = {"input_px": PX, "steps": 200, "seed": 1, "device": "cpu", "recipe": RECIPES["paper"]}
    closed = invert(net, centers(), identity=closed_set(known, torch.arange(20, 20 + BATCH), scale=16.0), **common)  # type: ignore[arg-type]
    opened = invert(net, wanted, identity=open_set(wanted), **common)  # type: ignore[arg-type]
    start = invert(net, wanted, identity=open_set(wanted), **common | {"steps": 0})  # type: ignore[arg-type]
    with torch.no_grad():
        found = net((closed.images.float() - 127.5) / 127.5)
        before, after = ((net((one.images.float() - 127.5) / 127.5) - wanted).norm(dim=1) for one in (start, opened))
    assert torch.nn.functional.cosine_similarity(found[:, None], known[None], dim=-1).argmax(dim=1).tolist() == list(range(20, 20 + BATCH))
    assert (after < before / 2).all(), "features are met, not only their direction"


def test_the_closed_set_term_is_the_heads_loss() -> None:
    head = SubCenterHead(12, DIM, num_subcenters=1, scale=16.0)
    features, index = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 0, 11, 3])
    term = closed_set(head.unit_centers()[:, 0], index, margin=head.margin, scale=16.0)
    assert float(term(features)) == pytest.approx(float(head(features, index).detach()), rel=1e-5)


def test_steps_are_reported_with_their_loss() -> None:
    seen: list[tuple[int, float]] = []
    done = invert(tiny(), centers(), input_px=PX, steps=4, seed=0, device="cpu", on_step=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert [loss for _, loss in seen] == pytest.approx(done.loss_history.tolist())


def test_the_loss_is_the_sum_that_the_docstring_says() -> None:
    """The first loss from a given start, by plain loops in float64. At 16 pixels there is no jitter; a symmetric start ignores the mirror."""
    net = tiny()
    half = torch.rand(BATCH, 3, PX, PX // 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    init = torch.cat([half, half.flip(-1)], dim=-1)
    weights = {"bn_weight": 0.3, "tv_weight": 0.02, "l2_weight": 0.05}
    done = invert(net, centers(), input_px=PX, steps=1, seed=0, device="cpu", init=init, recipe=Recipe(**weights))

    double, x = tiny().double(), init.double()
    with torch.no_grad():
        inputs = [double.body[0](x), double.tail[0](double.body(x))]
        emb_BD = double(x)
    target = centers().double()
    identity = sum(1 - float(e @ c / math.sqrt(e @ e) / math.sqrt(c @ c)) for e, c in zip(emb_BD, target, strict=True)) / BATCH
    gap = 0.0
    for layer, given in zip((double.body[1], double.tail[1]), inputs, strict=True):
        assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is not None and layer.running_var is not None
        means = variances = 0.0
        for channel in range(given.shape[1]):
            values = given[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            means += (mean - float(layer.running_mean[channel])) ** 2
            variances += (sum((value - mean) ** 2 for value in values) / len(values) - float(layer.running_var[channel])) ** 2
        gap += math.sqrt(means) + math.sqrt(variances)
    variation = size = 0.0
    for image in x.tolist():
        size += math.sqrt(sum(value**2 for plane in image for row in plane for value in row)) / BATCH
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            squares = 0.0
            for plane in image:
                for i in range(PX - down):
                    for j in range(max(0, -right), PX - max(0, right)):
                        squares += (plane[i + down][j + right] - plane[i][j]) ** 2
            variation += math.sqrt(squares) / BATCH
    assert done.loss_history.tolist() == pytest.approx([identity + 0.3 * gap + 0.02 * variation + 0.05 * size], rel=1e-5)


def test_the_batchnorm_term_is_zero_where_the_statistics_agree_and_absent_without_such_layers() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=1.0))
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    net[0].running_mean, net[0].running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    net.eval()
    with _batchnorm_gaps(net) as gaps:
        net(x)
        net(x + 2)
    same, moved = (float(_batchnorm_term([gap], x, is_squared=False)) for gap in gaps)
    assert same < 1e-5 and moved == pytest.approx(2 * math.sqrt(3), rel=1e-5)
    assert float(_batchnorm_term([gaps[1]], x, is_squared=True)) == pytest.approx(12, rel=1e-5)
    with _batchnorm_gaps(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 3, 1))) as gaps:
        pass
    assert gaps == []
    plain = tiny(batchnorm=False)
    runs = [
        invert(plain, centers(), input_px=PX, steps=3, seed=0, device="cpu", recipe=Recipe(bn_weight=weight)) for weight in (0.0, 100.0)
    ]
    assert torch.equal(runs[0].images, runs[1].images)


def test_a_flat_image_has_no_variation_and_a_ramp_has_what_it_should() -> None:
    assert float(_total_variation(torch.full((2, 3, 5, 5), 0.7))) == 0
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert float(_total_variation(ramp)) == pytest.approx(math.sqrt(12) + 0 + 3 + 3)


def test_priors_do_what_they_are_for() -> None:
    net = tiny()
    smooth = invert(net, centers(), input_px=PX, steps=60, seed=0, device="cpu", recipe=Recipe(tv_weight=0.05))
    rough = invert(net, centers(), input_px=PX, steps=60, seed=0, device="cpu", recipe=Recipe(tv_weight=0.0))
    assert _total_variation(smooth.images.float()) < 0.7 * _total_variation(rough.images.float())
    gap = []
    for weight in (0.0, 1.0):
        done = invert(net, centers(), input_px=PX, steps=60, seed=0, device="cpu", recipe=Recipe(bn_weight=weight))
        gap.append(done.bn_gap)
    assert gap[1] < gap[0]


def test_a_start_is_kept_exactly_and_may_be_uint8_or_float() -> None:
    net = tiny()
    images = torch.randint(0, 256, (BATCH, 3, PX, PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    kept = invert(net, centers(), input_px=PX, steps=0, seed=0, device="cpu", init=images)
    assert torch.equal(kept.images, images)
    as_float = (images.float() - 127.5) / 127.5
    runs = [invert(net, centers(), input_px=PX, steps=3, seed=0, device="cpu", init=init) for init in (images, as_float)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert torch.equal(as_float, (images.float() - 127.5) / 127.5), "the caller's start was changed"


def test_it_works_where_gradients_are_off() -> None:
    expected = invert(tiny(), centers(), input_px=PX, steps=3, seed=0, device="cpu")
    for off in (torch.no_grad(), torch.inference_mode()):
        net = tiny()
        with off:
            assert torch.equal(invert(net, centers(), input_px=PX, steps=3, seed=0, device="cpu").images, expected.images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_finds_the_same_angles() -> None:
    done = invert(tiny().cuda(), centers(), input_px=PX, steps=150, seed=1, device="cuda")
    assert done.images.device.type == "cpu" and (done.angle_deg < 45).all()


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (torch.zeros(0, DIM), {}, "at least one row"),
        (torch.ones(DIM), {}, r"must be \[B, D\]"),
        (torch.tensor([[1.0] * DIM, [0.0] * DIM]), {}, r"target centers \[1\] are zero or not finite"),
        (torch.tensor([[math.nan] * DIM, [1.0] * DIM]), {}, r"target centers \[0\] are zero or not finite"),
        (centers(), {"steps": -1}, "steps must be at least 0, got -1"),
        (centers(), {"init": torch.zeros(BATCH, 3, PX, PX + 1)}, r"init must be \(4, 3, 16, 16\)"),
        (centers(), {"init": torch.full((BATCH, 3, PX, PX), 200.0)}, "divide by 127.5"),
        (centers(), {"init": torch.full((BATCH, 3, PX, PX), math.nan)}, "divide by 127.5"),
        (centers(), {"recipe": Recipe(tv_weight=math.inf)}, "lower learning_rate"),
    ],
)
def test_bad_arguments_are_refused(given: Tensor, changes: dict[str, object], message: str) -> None:
    arguments = {"input_px": PX, "steps": 3, "seed": 0, "device": "cpu"} | changes
    with pytest.raises(ValueError, match=message):
        invert(tiny(), given, **arguments)  # type: ignore[arg-type]
