"""What processes share, with gradient: the batch of all of them, and the softmax over the identities of all of them.

`group` None is this process alone: values pass as they are. Works over gloo and NCCL. All processes of the group make the same calls in the same order,
backward passes included.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["combined", "gathered", "on_the_first", "place", "share"]


def place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Number of this process in the group, from 0, and how many there are."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def share(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """First, and one past the last, of the `count` things that process `rank` holds: a run of them, the first processes one more where it does not come out even."""
    return count * rank // ranks, count * (rank + 1) // ranks


def gathered(unit_BD: Tensor, class_index_B: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Features and class indices of all processes, in their order; they may have different numbers of samples.

    The gradient that comes back to a process is the sum of what all processes have for its samples, *times the number of processes*:
    DistributedDataParallel takes the mean over processes, and so comes out at the gradient of the loss.
    """
    if group is None:
        return unit_BD, class_index_B
    ranks = dist.get_world_size(group)
    count = torch.tensor([len(unit_BD)], device=unit_BD.device)
    counts = torch.cat(_all_gather(count, ranks, group)).tolist()
    padded_B = functional.pad(class_index_B, (0, max(counts) - len(class_index_B)))
    index = torch.cat([part[:size] for part, size in zip(_all_gather(padded_B, ranks, group), counts, strict=True)])
    return _Gathered.apply(unit_BD, counts, group), index  # type: ignore[no-untyped-call]


def combined(own_B: Tensor, others_B: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """`own` and `others` (see `own_and_others`) over the identities of all processes, from those over each one's."""
    if group is None:
        return own_B, others_B
    own, others = _Combined.apply(own_B, others_B, group)  # type: ignore[no-untyped-call]
    return own, others


def on_the_first(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor | None:
    """The rows of all processes one after the other, in the memory of the host, on the group's first process; None on the others. Alone: the rows.

    `counts`: how many rows each process has. One process after the other sends, so that no device holds more than two parts.
    """
    rank, ranks = place(group)
    if ranks == 1:
        return rows
    if rank:
        dist.send(rows.contiguous(), group=group, group_dst=0)
        return None
    whole = torch.empty(sum(counts), *rows.shape[1:], dtype=rows.dtype)
    parts = torch.split(whole, counts)
    parts[0].copy_(rows)
    for sender in range(1, ranks):
        received = torch.empty_like(parts[sender], device=rows.device)
        dist.recv(received, group=group, group_src=sender)
        parts[sender].copy_(received)
    return whole


def _all_gather(values: Tensor, ranks: int, group: dist.ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(parts, values.contiguous(), group=group)
    return parts


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        rank = dist.get_rank(group)
        ctx.group, ctx.first, ctx.count = group, sum(counts[:rank]), counts[rank]
        padded = functional.pad(rows_BD, (0, 0, 0, max(counts) - len(rows_BD)))
        return torch.cat([part[:size] for part, size in zip(_all_gather(padded, len(counts), group), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.first : ctx.first + ctx.count] * dist.get_world_size(ctx.group), None, None


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_B: Tensor, others_B: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        top_B = others_B.clone()
        dist.all_reduce(top_B, op=dist.ReduceOp.MAX, group=group)
        top_B.clamp_min_(torch.finfo(top_B.dtype).min)  # nobody has another identity: -inf minus -inf is NaN
        sums = torch.stack([own_B, (others_B - top_B).exp()])
        dist.all_reduce(sums, group=group)
        total_B = top_B + sums[1].log()
        ctx.save_for_backward((others_B - total_B.clamp_min(torch.finfo(top_B.dtype).min)).exp())
        return sums[0].clone(), total_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_own_B: Tensor, grad_others_B: Tensor) -> tuple[Tensor | None, ...]:
        (part_B,) = ctx.saved_tensors
        return grad_own_B, grad_others_B * part_B, None
