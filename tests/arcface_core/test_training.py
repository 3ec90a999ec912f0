"""The loop: it learns a planted task, resumes to the same losses, and refuses what cannot work."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from arcface_core.backbones import build_backbone
from arcface_core.heads import SubCenterHead
from arcface_core.schedules import poly, step_decay
from arcface_core.training import StepMetrics, TrainState, load_state_tensors, new_state, state_tensors, to_input, training_steps

CPU = torch.device("cpu")


def fresh(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    head = SubCenterHead(4, 16, num_subcenters=2, scale=16.0)
    return new_state(build_backbone("tiny", embedding_dim=16, input_px=16), head, momentum=0.9, weight_decay=5e-4)


def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Four colours, one an identity, under noise."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        index = torch.arange(16) % 4
        colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 30]])[index]
        noise = torch.randint(-30, 30, (16, 3, 16, 16), generator=generator)
        yield (colours[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), index


def steps(state: TrainState, first: int, last: int, **changed: float) -> list[StepMetrics]:
    given = {"learning_rate": lambda step: 0.05, "seed": 3, "grad_clip_norm": 5.0, "device": CPU, "amp": False} | changed
    return list(training_steps(state, batches(first, last), **given))  # type: ignore[arg-type]


def test_it_learns_a_planted_task() -> None:
    seen = steps(fresh(), 0, 25)
    assert [one.step for one in seen] == list(range(1, 26))
    assert seen[-1].loss < 0.2 * seen[0].loss


def test_resumed_training_gives_the_same_losses_and_weights() -> None:
    whole = fresh()
    losses = [one.loss for one in steps(whole, 0, 8)]
    begun = fresh()
    first = steps(begun, 0, 4)
    saved = {name: tensor.clone() for name, tensor in state_tensors(begun).items()}
    resumed = fresh(seed=99)
    load_state_tensors(resumed, saved, begun.step)
    second = steps(resumed, 4, 8)
    assert [one.loss for one in first + second] == losses
    assert all(torch.equal(tensor, state_tensors(resumed)[name]) for name, tensor in state_tensors(whole).items())


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
                seed=1,
                grad_clip_norm=5.0,
                device=CPU,
                amp=False,
            )
        )
        runs.append(torch.stack(net.seen))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0][0], runs[0][1])
    assert 0.35 < float(runs[0].float().mean()) < 0.65


def test_a_batch_of_one_and_a_broken_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="batch of one"):
        list(training_steps(fresh(), [_one()], learning_rate=lambda _: 0.1, seed=0, grad_clip_norm=5.0, device=CPU, amp=False))
    state = fresh()
    with torch.no_grad():
        state.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="The loss is nan at step 1"):
        steps(state, 0, 1)


def _one() -> tuple[Tensor, Tensor]:
    images, index = next(batches(0, 1))
    return images[:1], index[:1]


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
