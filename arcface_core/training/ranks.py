"""The processes of a training (torch.distributed), seen from one of them. Without a process group there is one, and nothing here costs anything."""

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["gathered", "mean_over_ranks", "rank_and_ranks"]


def rank_and_ranks() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, the same on each. In place."""
    ranks = rank_and_ranks()[1]
    if ranks > 1:
        dist.all_reduce(value)
        value /= ranks
    return value


def gathered(values_B: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes; each has equally many. No gradient passes."""
    ranks = rank_and_ranks()[1]
    if ranks == 1:
        return values_B
    parts = [torch.empty_like(values_B) for _ in range(ranks)]
    dist.all_gather(parts, values_B.contiguous())
    return torch.cat(parts)
