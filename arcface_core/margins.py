"""Angular margins: what is asked of the logit of a sample's own identity, over what the angle alone would give.

    logit of the own identity = cos(m1 * theta + m2) - m3          (the paper's equation 4; the scale s is the head's)

The gradient passes straight through: d logit / d cos = 1. The exact derivative, sin(theta + m) / sin(theta), is NaN at 0 degrees and pushes
*away* from the center beyond pi - m, where noisy samples live. insightface does the same since 2022-12; earlier versions are other losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MARGINS", "Margin"]


@dataclass(frozen=True)
class Margin:
    """`cos(m1 * theta + m2_rad) - m3`; ArcFace by default. Source: paper, equation 4."""

    m1: float = 1.0
    m2_rad: float = 0.5
    m3: float = 0.0

    def __call__(self, cos: Tensor) -> Tensor:
        """The target logits, in [-1 - m3, 1 - m3], of cosines; float32 or wider, any shape. Gradient: that of the identity."""
        wide = cos if cos.dtype == torch.float64 else cos.float()
        with torch.no_grad():
            theta = torch.arccos(wide.clamp(-1.0, 1.0))
            change = torch.cos(self.m1 * theta + self.m2_rad) - self.m3 - wide
        return wide + change


MARGINS: dict[str, Margin] = {
    "arcface": Margin(),
    "cosface": Margin(1.0, 0.0, 0.35),
    "sphereface": Margin(1.35, 0.0, 0.0),
    "cm1": Margin(1.0, 0.3, 0.2),
    "cm2": Margin(0.9, 0.4, 0.15),
    "softmax": Margin(1.0, 0.0, 0.0),
}
"""The constants of the paper's Table 2."""
