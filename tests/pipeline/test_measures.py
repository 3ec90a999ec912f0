"""Measures of a crop: what coding and size leave alone, what tells people apart, and what it costs."""

import time

import cv2
import numpy as np
import pytest
import simplejpeg

from pipeline.measures import Pixels, distance_bits, measure, perceptual_hash
from pipeline.render import person, render


def faces(count: int) -> list[Pixels]:
    return [render(person(3, number), np.random.default_rng(number)) for number in range(count)]


def coded(crop: Pixels, quality: int) -> Pixels:
    return simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(crop, quality=quality, colorspace="RGB", colorsubsampling="420"))  # type: ignore[no-any-return]


def resized(crop: Pixels, side: int) -> Pixels:
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def test_coding_resizing_and_light_change_few_bits_and_another_face_many() -> None:
    crops = faces(30)
    hashes = [measure(crop).perceptual_hash for crop in crops]
    for change, typical in (
        (lambda crop: coded(crop, 60), 3),
        (lambda crop: resized(crop, 80), 3),
        (lambda crop: resized(crop, 250), 3),
        (lambda crop: np.clip(crop * 0.9 + 20, 0, 255).astype(np.uint8), 3),
    ):
        bits = [distance_bits(one, measure(change(crop)).perceptual_hash) for one, crop in zip(hashes, crops, strict=True)]
        assert np.quantile(bits, 0.9) <= typical and max(bits) <= 8, bits
    others = [distance_bits(hashes[i], hashes[j]) for i in range(30) for j in range(i)]
    assert min(others) > 3 and np.median(others) > 12


def test_the_hash_is_the_signs_of_the_lowest_frequencies() -> None:
    """Against the cosine transform written out."""
    luma = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    x = np.arange(28)
    basis = np.cos(np.pi * np.outer(x, 2 * x + 1) / 56) * np.sqrt(np.where(x == 0, 1, 2) / 28)[:, None]
    spectrum = basis @ luma.astype(np.float64) @ basis.T
    order = sorted((u * u + v * v, u, v) for u in range(28) for v in range(28))[1:65]
    values = np.array([spectrum[v, u] for _, u, v in order])
    assert perceptual_hash(luma) == f"{int(''.join('1' if one > np.median(values) else '0' for one in values), 2):016x}"


def test_flat_and_tiny_pictures_have_a_hash_too() -> None:
    for value in (0, 77, 255):
        found = measure(np.full((112, 112, 3), value, np.uint8))
        assert found.perceptual_hash == "0" * 16 and found.sharpness == 0 and found.brightness == pytest.approx(value / 255, abs=1e-6)
    assert len(measure(np.zeros((1, 1, 3), np.uint8)).perceptual_hash) == 16
    assert distance_bits("0" * 16, "f" * 16) == 64


def test_sharpness_and_brightness_are_what_they_say() -> None:
    crop = faces(1)[0]
    blurred = np.asarray(cv2.GaussianBlur(crop, (0, 0), 2), np.uint8)
    assert measure(blurred).sharpness < measure(crop).sharpness / 3
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float64)
    padded = np.pad(luma, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * luma
    assert measure(crop).sharpness == pytest.approx(laplacian.var()) and measure(crop).brightness == pytest.approx(luma.mean() / 255)


def test_all_measures_of_a_crop_take_well_below_a_millisecond() -> None:
    crop = faces(1)[0]
    measure(crop)
    started = time.process_time()
    for _ in range(200):
        measure(crop)
    assert (time.process_time() - started) / 200 < 2e-3, "0.15 ms alone; ten times that is a defect, whatever else runs here"
