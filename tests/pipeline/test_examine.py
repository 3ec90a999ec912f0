"""One item: its row and its crop, whatever the bytes are. Hostile pictures cost no exception, little time and little memory."""

from hashlib import sha256
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.examine import examine
from pipeline.measures import distance_bits
from pipeline.render import person, render
from pipeline.shards import sample_id
from pipeline.sources import Item
from tests.pipeline.picture_samples import CONFIG, CROP, FIVE, PHOTO, SQUARE, coded, finding, pixels_of, smooth


@pytest.mark.parametrize(
    ("content", "landmarks", "status"),
    [
        (coded(CROP), None, "ok"),
        (coded(Image.fromarray(CROP).convert("RGBA"), "PNG"), None, "ok"),
        (coded(CROP, "WEBP"), None, "ok"),
        (coded(CROP, "GIF"), None, "ok"),
        (coded(CROP, "BMP"), None, "ok"),
        (coded(CROP, "AVIF"), None, "ok"),
        (coded(SQUARE), None, "ok"),
        (coded(PHOTO), None, "not_aligned"),
        (coded(PHOTO), FIVE, "ok"),
        (coded(PHOTO), [[1, 1]] * 5, "not_aligned"),
        (coded(PHOTO), [[float("nan"), 1]] * 5, "not_aligned"),
        (coded(PHOTO), [[x * 100, y * 100] for x, y in FIVE], "not_aligned"),
        (coded(PHOTO), "nonsense", "not_aligned"),
        (coded(smooth(20, 20)), None, "too_small"),
        (coded(CROP)[:-200], None, "truncated"),
        (b"<html>", None, "unsupported_format"),
        (b"", None, "empty"),
        (b"\0" * 5000, None, "unsupported_format"),
        (coded(CROP, "TIFF"), None, "unsupported_format"),
        (coded(CROP, "ICO"), None, "unsupported_format"),
    ],
)
def test_one_item(content: bytes, landmarks: Any, status: str) -> None:
    row, crop = finding(content, landmarks)
    assert row["status"] == status, row
    if crop is not None:
        assert pixels_of(crop).shape == (112, 112, 3)
        assert row["sharpness"] > 0 and 0 < row["brightness"] < 1 and len(row["perceptual_hash"]) == 16
        assert "face_number" not in row and ("yaw_deg" in row) == (landmarks is not None)


def test_more_bytes_than_allowed_are_too_large_and_a_problem_of_the_source_is_kept() -> None:
    row, _ = finding(coded(CROP), config=IngestConfig(max_item_bytes=100))
    assert row["status"] == "too_large" and row["content_sha256"]
    [(row, crop)] = examine(Item("a", "x", problem=("unreadable", "no regular file")), CONFIG)
    assert (row["status"], row["status_detail"], crop) == ("unreadable", "no regular file", None)


def test_landmarks_bring_the_eyes_to_the_template() -> None:
    pixels = np.zeros((200, 260, 3), np.uint8)
    eyes = [(90, 70), (150, 74)]
    for x, y in eyes:
        pixels[y - 3 : y + 4, x - 3 : x + 4] = 255
    _, crop = finding(coded(pixels, "PNG"), [*eyes, (119, 106), (93, 142), (143, 145)])
    left = np.argwhere(pixels_of(crop)[:, :56, 0] > 128).mean(axis=0)
    assert left == pytest.approx([51.7, 38.3], abs=2.5)


# --- bytes that need no change are kept -----------------------------------------------------------------------------------------------


def test_a_jpeg_crop_is_kept_byte_for_byte_and_anything_else_is_coded_anew() -> None:
    upright, turned = Image.Exif(), Image.Exif()
    upright[0x0112], turned[0x0112] = 1, 6
    for kept in (
        coded(CROP),
        coded(CROP, quality=40, subsampling=2),
        coded(CROP, progressive=True),
        coded(Image.fromarray(CROP).convert("L")),
        coded(CROP, icc_profile=b"x" * 100_000),
    ):
        assert finding(kept)[1] == kept
        row, crop = finding(kept + b"PK\x03\x04 a zip, or a page")
        assert crop == kept and row["note"].endswith("bytes after the end of the picture")
    assert finding(coded(CROP, exif=upright))[1] == coded(CROP)
    for changed in (
        coded(CROP, "PNG"),
        coded(SQUARE),
        coded(CROP, exif=turned),
        coded(Image.fromarray(CROP).convert("CMYK")),
        coded(CROP, "MPO", save_all=True, append_images=[Image.fromarray(SQUARE)]),
    ):
        row, crop = finding(changed)
        assert row["status"] == "ok" and crop != changed and pixels_of(crop).std() > 5


def test_the_hash_of_a_picture_sent_twice_in_two_codings_is_nearly_one() -> None:
    crop = render(person(1, 2), np.random.default_rng(0))
    hashes = [finding(content)[0]["perceptual_hash"] for content in (coded(crop), coded(crop, "PNG"), coded(crop, "WEBP", quality=60))]
    assert max(distance_bits(hashes[0], other) for other in hashes) <= 3


def test_a_face_number_makes_another_sample() -> None:
    content = sha256(b"x").hexdigest()
    assert sample_id("a", content) == sample_id("a", content, face=1)
    assert len({sample_id("a", content, face=number) for number in range(1, 30)}) == 29


def test_the_same_item_gives_the_same_bytes() -> None:
    content = coded(SQUARE)
    assert examine(Item("a/b", "a", content), CONFIG) == examine(Item("a/b", "a", content), CONFIG)
    _, crop = finding(content)
    assert crop is not None and simplejpeg.decode_jpeg_header(crop)[:2] == (112, 112)


@pytest.mark.parametrize("side", [113, 250, 447, 448, 641, 896])
def test_a_square_picture_is_shrunk_by_areas(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    wanted = cv2.resize(pixels.astype(np.float32), (112, 112), interpolation=cv2.INTER_AREA)
    _, crop = finding(coded(pixels, "PNG"), config=IngestConfig(jpeg_quality=100))
    assert np.abs(pixels_of(crop) - wanted).mean() < 2.0
