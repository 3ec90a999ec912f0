"""All that a training is made of, and the same as named tensors: what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from arcface_core.heads import SubCenterHead
from arcface_core.row_optimizers import RowAdamW, RowSGD
from arcface_core.training.dominance import Votes
from arcface_core.training.ranks import mean_over_ranks

__all__ = ["OPTIMIZERS", "Diverged", "LossScale", "TrainState", "check_finite", "load_state_tensors", "new_state", "state_tensors"]


def _sgd(parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay)


def _adamw(parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}
"""By name, of (parameters, momentum, weight decay). Source: the paper and arcface_torch: SGD for IResNet, AdamW for vision transformers."""


def _row_sgd(parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return RowSGD(parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay)


def _row_adamw(parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    return RowAdamW(parameters, lr=0.0, betas=(momentum, 0.999), weight_decay=weight_decay)


_HEAD_OPTIMIZERS = {"sgd": _row_sgd, "adamw": _row_adamw}
"""The same for the head, whose gradient may be that of a part of the identities."""


class Diverged(ValueError):  # noqa: N818 - it says what is wrong
    """Loss, gradient or weights are not finite."""


@dataclass
class LossScale:
    """What the loss is multiplied by in float16, so that small gradients are not zero: halved when a gradient overflows, doubled after 2,000 steps."""

    value: float = 65536.0
    good_steps: int = 0

    def update(self, *, overflowed: bool) -> None:
        """After a step. Raises Diverged when no scale is small enough: then the training diverges."""
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.value /= 2
        elif self.good_steps == 2000:
            self.value, self.good_steps = self.value * 2, 0
        if self.value < 1e-4:
            raise Diverged("The gradient is not finite at any loss scale.")


@dataclass
class TrainState:
    """`step`: optimiser steps done. `average`: moving average of the backbone's tensors, where one is kept."""

    backbone: nn.Module
    head: SubCenterHead
    optimizer: torch.optim.Optimizer
    head_optimizer: torch.optim.Optimizer
    step: int = 0
    average: dict[str, Tensor] | None = None
    loss_scale: LossScale = field(default_factory=LossScale)
    votes: Votes | None = None


def new_state(
    backbone: nn.Module, head: SubCenterHead, *, momentum: float, weight_decay: float, optimizer: str = "sgd", average: bool = False
) -> TrainState:
    """A state at step 0. Backbone and head are on their device already. `momentum` is AdamW's first beta."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return TrainState(
        backbone,
        head,
        OPTIMIZERS[optimizer](parameters, momentum, weight_decay),
        _HEAD_OPTIMIZERS[optimizer](head.parameters(), momentum, weight_decay),
        average={name: tensor.clone() for name, tensor in _averaged(backbone).items()} if average else None,
        votes=Votes.none(head) if head.num_subcenters > 1 else None,
    )


@torch.no_grad()
def check_finite(state: TrainState) -> None:
    """Raises Diverged, on every process, when a weight on any of them is not finite."""
    sums = [parameter.sum(dtype=torch.float64) for parameter in (*state.backbone.parameters(), *state.head.parameters())]
    if not bool(torch.isfinite(mean_over_ranks(torch.stack(sums).sum()))):
        raise Diverged(f"A weight is not finite after step {state.step}.")


def _averaged(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in backbone.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def update_average(state: TrainState, decay: float) -> None:
    """`average = d * average + (1 - d) * weights`, d = min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten."""
    if state.average is None:
        return
    now = _averaged(state.backbone)
    kept = min(decay, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(list(state.average.values()), [now[name] for name in state.average], 1 - kept)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """The whole state as named tensors, the step apart: weights, running statistics, what the optimisers remember, averages, votes.

    All processes of a training call it; the tensors of the head are on process 0 only.
    """
    tensors = {f"backbone.{name}": tensor for name, tensor in state.backbone.state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in (state.head.state_tensors(state.head_optimizer) or {}).items()}
    for number, parameter in enumerate(_parameters(state)):
        held = state.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{number}.{name}": value for name, value in held.items() if isinstance(value, Tensor)}
    tensors |= {f"average.{name}": tensor for name, tensor in (state.average or {}).items()}
    tensors["loss_scale"] = torch.tensor([state.loss_scale.value, state.loss_scale.good_steps], dtype=torch.float64)
    if state.votes is not None:
        tensors["votes"] = state.votes.votes_CK
    return tensors


def load_state_tensors(state: TrainState, tensors: Mapping[str, Tensor], step: int) -> None:
    """Puts `state_tensors` back. Raises ValueError when they belong to another model."""
    try:
        state.backbone.load_state_dict(_under("backbone.", tensors))
    except RuntimeError as error:
        raise ValueError(f"The checkpoint belongs to another model: {str(error)[:300]}") from error
    state.head.load_state_tensors(_under("head.", tensors), state.head_optimizer)
    for number, parameter in enumerate(_parameters(state)):
        held = _under(f"optimizer.{number}.", tensors)
        # AdamW counts its steps on the CPU wherever the parameter is.
        state.optimizer.state[parameter] |= {
            name: value.clone() if name == "step" else value.to(parameter.device).clone() for name, value in held.items()
        }
    for name, tensor in (state.average or {}).items():
        tensor.copy_(tensors[f"average.{name}"])
    value, good_steps = tensors["loss_scale"].tolist()
    state.loss_scale = LossScale(value, int(good_steps))
    if state.votes is not None:
        state.votes.votes_CK.copy_(tensors["votes"])
    state.step = step


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameters(state: TrainState) -> list[nn.Parameter]:
    return [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
