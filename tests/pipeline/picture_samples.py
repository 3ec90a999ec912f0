"""Small pictures, coded, and what examine finds in them."""

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.examine import examine
from pipeline.measures import Pixels
from pipeline.sources import Item
from pipeline.tables import ITEMS, STATUSES

CONFIG = IngestConfig()


def smooth(width: int, height: int, seed: int = 0) -> Pixels:
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def coded(image: Image.Image | Pixels, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def finding(content: bytes, landmarks: Any = None, config: IngestConfig = CONFIG) -> tuple[dict[str, Any], bytes | None]:
    [(row, crop)] = examine(Item("a/b", "a", content, landmarks), config)
    assert set(row) <= set(ITEMS.names) and row["status"] in STATUSES
    assert (crop is not None) == (row["status"] == "ok") == (row.get("status_detail") is None)
    return row, crop


def pixels_of(crop: bytes | None) -> Pixels:
    assert crop is not None
    with Image.open(io.BytesIO(crop)) as image:
        assert image.size == (112, 112) and image.format == "JPEG"
        return np.asarray(image.convert("RGB"))


CROP = smooth(112, 112)
SQUARE = smooth(200, 200)
PHOTO = smooth(200, 160)
FIVE = [[70, 60], [110, 60], [90, 80], [75, 105], [105, 105]]
