"""The loop: it learns a planted task, resumes to the same losses, and refuses what cannot work."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcface_core.backbones import build_backbone
from arcface_core.heads import SubCenterHead
from arcface_core.schedules import poly, step_decay
from arcface_core.training import (
    AUGMENTATIONS,
    Diverged,
    LoopOptions,
    StepMetrics,
    TrainState,
    load_state_tensors,
    new_state,
    state_tensors,
    to_input,
    training_steps,
)
from arcface_core.training.dominance import Votes
from arcface_core.training.state import LossScale

CPU = torch.device("cpu")


def fresh(seed: int = 0, *, optimizer: str = "sgd", average: bool = False, sample_rate: float = 1.0) -> TrainState:
    torch.manual_seed(seed)
    head = SubCenterHead(4, 16, num_subcenters=2, scale=16.0, sample_rate=sample_rate, seed=seed)
    return new_state(
        build_backbone("tiny", embedding_dim=16, input_px=16),
        head,
        optimizer=optimizer,
        momentum=0.9,
        weight_decay=5e-4,
        average=average,
    )


def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Four colours, one an identity, under noise."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        index = torch.arange(16) % 4
        colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 30]])[index]
        noise = torch.randint(-30, 30, (16, 3, 16, 16), generator=generator)
        yield (colours[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), index


def steps(state: TrainState, first: int, last: int, *, rate: float = 0.05, **changed: Any) -> list[StepMetrics]:
    options = LoopOptions(**{"seed": 3, "grad_clip_norm": 5.0} | changed)
    return list(training_steps(state, batches(first, last), learning_rate=lambda _: rate, device=CPU, options=options))


def test_it_learns_a_planted_task() -> None:
    seen = steps(fresh(), 0, 25)
    assert [one.step for one in seen] == list(range(1, 26))
    assert seen[-1].loss < 0.2 * seen[0].loss


@pytest.mark.parametrize(
    ("kept", "options"),
    [
        ({}, {}),
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "adamw", "sample_rate": 0.5}, {}),
        ({"average": True}, {"average_decay": 0.9, "accumulation": 2}),
        ({}, {"augmentations": tuple(AUGMENTATIONS), "augmentation_probability": 0.5}),
        ({"sample_rate": 0.5}, {"precision": torch.float16, "accumulation": 2}),
    ],
)
def test_resumed_training_gives_the_same_losses_and_weights(kept: dict[str, Any], options: dict[str, Any]) -> None:
    rate = 0.001 if kept.get("optimizer") == "adamw" else 0.05
    whole = fresh(**kept)
    losses = [one.loss for one in steps(whole, 0, 8, rate=rate, **options)]
    begun = fresh(**kept)
    first = steps(begun, 0, 4, rate=rate, **options)
    saved = {name: tensor.clone() for name, tensor in state_tensors(begun).items()}
    resumed = fresh(seed=99, **kept)
    load_state_tensors(resumed, saved, begun.step)
    second = steps(resumed, 4, 8, rate=rate, **options)
    assert [one.loss for one in first + second] == losses
    wanted, got = state_tensors(whole), state_tensors(resumed)
    assert wanted.keys() == got.keys() and all(torch.equal(tensor, got[name]) for name, tensor in wanted.items())


def test_dropout_is_drawn_from_seed_and_step() -> None:
    def one(first: int) -> list[float]:
        torch.manual_seed(0)
        backbone = build_backbone("tiny", embedding_dim=16, input_px=16, dropout=0.5)
        state = new_state(backbone, SubCenterHead(4, 16, num_subcenters=1), momentum=0.0, weight_decay=0.0)
        state.step = first
        torch.manual_seed(first + 77)
        return [metrics.loss for metrics in steps(state, 5, 6, rate=0.0)]

    assert one(5) == one(5) != one(6)


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    """Without BatchNorm, whose statistics are those of a part."""

    def run(parts: int) -> tuple[list[float], list[float], Tensor]:
        torch.manual_seed(0)
        state = new_state(nn.Sequential(nn.Flatten(), nn.Linear(768, 16)), SubCenterHead(4, 16), momentum=0.9, weight_decay=0.0)
        seen = steps(state, 0, 3, accumulation=parts)
        return [one.loss for one in seen], [one.grad_norm for one in seen], state.head.weight.detach()

    whole, three = run(1), run(3)
    assert three[0] == pytest.approx(whole[0], rel=1e-5) and three[1] == pytest.approx(whole[1], rel=1e-5)
    assert torch.allclose(three[2], whole[2], rtol=1e-4, atol=1e-6)


def test_recomputed_blocks_change_neither_losses_nor_running_statistics() -> None:
    plain, recomputed = fresh(), fresh()
    passes: list[int] = []
    recomputed.backbone.get_submodule("block1.conv1").register_forward_hook(lambda *_: passes.append(1))
    losses = [[one.loss for one in steps(plain, 0, 3)], [one.loss for one in steps(recomputed, 0, 3, recompute=True)]]
    assert losses[0] == losses[1] and len(passes) == 6
    wanted, got = state_tensors(plain), state_tensors(recomputed)
    assert all(torch.equal(tensor, got[name]) for name, tensor in wanted.items())


def test_a_compiled_backbone_trains_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile, and run as it is: generating code takes half a minute, and is torch's."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    plain, traced = fresh(), fresh()
    losses = [[one.loss for one in steps(plain, 0, 2)], [one.loss for one in steps(traced, 0, 2, compile=True)]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(traced.head.weight, plain.head.weight, atol=1e-6)
    with pytest.raises(ValueError, match="exclude each other"):
        steps(fresh(), 0, 1, compile=True, recompute=True)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_learns_too(precision: torch.dtype) -> None:
    seen = steps(fresh(), 0, 25, precision=precision)
    assert seen[-1].loss < 0.3 * seen[0].loss


def test_an_overflow_in_float16_leaves_the_step_out_and_halves_the_scale() -> None:
    state = fresh()
    state.loss_scale.value = 2.0**40
    before = state.head.weight.detach().clone()
    (first,) = steps(state, 0, 1, precision=torch.float16)
    assert not math.isfinite(first.grad_norm) and math.isfinite(first.loss)
    assert torch.equal(state.head.weight, before) and state.loss_scale.value == 2.0**39
    scale = LossScale(2.0, good_steps=1999)
    scale.update(overflowed=False)
    assert (scale.value, scale.good_steps) == (4.0, 0)
    with pytest.raises(Diverged, match="not finite at any loss scale"):
        LossScale(1.5e-4).update(overflowed=True)


def test_the_average_of_the_weights() -> None:
    state = fresh(average=True)
    assert state.average is not None
    mean, name = state.average["fc.weight"].clone(), "fc.weight"
    for number in range(3):
        steps(state, number, number + 1, average_decay=0.3)
        kept = min(0.3, (2 + number) / (11 + number))
        mean = kept * mean + (1 - kept) * state.backbone.get_parameter(name).detach()
    assert torch.allclose(state.average[name], mean, atol=1e-6)


def test_the_share_of_samples_on_the_dominant_subcenter() -> None:
    """Two identities whose centers and samples are planted: the second batch has a sample of three away from where the first put its identity."""
    head = SubCenterHead(2, 2, num_subcenters=2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]))
    votes = Votes.none(head)
    right, up, down = [1.0, 0.1], [0.1, 1.0], [-0.1, -1.0]
    assert math.isnan(float(votes.share(torch.tensor([right, up, up]), torch.tensor([0, 0, 0]), head)))
    assert votes.votes_CK.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    share = votes.share(torch.tensor([up, right, up, down]), torch.tensor([0, 0, 0, 1]), head)
    assert float(share) == pytest.approx(2 / 3)
    assert torch.allclose(votes.votes_CK, torch.tensor([[0.9 + 1, 1.8 + 2], [0.0, 1.0]]))


def test_only_the_backbone_is_clipped() -> None:
    state = fresh()
    before = [parameter.detach().clone() for parameter in state.backbone.parameters()]
    head = state.head.weight.detach().clone()
    steps(state, 0, 1, grad_clip_norm=1e-12)
    moved = max(float((new.detach() - old).abs().max()) for new, old in zip(state.backbone.parameters(), before, strict=True))
    assert moved < 1e-3 < float((state.head.weight.detach() - head).abs().max()) * 100


def test_images_are_mirrored_half_of_the_time_and_the_same_way_each_run() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x[:, 0, 0, 0].detach() < 0)
            return x.flatten(1)[:, :4] * self.scale

    left_dark = torch.full((64, 3, 4, 4), 255, dtype=torch.uint8)
    left_dark[..., :2] = 0
    runs = []
    for _ in range(2):
        net = Recorder()
        state = new_state(net, SubCenterHead(2, 4, num_subcenters=1), momentum=0.0, weight_decay=0.0)
        list(
            training_steps(
                state,
                [(left_dark, torch.arange(64) % 2)] * 3,
                learning_rate=lambda _: 0.0,
                device=CPU,
                options=LoopOptions(seed=1, grad_clip_norm=5.0),
            )
        )
        runs.append(torch.stack(net.seen))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0][0], runs[0][1])
    assert 0.35 < float(runs[0].float().mean()) < 0.65


def test_a_batch_of_one_and_a_broken_loss_are_refused() -> None:
    options = LoopOptions(seed=0, grad_clip_norm=5.0)
    with pytest.raises(ValueError, match="batch of one"):
        list(training_steps(fresh(), [_one()], learning_rate=lambda _: 0.1, device=CPU, options=options))
    state = fresh()
    with torch.no_grad():
        state.head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="The loss is nan at step 1"):
        steps(state, 0, 1)


def _one() -> tuple[Tensor, Tensor]:
    images, index = next(batches(0, 1))
    return images[:1], index[:1]


def test_a_head_for_another_number_of_processes_is_refused() -> None:
    state = fresh()
    state.head.ranks = 2
    with pytest.raises(ValueError, match="spread over 2 processes, and there are 1"):
        steps(state, 0, 1)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    other = new_state(build_backbone("tiny", embedding_dim=8, input_px=16), SubCenterHead(4, 8), momentum=0.9, weight_decay=0.0)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_state_tensors(fresh(), state_tensors(other), 1)


def test_input_range() -> None:
    assert to_input(torch.tensor([0, 255], dtype=torch.uint8), CPU).tolist() == [-1.0, 1.0]


def test_poly_warms_up_then_falls_in_a_line() -> None:
    rates = [poly(step, total_steps=10, warmup_steps=2, base_lr=1.0) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert poly(6, total_steps=10, warmup_steps=2, base_lr=1.0, power=2) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="must be shorter"):
        poly(0, total_steps=3, warmup_steps=3, base_lr=1.0)


def test_step_decay_falls_at_its_milestones() -> None:
    assert [step_decay(step, milestones=(3, 5), warmup_steps=1, base_lr=1.0) for step in (0, 2, 3, 4, 5)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
