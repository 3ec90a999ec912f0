"""AdaFace: samples of low norm are spared, samples of high norm are asked for more.

    z      = clip((norm - mean) / (std + 0.001) * h, -1, 1)          mean and std of norms, over the last batches
    target = cos(theta - m z) - m (z + 1)

z = -1 is ArcFace with m, z = 0 CosFace with m, z = 1 a negative angular margin below twice CosFace's. Nothing here has a gradient by the norm.
Source: Kim, Jain, Liu, "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022, section 3; constants that the paper does not give are its code's.
"""

import math
from typing import Self

import torch
from torch import Tensor

from arcface_core.quality.base import QualityMargin

__all__ = ["AdaFace"]

_EPS = 1e-3
_LEAST, _MOST = 1e-3, 100.0
"""Norms are clipped to these before anything else, as in the published code."""
_FIRST_MEAN, _FIRST_STD = 20.0, 100.0
"""The published code's. z begins near 0, so CosFace, and takes some 400 batches to tell samples apart."""


class AdaFace(QualityMargin):
    """`m_rad` = 0.4, `h` = 0.333 as published. `new_weight`: what the newest batch counts in mean and std, the published code's 0.01; the paper's 0.99 is
    what the old ones count.

    The angle theta - m z is kept within 0 and pi, as in the published code. Its gradient by the cosine is 1 here, as for all margins of this head (see `margins`);
    the published one is that of the formula, sin(theta - m z) / sin(theta). Of one sample alone the standard deviation is 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, m_rad: float = 0.4, h: float = 0.333, new_weight: float = 0.01) -> None:
        super().__init__()
        self.m_rad, self.h, self.new_weight = m_rad, h, new_weight
        self.register_buffer("mean", torch.tensor(_FIRST_MEAN))
        self.register_buffer("std", torch.tensor(_FIRST_STD))

    @classmethod
    def in_proportion(cls, *, margin_rad: float, scale: float, embedding_dim: int) -> Self:
        """As published beside an ArcFace of 0.5; in proportion to another."""
        return cls(m_rad=0.8 * margin_rad)

    @torch.no_grad()
    def observe(self, norm_B: Tensor) -> None:
        """Lets the batch into mean and std."""
        bounded_B = norm_B.clamp(_LEAST, _MOST).to(self.mean.dtype)
        self.mean.lerp_(bounded_B.mean(), self.new_weight)
        self.std.lerp_(bounded_B.std(correction=min(1, len(bounded_B) - 1)), self.new_weight)

    def forward(self, cos: Tensor, norm: Tensor) -> Tensor:
        """The target logits, in [-1 - 2 m, 1]."""
        with torch.no_grad():
            z = ((norm.clamp(_LEAST, _MOST) - self.mean) / (self.std + _EPS) * self.h).clamp(-1.0, 1.0)
            theta = torch.arccos(cos.clamp(-1.0, 1.0))
            change = torch.cos((theta - self.m_rad * z).clamp(0.0, math.pi)) - self.m_rad * (z + 1) - cos
        return cos + change
