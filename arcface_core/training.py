"""One training loop, a generator of step metrics: whoever drives it decides when to stop, save or draw.

The state after step n depends on the state after step n - 1 and its batch alone, so a resumed training gives the same losses.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arcface_core.heads import SubCenterHead

__all__ = ["StepMetrics", "TrainState", "load_state_tensors", "new_state", "state_tensors", "to_input", "training_steps"]

_MOMENTUM = "momentum."


@dataclass
class TrainState:
    """All that a training is made of. `step`: optimiser steps done."""

    backbone: nn.Module
    head: SubCenterHead
    optimizer: torch.optim.SGD
    step: int = 0


@dataclass(frozen=True)
class StepMetrics:
    """One step. `step` counts from 1; `loss` in nats; `grad_norm`: L2 norm of the backbone's gradient before clipping."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples: int


def new_state(backbone: nn.Module, head: SubCenterHead, *, momentum: float, weight_decay: float) -> TrainState:
    """A state at step 0, with SGD over backbone and head."""
    parameters = [parameter for parameter in (*backbone.parameters(), *head.parameters()) if parameter.requires_grad]
    return TrainState(backbone, head, torch.optim.SGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay))


def to_input(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 pixels 0..255 as the backbone's input, float32 in [-1, 1]: (x - 127.5) / 127.5."""
    return (images_BCHW.to(device, non_blocking=True).float() - 127.5) / 127.5


def training_steps(
    state: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    learning_rate: Callable[[int], float],
    seed: int,
    grad_clip_norm: float,
    device: torch.device,
    amp: bool,
) -> Iterator[StepMetrics]:
    """Trains `state` in place, one step per batch (uint8 [B, 3, H, W], int64 class indices [B]).

    Each image is mirrored with probability 1/2, drawn from (seed, step). The gradient of the backbone, not of the head, is clipped.
    `amp`: bfloat16 autocast of the backbone; it needs no loss scaling. `learning_rate` is asked for steps counted from 0.
    Raises ValueError: for a batch of one sample, which BatchNorm cannot normalise, and for a loss that is not finite.
    """
    state.backbone.train()
    state.head.train()
    parameters = [parameter for parameter in state.backbone.parameters() if parameter.requires_grad]
    for images_BCHW, class_index_B in batches:
        if len(images_BCHW) < 2:
            raise ValueError("A training batch of one sample cannot be normalised. Use a batch size of 2 or more.")
        rate = learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        inputs = _mirrored(to_input(images_BCHW, device), seed, state.step).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            features_BD = state.backbone(inputs)
        loss = state.head(features_BD.float(), class_index_B.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"The loss is {value} at step {state.step + 1}. Lower the learning rate, or check that `init` weights fit the backbone."
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, grad_clip_norm))
        state.optimizer.step()
        state.step += 1
        yield StepMetrics(state.step, value, rate, norm, len(images_BCHW))


def _mirrored(images_BCHW: Tensor, seed: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    mirror_B = (torch.rand(len(images_BCHW), generator=generator) < 0.5).to(images_BCHW.device)
    return torch.where(mirror_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """The whole state as named tensors: weights, running statistics and momentum. The step is kept apart."""
    tensors = {f"backbone.{name}": tensor for name, tensor in state.backbone.state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in state.head.state_dict().items()}
    for number, parameter in enumerate(_parameters(state)):
        held = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if held is not None:
            tensors[f"{_MOMENTUM}{number}"] = held
    return tensors


def load_state_tensors(state: TrainState, tensors: Mapping[str, Tensor], step: int) -> None:
    """Puts `state_tensors` back. Raises ValueError when they belong to another model."""
    for prefix, module in (("backbone.", state.backbone), ("head.", state.head)):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"The checkpoint belongs to another model: {str(error)[:300]}") from error
    for number, parameter in enumerate(_parameters(state)):
        held = tensors.get(f"{_MOMENTUM}{number}")
        if held is not None:
            state.optimizer.state[parameter]["momentum_buffer"] = held.to(parameter.device).clone()
    state.step = step


def _parameters(state: TrainState) -> list[nn.Parameter]:
    return [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
