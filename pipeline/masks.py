"""Draws a surgical mask on a face, over nose tip, mouth and chin, from five landmarks: to make a masked LFW of one's own.

A drawn mask tells how an embedder takes to the lower half of a face being hidden. It is not a photograph of a masked face: no published masked set is replaced.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from arcface_core.alignment import TEMPLATE_112
from pipeline.measures import Pixels

_COLOURS = np.array([[176, 205, 224], [238, 240, 240], [44, 46, 52], [150, 196, 170], [214, 182, 196]], np.float64)
"""Blue, white, black, green, rose."""
_TOP = np.array([[21, 66], [30, 66], [41, 64.5], [50, 60], [56, 58.5], [62, 60], [71, 64.5], [82, 66], [91, 66]], np.float64)
_BOTTOM = np.array([[88, 84], [80, 99], [69, 110], [56, 114], [43, 110], [32, 99], [24, 84]], np.float64)
"""The outline in the 112 x 112 template."""
_STRAPS = ((np.array([[21, 66.0]]), np.array([[4, 56.0]])), (np.array([[24, 84.0]]), np.array([[6, 72.0]])))
_PLEATS = (74.0, 83.0, 92.0)
_CENTRE = 18.0
_FINE = 4
"""Drawn this much larger, then averaged down."""
_SHIFT = 4


def masked(pixels: Pixels, rng: np.random.Generator, landmarks_52: NDArray[np.float64] = TEMPLATE_112) -> Pixels:
    """The RGB picture [H, W, 3] with a mask; of an aligned 112 x 112 crop the landmarks are the template.

    The outline is laid onto the face by the affine map that brings the template nearest to the landmarks; its middle follows the nose of a turned head. Cloth takes
    its light from the face beneath, blurred. The same generator state gives the same mask. Raises ValueError: landmarks that are not five finite points.
    """
    points = np.asarray(landmarks_52, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(
            f"landmarks must be five finite points (x, y), got shape {points.shape}: see arcface_core/alignment.py for the order"
        )
    colour = _COLOURS[int(rng.integers(len(_COLOURS)))] + rng.normal(0, 6, 3)
    height = float(rng.normal(0, 1.5))
    place = _affine(points)
    turn = points[2] - _moved(place, TEMPLATE_112[2:3])[0]

    def laid(outline: NDArray[np.float64]) -> NDArray[np.float64]:
        near = np.exp(-(((outline[:, :1] - 56) / _CENTRE) ** 2))
        there: NDArray[np.float64] = _moved(place, outline + np.array([0, height])) + near * turn
        return there

    cover = _filled(pixels.shape, laid(np.vstack([_TOP, _BOTTOM])))
    strap = np.zeros_like(cover)
    for left, end in _STRAPS:
        for mirror in (False, True):
            ends = [np.column_stack([112 - part[:, 0], part[:, 1]]) if mirror else part for part in (left, end)]
            strap = np.maximum(strap, _line(pixels.shape, laid(np.vstack(ends))))
    folds = np.zeros_like(cover)
    for row in _PLEATS:
        across = np.column_stack([np.linspace(30, 82, 9), row + 3 * np.sin(np.linspace(0, np.pi, 9))])
        folds = np.maximum(folds, _line(pixels.shape, laid(across)))
    luma = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float64)
    span = float(np.linalg.norm(points[1] - points[0]))
    light = cv2.GaussianBlur(luma, (0, 0), max(1.0, span / 3))
    light = 0.45 + 0.55 * light / max(1.0, float(light[cover > 0.5].mean()) if (cover > 0.5).any() else 1.0)
    cloth = colour * np.clip(light, 0.3, 1.35)[..., None] * (1 - 0.14 * folds[..., None])
    alpha = np.maximum(cover, 0.8 * strap)[..., None]
    return np.asarray(np.clip(pixels * (1 - alpha) + cloth * alpha, 0, 255).round(), np.uint8)


def _affine(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrix [2, 3] that brings the template nearest to the landmarks, by least squares, the nose counting little: it stands before the plane of the others."""
    weight = np.array([1, 1, 0.1, 1, 1])[:, None]
    source = np.column_stack([TEMPLATE_112, np.ones(5)])
    found: NDArray[np.float64] = np.linalg.lstsq(source * weight, points * weight, rcond=None)[0].T
    return found


def _moved(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _filled(shape: tuple[int, ...], outline: NDArray[np.float64]) -> NDArray[np.float64]:
    canvas = np.zeros((shape[0] * _FINE, shape[1] * _FINE), np.uint8)
    cv2.fillPoly(canvas, [_fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
    return _averaged(canvas, shape)


def _line(shape: tuple[int, ...], points: NDArray[np.float64]) -> NDArray[np.float64]:
    canvas = np.zeros((shape[0] * _FINE, shape[1] * _FINE), np.uint8)
    cv2.polylines(canvas, [_fixed(points)], False, 255, _FINE, cv2.LINE_AA, _SHIFT)
    return _averaged(canvas, shape)


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    fine = (np.clip(points, -4 * 112, 1 << 14) * _FINE + (_FINE - 1) / 2) * (1 << _SHIFT)
    return np.asarray(fine.round(), np.int32).reshape(-1, 1, 2)


def _averaged(canvas: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(cv2.resize(canvas, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), np.float64) / 255
