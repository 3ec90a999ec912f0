"""Optimisers that touch only the rows that have a gradient: the others keep their weights, and what is remembered of them, as they are.

For centers of which a step draws a part. torch's own apply momentum and weight decay to every row, which moves identities that nobody looked at, and costs
a pass over all of them. What is remembered has the shape of the weights, and goes with them from process to process.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["RowSGD"]

_ROWS_AT_ONCE = 16_384


class RowSGD(torch.optim.Optimizer):
    """SGD with momentum: `v = momentum * v + gradient + weight_decay * w; w -= lr * v`, where the gradient is sparse in its rows only.

    With a dense gradient it is torch.optim.SGD but for rounding.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. There is no closure to call."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                for rows, gradient in _rows(parameter.grad):
                    weight, speed = parameter[rows], state["momentum_buffer"][rows]
                    speed.mul_(group["momentum"]).add_(gradient).add_(weight, alpha=group["weight_decay"])
                    weight.sub_(speed, alpha=group["lr"])
                    if isinstance(rows, Tensor):
                        parameter[rows], state["momentum_buffer"][rows] = weight, speed


def _rows(gradient: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """The rows that have a gradient, some at a time; a slice, of which an index gives a view, where all have one."""
    if not gradient.is_sparse:
        for start in range(0, len(gradient), _ROWS_AT_ONCE):
            yield slice(start, start + _ROWS_AT_ONCE), gradient[start : start + _ROWS_AT_ONCE]
        return
    if not bool((gradient._indices()[0].diff() > 0).all()):  # autograd forgets that a gradient is in order
        gradient = gradient.coalesce()
    indices, values = gradient._indices()[0], gradient._values()
    for start in range(0, len(indices), _ROWS_AT_ONCE):
        yield indices[start : start + _ROWS_AT_ONCE], values[start : start + _ROWS_AT_ONCE]
