"""Cosines, degrees and radians: the only file that converts between them.

Angles cross every boundary of this project in degrees and live in radians inside one function only.
All arithmetic is float32 at least: the largest float16 below 1 is already 1.79 degrees away from 1.
"""

import math

import torch
from torch import Tensor

__all__ = ["angle_deg", "cos_of_deg", "cosine", "normalize", "rowwise_cosine"]


def normalize(vectors: Tensor) -> Tensor:
    """Unit vectors `x / |x|` along the last axis, float32 or wider. A zero vector stays zero (90 degrees to anything); NaN stays NaN."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    length: Tensor = wide.norm(dim=-1, keepdim=True)
    return wide / length.masked_fill(length == 0, 1.0)


def cosine(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Cosine of every row of `a` with every row of `b`, in [-1, 1], shape [N, M]. Rows need not be unit vectors."""
    return (normalize(a_ND) @ normalize(b_MD).mT).clamp(-1.0, 1.0)


def rowwise_cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Cosine of row i of `a` with row i of `b`, in [-1, 1], shape [N]. Rows need not be unit vectors."""
    return (normalize(a_ND) * normalize(b_ND)).sum(dim=-1).clamp(-1.0, 1.0)


def angle_deg(cos: Tensor) -> Tensor:
    """Angle in degrees, in [0, 180], of a cosine, which is clamped to [-1, 1] first: arccos is undefined a rounding error outside."""
    wide = cos if cos.dtype == torch.float64 else cos.float()
    return torch.rad2deg(torch.arccos(wide.clamp(-1.0, 1.0)))


def cos_of_deg(degrees: float) -> float:
    """Cosine of an angle given in degrees."""
    return math.cos(math.radians(degrees))
