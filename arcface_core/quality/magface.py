"""MagFace: a margin that grows with the norm, and a reward for a high one, so that the norm becomes the quality of the picture.

    a      = clip(norm, l_a, u_a)
    m(a)   = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
    target = cos(min(theta + m(a), pi))
    g(a)   = a / u_a^2 + 1 / a                     lambda_g g(a) is added to the sample's loss

Both have a gradient by the norm: g raises it, up to u_a, and m lowers it, the more so the less sure the sample is. Without m's part all norms
would go up to u_a, and say nothing; it is there in the paper's proofs (section 3.2) and in its code.
Source: Meng et al., "MagFace: A Universal Representation for Face Recognition and Quality Assessment", CVPR 2021.
"""

import math
from typing import Self

import torch
from torch import Tensor

from arcface_core.quality.base import QualityMargin

__all__ = ["MagFace"]

_DIM = 512
"""Of the published constants. A feature whose components have variance 1 has a norm near the root of their number: bounds go with it."""


class MagFace(QualityMargin):
    """The published constants (section 4, and the code's run scripts): norms 10 to 110, margins 0.45 to 0.8, `norm_weight` (lambda_g) 35, for s = 64.

    Norms are clipped first, as in the published code: outside the bounds neither margin nor reward has a gradient by the norm. By the cosine the gradient
    is 1, as for all margins of this head (see `margins`). The published code leaves the margin out where cos <= 0; here it is asked for up to theta + m = pi,
    because there the reward alone would raise the norms of the very samples that are wrong. Raises ValueError for bounds that are not in order.
    """

    def __init__(
        self,
        *,
        least_norm: float = 10.0,
        most_norm: float = 110.0,
        least_m_rad: float = 0.45,
        most_m_rad: float = 0.8,
        norm_weight: float = 35.0,
    ) -> None:
        super().__init__()
        if not 0 < least_norm < most_norm or not 0 <= least_m_rad <= most_m_rad:
            raise ValueError(
                "MagFace takes 0 < least_norm < most_norm and 0 <= least_m_rad <= most_m_rad; "
                f"got norms {least_norm} to {most_norm}, margins {least_m_rad} to {most_m_rad}."
            )
        self.least_norm, self.most_norm, self.norm_weight = least_norm, most_norm, norm_weight
        self.least_m_rad, self.most_m_rad = least_m_rad, most_m_rad

    @classmethod
    def in_proportion(cls, *, margin_rad: float, scale: float, embedding_dim: int) -> Self:
        """As published beside an ArcFace of 0.5, scale 64 and 512 dimensions; else in proportion, so that the balance of m and g stays where it is."""
        strength, unit = margin_rad / 0.5, math.sqrt(embedding_dim / _DIM)
        return cls(
            least_norm=10 * unit,
            most_norm=110 * unit,
            least_m_rad=0.45 * strength,
            most_m_rad=0.8 * strength,
            norm_weight=35 * strength * unit * scale / 64,
        )

    def forward(self, cos: Tensor, norm: Tensor) -> Tensor:
        """The target logits, in [-1, cos(l_m)]."""
        with torch.no_grad():
            theta = torch.arccos(cos.clamp(-1.0, 1.0))
        slope = (self.most_m_rad - self.least_m_rad) / (self.most_norm - self.least_norm)
        m = self.least_m_rad + slope * (self._bounded(norm) - self.least_norm)
        return cos + (torch.cos((theta + m).clamp(max=math.pi)) - cos.detach())

    def penalty(self, norm: Tensor) -> Tensor:
        """lambda_g g(a)."""
        a = self._bounded(norm)
        return self.norm_weight * (a / self.most_norm**2 + 1 / a)

    def _bounded(self, norm: Tensor) -> Tensor:
        return norm.clamp(self.least_norm, self.most_norm)
