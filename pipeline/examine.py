"""One item of a crawl: its row, and its crop when it is whole."""

import hashlib
import io
import warnings
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from arcface_core.alignment import similarity_transform
from pipeline import shards
from pipeline.config import IngestConfig
from pipeline.sources import Item

Finding = tuple[dict[str, Any], bytes | None]
"""A row of the items table, and the JPEG bytes of its 112 x 112 crop when its status is `ok`."""


def examine(item: Item, config: IngestConfig) -> list[Finding]:
    """What the item holds: one finding, or one per face when `config.faces` is `all`. Never none."""
    return [_examine(item, config)]


def _examine(item: Item, config: IngestConfig) -> Finding:
    row: dict[str, Any] = {
        "identity": item.identity,
        "source_uri": item.source_uri,
        "source_url": item.source_url,
        "caption": item.caption,
        "is_gone": False,
    }
    if item.content:
        row["content_sha256"] = hashlib.sha256(item.content).hexdigest()
        row["sample_id"] = shards.sample_id(item.identity, item.content)
    if item.problem is not None:
        row["status"], row["status_detail"] = item.problem
        return row, None
    if not item.content:
        return row | {"status": "empty", "status_detail": "no bytes"}, None
    status, detail, size, crop = _decode(item, config)
    row |= {"status": status, "status_detail": detail}
    if size is not None:
        row["width_px"], row["height_px"] = size
    return row, crop


def _decode(item: Item, config: IngestConfig) -> tuple[str, str | None, tuple[int, int] | None, bytes | None]:
    size = None
    try:
        with _quiet(), Image.open(io.BytesIO(item.content), formats=["JPEG", "PNG", "WEBP"]) as image:
            size = image.size
            if size[0] * size[1] > config.max_pixels:
                return "bomb", f"{size[0]} x {size[1]} pixels, {config.max_pixels} allowed", size, None
            if min(size) < config.min_side_px:
                return "too_small", f"{size[0]} x {size[1]} pixels, {config.min_side_px} wanted", size, None
            image.load()  # only a full load notices a file that ends early
            crop, problem = _crop(image, item, config)
            return ("ok", None, size, crop) if problem is None else ("not_aligned", problem, size, None)
    except UnidentifiedImageError:
        return "unsupported_format", "no JPEG, PNG or WebP", None, None
    except Image.DecompressionBombError as error:
        return "bomb", str(error), size, None
    except Exception as error:  # noqa: BLE001 - foreign decoders raise anything; each failure is a row
        truncated = "truncated" in str(error) or "incomplete" in str(error)
        return "truncated" if truncated else "undecodable", f"{type(error).__name__}: {error}"[:300], size, None


def _quiet() -> "warnings.catch_warnings[None]":
    """No warnings: on the size of a picture we decide ourselves, and a damaged EXIF block is no reason to lose it."""
    return warnings.catch_warnings(action="ignore")


def _crop(image: Image.Image, item: Item, config: IngestConfig) -> tuple[bytes | None, str | None]:
    side = config.crop_px
    if item.landmarks is not None:
        try:
            points = np.asarray(item.landmarks, dtype=np.float64).reshape(5, 2)
            matrix = similarity_transform(points, size_px=side)
        except (ValueError, TypeError) as error:
            return None, f"landmarks: {error}"
        pixels = cv2.warpAffine(np.asarray(image.convert("RGB")), matrix, (side, side), flags=cv2.INTER_AREA, borderValue=0)
        return _encode(Image.fromarray(pixels), config), None
    if image.width != image.height:
        return None, f"{image.width} x {image.height} is no aligned crop, and no five landmarks stand beside it"
    plain = image.format == "JPEG" and image.mode in {"RGB", "L"} and image.width == side and not image.getexif()
    if plain:
        return item.content, None
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return _encode(upright if upright.width == side else upright.resize((side, side), Image.Resampling.LANCZOS), config), None


def _encode(image: Image.Image, config: IngestConfig) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=config.jpeg_quality, subsampling=0)
    return buffer.getvalue()
