"""The aligned crop: places, no false patterns, real photos against their reference crops."""

import io
import json
import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from arcface_core.alignment import TEMPLATE_112, shrinkage, similarity_transform, supersampled
from pipeline.measures import Pixels
from pipeline.warp import aligned

REAL = Path(__file__).parents[2].parent / "shared" / "data"
needs_real_photos = pytest.mark.skipif(not (REAL / "lfw_photos.tar").exists(), reason="no real faces here: shared/data/lfw_photos.tar")


def turned(scale: float, middle: tuple[float, float], degrees: float = 17.0) -> NDArray[np.float64]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved: NDArray[np.float64] = (TEMPLATE_112 - 55.5) @ np.array([[c, s], [-s, c]]) * scale + np.array(middle)
    return moved


def reference(pixels: Pixels, landmarks: NDArray[np.float64], fine: int = 20) -> NDArray[np.float64]:
    """Each pixel of the crop as the mean of 400 bilinear samples."""
    matrix = supersampled(similarity_transform(landmarks), fine)
    large = cv2.warpAffine(pixels, matrix, (112 * fine, 112 * fine), flags=cv2.INTER_LINEAR, borderValue=0)
    return large.reshape(112, fine, 112, fine, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("scale", [1.6, 2.0, 3.1, 4.0, 5.3, 7.9, 9.0])
def test_a_large_face_is_shrunk_without_false_patterns(scale: float) -> None:
    """On noise of single pixels, which leaving pixels out keeps whole and averaging flattens."""
    pixels = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3)).astype(np.uint8)
    landmarks = turned(scale, (640.3, 655.8))
    assert shrinkage(similarity_transform(landmarks)) == pytest.approx(scale)
    wanted = reference(pixels, landmarks)
    ours = np.abs(aligned(pixels, landmarks, 112) - wanted).mean()
    plain = np.abs(cv2.warpAffine(pixels, similarity_transform(landmarks), (112, 112), flags=cv2.INTER_LINEAR) - wanted).mean()
    assert ours < 5 and ours < plain / 4, (ours, plain)


def test_shrinking_keeps_the_place_of_things_and_black_outside() -> None:
    size = 1500
    y, x = np.mgrid[:size, :size]
    smooth = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), 127 + 120 * np.sin((x + y) / 110)], axis=2).astype(np.uint8)
    for scale in (0.5, 1.0, 1.4, 2.5, 4.2, 6.0, 8.5):
        for middle in ((700.0, 700.0), (120.0, 90.0), (1450.0, 1400.0)):
            landmarks = turned(scale, middle)
            assert np.abs(aligned(smooth, landmarks, 112) - reference(smooth, landmarks)).mean() < 1.6, (scale, middle)
    assert (aligned(smooth, turned(5.0, (-300.0, -300.0)), 112)[:20, :20] == 0).all()


def test_a_crop_of_a_crop_is_the_crop() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    assert np.array_equal(aligned(pixels, TEMPLATE_112.copy(), 112), pixels)


@needs_real_photos
def test_real_photos_are_aligned_as_the_reference_crops_are() -> None:
    """320 photos with YuNet's points, against crops made by another program: median 1.8 of 255, and JPEG alone is 1.5 of it (docs/faces.md)."""
    points = json.loads((REAL / "lfw_photos_landmarks.json").read_text())
    with tarfile.open(REAL / "lfw112.tar") as crops:
        wanted = {member.name: read(crops, member) for member in crops if member.name in points}
    differences = []
    with tarfile.open(REAL / "lfw_photos.tar") as photos_tar:
        for member in photos_tar:
            if member.isreg():
                crop = aligned(read(photos_tar, member), np.array(points[member.name]["landmarks"]), 112)
                differences.append(np.abs(crop.astype(int) - wanted[member.name].astype(int)).mean())
    assert len(differences) == 320
    assert np.median(differences) < 2.0 and np.quantile(differences, 0.9) < 6.5 and np.mean(differences) < 3.1


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Pixels:
    file = tar.extractfile(member)
    assert file is not None
    pixels: Pixels = simplejpeg.decode_jpeg(io.BytesIO(file.read()).getvalue())
    return pixels
