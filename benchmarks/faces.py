"""What stands in docs/faces.md: alignment against reference crops, detection against given points, decoders, hashes, and what a picture costs.

Wants real photos and aligned crops of Labeled Faces in the Wild, which are not shipped: a folder with `lfw_photos.tar`, `lfw_photos_landmarks.json`
and `lfw112.tar`, members `Name/Name_0001.jpg`. Run: python benchmarks/faces.py FOLDER [--yunet MODEL.onnx ...] [--fuzz-seconds 60]
"""

import argparse
import contextlib
import io
import json
import random
import struct
import tarfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipeline import jpeg, pictures
from pipeline.config import IngestConfig
from pipeline.errors import BadInput
from pipeline.examine import examine
from pipeline.faces import inputs
from pipeline.measures import measure
from pipeline.sources import Item
from pipeline.warp import aligned


def members(tar: Path, most: int = 10**9) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            if (file := opened.extractfile(member)) is not None and len(found) < most:
                found[member.name] = file.read()
    return found


def milliseconds(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """CPU time an item, the best of five passes."""
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for item in items:
            work(item)
        best = min(best, time.process_time() - started)
    return best / len(items) * 1e3


def by_pillow(content: bytes) -> Any:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def by_simplejpeg(content: bytes, header: jpeg.Header) -> pictures.Picture | None:
    with contextlib.suppress(pictures.Refused):
        return pictures.plain_jpeg(content, header, jpeg.scans_and_end(content, header.scan)[1])
    return None


def by_cv2(content: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def decode_and_encode(content: bytes) -> bytes:
    pixels = simplejpeg.decode_jpeg(content)
    if pixels.shape[:2] != (112, 112):
        pixels = cv2.resize(pixels, (112, 112), interpolation=cv2.INTER_AREA)
    coded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, colorsubsampling="444")
    return coded


def costs(crops: list[bytes], photos: list[bytes]) -> None:
    large = [coded(np.asarray(Image.fromarray(by_pillow(one)).resize((640, 640), Image.Resampling.BICUBIC))) for one in photos[:60]]
    print("\nms of CPU a picture | Pillow load | cv2 | simplejpeg | decode + encode alone | examine | share of the limit")
    for name, given in (("112 px crop", crops[:400]), ("250 px photo", photos[:200]), ("640 px photo", large)):
        three = [milliseconds(work, given) for work in (by_pillow, by_cv2, simplejpeg.decode_jpeg)]
        limit, whole = (
            milliseconds(decode_and_encode, given),
            milliseconds(lambda one: examine(Item("a/b", "a", one), IngestConfig()), given),
        )
        print(f"{name} | " + " | ".join(f"{value:.3f}" for value in [*three, limit, whole]) + f" | {limit / whole:.2f}")
    pixels = [simplejpeg.decode_jpeg(one) for one in crops[:400]]
    print(f"all measures of a crop: {milliseconds(measure, pixels):.3f} ms")


def coded(pixels: Any) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(pixels, 90, colorsubsampling="420")
    return content


def alignment(photos: dict[str, bytes], points: dict[str, Any], crops: dict[str, bytes]) -> None:
    plain, as_jpeg = [], []
    for name, content in photos.items():
        wanted = simplejpeg.decode_jpeg(crops[name]).astype(int)
        crop = aligned(simplejpeg.decode_jpeg(content), np.array(points[name]["landmarks"]), 112)
        again = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(crop, 88, colorsubsampling="420"))
        plain.append(np.abs(crop - wanted).mean())
        as_jpeg.append(np.abs(again - wanted).mean())
    for name, values in (("pixels", plain), ("pixels coded as the reference is", as_jpeg)):
        spread = np.quantile(values, [0.5, 0.9, 1.0])
        print(
            f"mean absolute difference of {name}: mean {np.mean(values):.2f}, median {spread[0]:.2f}, 90 % {spread[1]:.2f}, worst {spread[2]:.2f}"
        )


def detection(model: Path, photos: dict[str, bytes], points: dict[str, Any]) -> None:
    config = IngestConfig(detector="yunet", detector_model=str(model))
    try:
        print(f"\n{model.name} {inputs(config)}")
    except BadInput as error:
        print(f"\n{model.name}: refused: {str(error)[-200:]}")
        return
    started = time.process_time()
    rows = {name: examine(Item(name, "a", content), config)[0][0] for name, content in photos.items()}
    seconds = time.process_time() - started
    found = {name: row for name, row in rows.items() if row["status"] == "ok"}
    errors = [
        np.linalg.norm(np.reshape(row["landmarks_px"], (5, 2)) - points[name]["landmarks"], axis=1).mean() for name, row in found.items()
    ]
    print(f"faces in {len(found)} of {len(photos)} photos, landmarks off by {np.mean(errors):.3f} px (worst {max(errors):.2f}), ", end="")
    print(f"{len(photos) / seconds:.0f} photos a second of CPU")


def hashes(crops: list[bytes]) -> None:
    pixels = [simplejpeg.decode_jpeg(one) for one in crops]
    bits = np.array([[int(bit) for bit in f"{int(measure(one).perceptual_hash, 16):064b}"] for one in pixels], np.float32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    pairs = apart[np.triu_indices(len(bits), 1)]
    print(f"\nperceptual hash, {len(pairs)} pairs of other pictures: mean {pairs.mean():.1f} bits, least {pairs.min():.0f}, ", end="")
    print(f"{(pairs <= 3).sum():.0f} within 3 bits, {(pairs <= 8).sum():.0f} within 8")
    changes: dict[str, Callable[[Any], Any]] = {
        "JPEG 70": lambda one: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(one, 70, colorsubsampling="420")),
        "JPEG 40": lambda one: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(one, 40, colorsubsampling="420")),
        "half the size and back": lambda one: cv2.resize(cv2.resize(one, (56, 56), interpolation=cv2.INTER_AREA), (112, 112)),
        "brighter by a fifth and 10, cut at 255": lambda one: np.clip(one * 1.2 + 10, 0, 255).astype(np.uint8),
        "moved by one pixel": lambda one: np.roll(one, 1, 1),
        "cut by two pixels all around": lambda one: cv2.resize(one[2:-2, 2:-2], (112, 112)),
    }
    for name, change in changes.items():
        moved = [int(measure(one).perceptual_hash, 16) ^ int(measure(change(one)).perceptual_hash, 16) for one in pixels[:400]]
        counts = np.array([one.bit_count() for one in moved])
        print(f"  {name}: mean {counts.mean():.1f} bits, {(counts <= 3).mean():.0%} within 3")


def fuzz(given: list[bytes], seconds: float) -> None:
    """Damaged JPEGs: what the strict fast decoder accepts is to be accepted by Pillow, with the same pixels."""
    rng, counts = (
        random.Random(7),
        dict.fromkeys(["files", "cuts", "fast", "pillow", "fast, not pillow", "other pixels", "cuts, fast", "cv2, not pillow"], 0),
    )
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        content = bytearray(rng.choice(given))
        if is_cut := rng.random() < 0.4:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                content[rng.randrange(len(content) if rng.random() < 0.7 else 700)] ^= 1 << rng.randrange(8)
        one = bytes(content)
        header = jpeg.read_header(one)
        fast = by_simplejpeg(one, header) if header is not None and header.is_plain else None
        try:
            with warnings.catch_warnings(action="ignore"):
                judged = by_pillow(one)
        except (OSError, ValueError, SyntaxError, struct.error):  # what Pillow raises on damage
            judged = None
        counts["files"] += 1
        counts["cuts"] += is_cut
        counts["fast"] += fast is not None
        counts["pillow"] += judged is not None
        counts["cuts, fast"] += is_cut and fast is not None
        counts["fast, not pillow"] += fast is not None and judged is None
        counts["other pixels"] += fast is not None and judged is not None and not np.array_equal(fast.pixels, judged)
        counts["cv2, not pillow"] += judged is None and len(one) > 0 and by_cv2(one) is not None
    print("\ndamaged JPEGs:", ", ".join(f"{name} {count}" for name, count in counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--yunet", type=Path, nargs="*", default=[])
    parser.add_argument("--fuzz-seconds", type=float, default=60)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    photos, crops = members(asked.folder / "lfw_photos.tar"), members(asked.folder / "lfw112.tar")
    points = json.loads((asked.folder / "lfw_photos_landmarks.json").read_text())
    alignment(photos, points, crops)
    for model in asked.yunet:
        detection(model, photos, points)
    hashes(list(crops.values())[:3000])
    costs(list(crops.values()), list(photos.values()))
    fuzz([*list(crops.values())[:60], *list(photos.values())[:20]], asked.fuzz_seconds)


if __name__ == "__main__":
    main()
