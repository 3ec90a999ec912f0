"""The similarity transform that brings five face landmarks onto the 112 x 112 ArcFace template.

Coordinates are pixels, x to the right and y down, with pixel centers at whole numbers, as in OpenCV. The order of the points is left eye,
right eye, nose, left and right corner of the mouth, left and right as seen in the image. A mirrored order does not fail: it gives a poor
fit, which `alignment_error_px` shows.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["TEMPLATE_112", "alignment_error_px", "shrinkage", "similarity_transform", "supersampled", "yaw_deg"]

TEMPLATE_112: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five points of a frontal face lie in a 112 x 112 crop. Source: insightface, `arcface_dst`."""
TEMPLATE_112.setflags(write=False)
_TEMPLATE_PX = 112
_NEGLIGIBLE = 1e-9
_FARTHEST_PX = 1e12
"""No picture is so large, and squares of what lies nearer are finite."""
_FLAT = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
NOSE_DEPTH = 0.85
"""How far the tip of the nose stands before the plane of eyes and mouth corners, in half distances between the eyes."""
_MOUTH_WIDTH = 0.83
"""Of the template's mouth, in widths between its eyes."""


def similarity_transform(landmarks_52: ArrayLike, *, size_px: int = 112) -> NDArray[np.float64]:
    """Matrix `[[a, -b, x], [b, a, y]]`, float64 [2, 3], that brings the landmarks nearest to the template scaled by `size_px / 112`.

    It minimises `sum |M (x, y, 1) - template|^2` over all rotations, uniform scales and shifts; reflections are excluded. It is the matrix
    that `cv2.warpAffine` takes. With points and template as complex numbers `p`, `q` about their means,
    `a + ib = sum(conj(p) q) / sum |p|^2`. Points on a line (a profile) still determine it.

    Raises ValueError: for other than five finite points, for points that coincide, and for points that every rotation fits equally badly.
    Source: Umeyama, TPAMI 1991, equations 40-43, in two dimensions. insightface shifts the template for sizes that are multiples of 128;
    here every size shows the same part of the face.
    """
    points: list[complex] = _points(landmarks_52).tolist()
    target: list[complex] = _template(size_px).tolist()  # for five numbers Python is faster than an array
    source_mean, target_mean = sum(points) / 5, sum(target) / 5
    source, goal = [point - source_mean for point in points], [point - target_mean for point in target]
    spread = sum(abs(one) ** 2 for one in source)
    if spread <= (_NEGLIGIBLE * max(1.0, *map(abs, points))) ** 2:
        raise ValueError(f"the five landmarks coincide at {_said(source_mean)}: they determine no alignment, so detect the face again")
    turn = sum(one.conjugate() * other for one, other in zip(source, goal, strict=True)) / spread
    if abs(turn) <= _NEGLIGIBLE * math.sqrt(sum(abs(one) ** 2 for one in goal) / spread):
        raise ValueError("no rotation fits the landmarks: give them in the order left eye, right eye, nose, left mouth, right mouth")
    shift = target_mean - turn * source_mean
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def alignment_error_px(landmarks_52: ArrayLike, matrix: ArrayLike, *, size_px: int = 112) -> float:
    """Root mean square distance of the transformed landmarks to the template, `sqrt(mean |M (x, y, 1) - template|^2)`, 0 = a perfect fit.

    In pixels of the aligned crop. Raises ValueError: for other than five finite points, or a matrix that is not [2, 3] and finite.
    """
    points = _points(landmarks_52)
    affine = np.asarray(matrix, dtype=np.float64)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise ValueError(f"the matrix must be [2, 3] and finite, got shape {affine.shape}: take it from similarity_transform")
    moved = np.column_stack([points.real, points.imag]) @ affine[:, :2].T + affine[:, 2]
    return float(np.sqrt((np.abs(moved[:, 0] + 1j * moved[:, 1] - _template(size_px)) ** 2).mean()))


def shrinkage(matrix: ArrayLike) -> float:
    """Pixels of the picture per pixel of the crop along a line, `1 / sqrt(det)` of the matrix [2, 3]: above 1 the crop is the smaller one.

    Raises ValueError: for a matrix that is not [2, 3], or has no positive determinant.
    """
    affine = np.asarray(matrix, dtype=np.float64)
    (a, b, _), (c, d, _) = affine.tolist() if affine.shape == (2, 3) else _FLAT
    area = a * d - b * c
    if not area > 0:
        raise ValueError(f"the matrix must be [2, 3] with a positive determinant, got {affine.tolist()}: take it from similarity_transform")
    return 1.0 / math.sqrt(area)


def supersampled(matrix: ArrayLike, factor: int) -> NDArray[np.float64]:
    """The matrix [2, 3] to a crop of `factor` times the size, each pixel of which is cut into `factor x factor`.

    With pixel centers at whole numbers, pixel i is cut into `factor * i ... factor * i + factor - 1`: their mean, as an area reduction
    takes it, lies at i again. So `x -> factor x + (factor - 1) / 2`.
    """
    grown: NDArray[np.float64] = np.asarray(matrix, dtype=np.float64) * factor
    grown[:, 2] += (factor - 1) / 2
    return grown


def yaw_deg(landmarks_52: ArrayLike) -> float:
    """Estimated turn of the head about its vertical axis, -90..90 degrees: 0 is frontal, positive is turned to the right edge of the picture.

    `atan(n / (D e))`: `n` is how far the tip of the nose lies to the right of the middle between the mean of the eyes and the mean of the
    mouth corners, along the face's own horizontal (the sum of the vectors from left to right eye and mouth corner, so that a tilted head
    reads the same); `e` is half the distance between the eyes, from eyes and mouth: `(eyes + mouth) / (2 (1 + 0.83))`; `D = 0.85` is the
    depth of the nose. Eyes and mouth corners in one plane and the nose before it, seen from afar, give `n = D sin(yaw) cos(pitch)` and
    `e = cos(yaw)`: exact without pitch. Noses differ, so take it for a scale from frontal to profile, not for a measurement: 20 % more nose
    is 5 degrees more at 30. When the order of the points is mirrored, or an eye has passed the other, the answer is -90 or 90.

    Raises ValueError: for other than five finite points.
    """
    left_eye, right_eye, nose, left_mouth, right_mouth = _points(landmarks_52)
    eyes, mouth = right_eye - left_eye, right_mouth - left_mouth
    across = eyes + mouth
    length = float(abs(across))
    if length <= _NEGLIGIBLE:
        return 0.0
    direction = across / length
    offset = float(((nose - (left_eye + right_eye + left_mouth + right_mouth) / 4) * direction.conjugate()).real)
    half_width = length / (2 * (1 + _MOUTH_WIDTH)) * (1.0 if _upright(left_eye, right_eye, left_mouth, right_mouth) else 0.0)
    return float(np.degrees(np.arctan2(offset, NOSE_DEPTH * half_width))) if half_width or offset else 0.0


def _upright(left_eye: complex, right_eye: complex, left_mouth: complex, right_mouth: complex) -> bool:
    """Whether the mouth lies a quarter turn clockwise from the vector of the eyes, as in a face that is not mirrored (y is down)."""
    across = right_eye - left_eye + right_mouth - left_mouth
    down = left_mouth + right_mouth - left_eye - right_eye
    return (across.conjugate() * down).imag > 0


def _points(landmarks_52: ArrayLike) -> NDArray[np.complex128]:
    points = np.asarray(landmarks_52, dtype=np.float64)
    if points.shape != (5, 2):
        raise ValueError(f"landmarks must be five points (x, y), shape [5, 2], got shape {points.shape}")
    if not np.abs(points).max() <= _FARTHEST_PX:
        raise ValueError(f"landmarks must be finite, got {points.tolist()}: detect the face again, or leave the landmarks out")
    return _complex(points)


def _template(size_px: int) -> NDArray[np.complex128]:
    if size_px < 1:
        raise ValueError(f"size_px must be at least 1, got {size_px}; the template is made for 112")
    return _complex(TEMPLATE_112 * (size_px / _TEMPLATE_PX))


def _complex(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    numbers: NDArray[np.complex128] = points[:, 0] + 1j * points[:, 1]
    return numbers


def _said(point: Any) -> str:
    return f"({point.real:.1f}, {point.imag:.1f})"
