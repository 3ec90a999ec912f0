"""BatchNorm over the batch of all processes, so that their number changes no result. torch's own does it on GPUs only; this one does it on processors.

Source: Ioffe and Szegedy, "Batch Normalization", algorithm 1 and the gradients below it, with the sums taken over processes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from arcface_core.training.ranks import gathered, mean_over_ranks

__all__ = ["share_statistics"]


def share_statistics(module: nn.Module, device: torch.device) -> None:
    """Lets every BatchNorm below `module` take its statistics from all processes, each of equally many samples. Parameters stay the same objects."""
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.forward = partial(_shared, child)  # type: ignore[method-assign]


def _shared(norm: _BatchNorm, x: Tensor) -> Tensor:
    mean_C, var_C, tracked, momentum = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
    if not norm.training or mean_C is None or var_C is None or tracked is None or momentum is None:
        return type(norm).forward(norm, x)
    out: Tensor
    out, batch_mean_C, batch_var_C = _Shared.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean_C.lerp_(batch_mean_C, momentum)
        var_C.lerp_(batch_var_C * (count / (count - 1)), momentum)
        tracked.add_(1)
    return out


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        var_C, mean_C = torch.var_mean(x, dims, correction=0)
        each_R2C = gathered(torch.stack([mean_C, var_C]).unsqueeze(0))
        mean_C = each_R2C[:, 0].mean(dim=0)
        var_C = (each_R2C[:, 1] + (each_R2C[:, 0] - mean_C).square()).mean(dim=0)
        ctx.save_for_backward(x, weight_C, mean_C, torch.rsqrt(var_C + eps))
        ctx.mark_non_differentiable(mean_C, var_C)
        return functional.batch_norm(x, mean_C, var_C, weight_C, bias_C, False, 0.0, eps), mean_C, var_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, inverse_C = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        unit = (x - mean_C.view(shape)) * inverse_C.view(shape)
        grad_bias_C, grad_weight_C = grad.sum(dims), (grad * unit).sum(dims)
        count = x.numel() // x.shape[1]
        along_2C = mean_over_ranks(torch.stack([grad_bias_C, grad_weight_C]) / count)
        grad_x = (grad - along_2C[0].view(shape) - unit * along_2C[1].view(shape)) * (weight_C * inverse_C).view(shape)
        return grad_x, grad_weight_C, grad_bias_C, None
