"""Optimisers that touch only the rows that have a gradient: the others keep their weights, and what is remembered of them, as they are.

For centers of which a step draws a part. torch's own apply momentum and weight decay to every row, which moves identities that nobody looked at, and costs
a pass over all of them. What is remembered has the shape of the weights, and goes with them from process to process.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["RowAdamW", "RowSGD"]

_ROWS_AT_ONCE = {"cpu": 4096, "cuda": 65_536}


class _RowOptimizer(torch.optim.Optimizer, ABC):
    """The walk over rows; a child says what one step does to some of them."""

    remembers: ClassVar[dict[str, bool]]
    """Tensors of the state, zero at first; whether they are as wide as a row, or one number a row."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. There is no closure to call."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for name, is_wide in self.remembers.items():
                    if name not in state:
                        state[name] = torch.zeros_like(parameter) if is_wide else parameter.new_zeros(len(parameter))
                for rows, gradient in _rows(parameter.grad):
                    weight, held = parameter[rows], {name: state[name][rows] for name in self.remembers}
                    self.move(weight, gradient, held, group)
                    if isinstance(rows, Tensor):
                        parameter[rows] = weight
                        for name, values in held.items():
                            state[name][rows] = values

    @abstractmethod
    def move(self, weight_RD: Tensor, gradient_RD: Tensor, held: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        """Changes weights and what is remembered of them, in place."""


class RowSGD(_RowOptimizer):
    """SGD with momentum: `v = momentum * v + gradient + weight_decay * w; w -= lr * v`, where the gradient is sparse in its rows only.

    With a dense gradient it is torch.optim.SGD but for rounding.
    """

    remembers: ClassVar[dict[str, bool]] = {"momentum_buffer": True}

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def move(self, weight_RD: Tensor, gradient_RD: Tensor, held: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        speed_RD = held["momentum_buffer"]
        speed_RD.mul_(group["momentum"]).add_(gradient_RD).add_(weight_RD, alpha=group["weight_decay"])
        weight_RD.sub_(speed_RD, alpha=group["lr"])


class RowAdamW(_RowOptimizer):
    """AdamW (Loshchilov and Hutter 2019), where the gradient is sparse in its rows only, each with a count of its own steps for the bias correction.

    With a dense gradient it is torch.optim.AdamW but for rounding.
    """

    remembers: ClassVar[dict[str, bool]] = {"exp_avg": True, "exp_avg_sq": True, "steps": False}

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    def move(self, weight_RD: Tensor, gradient_RD: Tensor, held: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        steps_R1 = held["steps"].add_(1).unsqueeze(1)
        mean_RD = held["exp_avg"].lerp_(gradient_RD, 1 - first)
        square_RD = held["exp_avg_sq"].mul_(second).addcmul_(gradient_RD, gradient_RD, value=1 - second)
        weight_RD.mul_(1 - group["lr"] * group["weight_decay"])
        spread_RD = square_RD.sqrt().div_((1 - second**steps_R1).sqrt_()).add_(group["eps"])
        weight_RD.sub_(mean_RD.div(1 - first**steps_R1).div_(spread_RD), alpha=group["lr"])


def _rows(gradient: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """The rows that have a gradient, some at a time; a slice, of which an index gives a view, where all have one."""
    at_once = _ROWS_AT_ONCE.get(gradient.device.type, _ROWS_AT_ONCE["cpu"])
    if not gradient.is_sparse:
        for start in range(0, len(gradient), at_once):
            yield slice(start, start + at_once), gradient[start : start + at_once]
        return
    if not bool((gradient._indices()[0].diff() > 0).all()):  # autograd forgets that a gradient is in order
        gradient = gradient.coalesce()
    indices, values = gradient._indices()[0], gradient._values()
    for start in range(0, len(indices), at_once):
        yield indices[start : start + at_once], values[start : start + at_once]
