"""The aligned crop of a face, without the false patterns of a picture that is shrunk by leaving pixels out."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from arcface_core.alignment import shrinkage, similarity_transform, supersampled
from pipeline.measures import Pixels

_SPACING_PX = 1.5
_MAX_WARP_PX = 32_000
"""OpenCV warps no picture with a longer side."""


def aligned(pixels: Pixels, landmarks_px: NDArray[np.float64], side: int) -> Pixels:
    """The crop [side, side, 3] that brings the five points onto the ArcFace template; black where it reaches beyond the picture.

    Where the face is larger than the crop, by `s` (pixels of the picture per pixel of the crop), each pixel of the crop is the mean of
    `k x k` bilinear samples, `k = ceil(s / 1.5)`: no two further apart than 1.5 pixels of the picture, each of which reaches one to either side.
    From `s = 4` on what lies under the crop is first halved, to 2 <= s < 4. Halving from 2 on is as fast, and twice as far from the exact mean.

    Raises ValueError: for points that determine no alignment, or lie further outside of the picture than it is wide or high.
    """
    matrix = similarity_transform(landmarks_px, size_px=side)
    extent = np.array(pixels.shape[1::-1])
    if (landmarks_px < -extent).any() or (landmarks_px > 2 * extent).any():
        raise ValueError("the landmarks lie far outside of the picture: give them in pixels of the upright picture")
    shrunk = shrinkage(matrix)
    step = max(1, 2 ** int(math.log2(max(1.0, shrunk / 2))))  # halves, which OpenCV averages fastest
    if step >= 2 or max(pixels.shape) > _MAX_WARP_PX:
        pixels, matrix = _reduced_under(pixels, matrix, side, step)
    fine = max(1, math.ceil(shrunk / step / _SPACING_PX))
    crop = cv2.warpAffine(pixels, supersampled(matrix, fine), (side * fine, side * fine), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(crop if fine == 1 else cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _reduced_under(pixels: Pixels, matrix: NDArray[np.float64], side: int, step: int) -> tuple[Pixels, NDArray[np.float64]]:
    """The part of the picture under the crop, `step` times smaller by areas, and the matrix for it."""
    height, width = pixels.shape[:2]
    corners = np.array([[-1, -1], [side, -1], [-1, side], [side, side]]) - matrix[:, 2]
    under = corners @ np.linalg.inv(matrix[:, :2]).T
    lower = np.clip(np.floor(under.min(0)) - 2 * step, 0, [width, height]).astype(int)
    upper = np.clip(np.ceil(under.max(0)) + 2 * step, lower + 1, [max(width, lower[0] + 1), max(height, lower[1] + 1)]).astype(int)
    lower = np.minimum(lower, [width - 1, height - 1])
    part = pixels[lower[1] : upper[1], lower[0] : upper[0]]
    bottom, right = -part.shape[0] % step, -part.shape[1] % step
    part = np.asarray(cv2.copyMakeBorder(part, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
    small = cv2.resize(part, (part.shape[1] // step, part.shape[0] // step), interpolation=cv2.INTER_AREA)
    # pixel i of the small picture is the mean of lower + step i ... + step - 1, which lies at lower + step i + (step - 1) / 2
    moved = np.column_stack([matrix[:, :2] * step, matrix[:, :2] @ (lower + (step - 1) / 2) + matrix[:, 2]])
    return np.asarray(small, np.uint8), moved
