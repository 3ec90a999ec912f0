"""What the pixels of a crop say of themselves: sharpness, brightness and a perceptual hash. Pure: pixels in, numbers out."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, [height, width, 3]."""

_HASH_PX = 28
"""A quarter of the crop, which averages whole pixels: four times as fast as 32."""
_HASH_BITS = 64


@dataclass(frozen=True)
class Measures:
    """Of one crop; a column of the items table each."""

    sharpness: float
    """Variance of the Laplacian of the luma, >= 0, higher is sharper. Comparable between crops of one size only."""
    brightness: float
    """Mean luma, 0..1, higher is brighter."""
    perceptual_hash: str
    """64 bits in 16 hex digits; `distance_bits` compares two."""


def measure(crop: Pixels) -> Measures:
    """Sharpness, brightness and perceptual hash of an RGB crop [H, W, 3], uint8.

    Luma is `0.299 R + 0.587 G + 0.114 B`, 0..255. The Laplacian is the sum of the four neighbors less four times the pixel. Grain is sharp to it.
    """
    luma = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return Measures(float(deviation[0, 0]) ** 2, cv2.mean(luma)[0] / 255, perceptual_hash(luma))


def perceptual_hash(luma: NDArray[np.uint8]) -> str:
    """64 bits in hex of a luma image [H, W]: which of the 64 lowest frequencies of its cosine transform lie above their median.

    The image is brought to 28 x 28 by areas. The 64 frequencies (u, v) are those nearest to, and without, (0, 0), in the order of
    `u^2 + v^2`, then u. Brightness is frequency (0, 0), and contrast scales all alike, so neither changes a bit; coding noise and resizing
    change the few that lie near the median. A coefficient equal to the median is a 0; an image of one color is all zeros.
    Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010; there an 8 x 8 block of 32 x 32
    is taken, whose far corner holds finer detail than coding leaves alone.
    """
    small = cv2.resize(luma, (_HASH_PX, _HASH_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    basis, lowest_of = _cosines()
    lowest = (basis @ small @ basis.T).ravel().take(lowest_of)
    lowest[np.abs(lowest) < 1e-3] = 0.0  # rounding of a flat image is no pattern
    ordered = np.sort(lowest)  # np.median costs as much as all the rest
    return np.packbits(lowest > (ordered[_HASH_BITS // 2 - 1] + ordered[_HASH_BITS // 2]) / 2).tobytes().hex()


def distance_bits(first: str, second: str) -> int:
    """Bits in which two perceptual hashes differ, 0..64: few for one picture coded twice, some twenty for two people's aligned crops."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


@lru_cache(maxsize=1)
def _cosines() -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Rows of the orthonormal cosine transform up to the highest frequency wanted, and where the 64 lie in the product of two such."""
    lowest = sorted((u * u + v * v, u, v) for u in range(_HASH_PX) for v in range(_HASH_PX))[1 : _HASH_BITS + 1]
    rows = max(v for _, _, v in lowest) + 1
    angles = np.outer(np.arange(rows), 2 * np.arange(_HASH_PX) + 1) * (np.pi / (2 * _HASH_PX))
    scale = np.sqrt(np.where(np.arange(rows) == 0, 1, 2) / _HASH_PX)
    return (np.cos(angles) * scale[:, None]).astype(np.float32), np.array([v * rows + u for _, u, v in lowest])
