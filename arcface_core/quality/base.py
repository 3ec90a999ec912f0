"""What the head asks of a margin that goes by the norm of features."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["QualityMargin"]


class QualityMargin(nn.Module, ABC):
    """Called with cosines and norms, float32 or wider and of one shape, it gives the target logits; the gradient passes straight through the cosine.

    A module for its buffers, which are what it remembers from batch to batch: checkpoints keep them. Norms are those of the samples of all processes.
    """

    @abstractmethod
    def forward(self, cos: Tensor, norm: Tensor) -> Tensor:
        """The target logits. Changes nothing that is remembered."""

    def observe(self, norm_B: Tensor) -> None:
        """Is told the norms of each training batch, before their targets are asked for. Without gradient."""

    def penalty(self, norm: Tensor) -> Tensor:
        """What is added to the loss of each sample, in nats."""
        return torch.zeros_like(norm)
