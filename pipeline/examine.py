"""One item of a crawl: its row, and its crop when it is whole. With several faces taken, a row and a crop for each."""

import hashlib
from typing import Any

import cv2
import numpy as np
import simplejpeg

from arcface_core.alignment import yaw_deg
from pipeline import shards
from pipeline.config import IngestConfig
from pipeline.detectors.base import in_short
from pipeline.faces import Face, detector, ranked
from pipeline.measures import Pixels, measure
from pipeline.pictures import Picture, Refused, decode
from pipeline.sources import Item
from pipeline.warp import aligned

Finding = tuple[dict[str, Any], bytes | None]
"""A row of the items table, and the JPEG bytes of its 112 x 112 crop when its status is `ok`."""


def examine(item: Item, config: IngestConfig) -> list[Finding]:
    """What the item holds: one finding, or one per face when `config.faces` is `all`. Never none, and never an exception for a bad picture.

    The first face has the item's `source_uri` and `sample_id`; the n-th has `#face=n` behind the one, and n in the other.
    """
    row: dict[str, Any] = {
        "identity": item.identity,
        "source_uri": item.source_uri,
        "source_url": item.source_url,
        "caption": item.caption,
        "license": item.license,
        "is_gone": False,
    }
    if item.content:
        row["content_sha256"] = hashlib.sha256(item.content).hexdigest()
        row["sample_id"] = shards.sample_id(item.identity, row["content_sha256"])
    try:
        if item.problem is not None:
            raise Refused(*item.problem)
        picture = decode(item.content, config)
        row["width_px"], row["height_px"] = picture.size
        row["note"] = "; ".join(picture.notes) or None
        return _samples(item, row, picture, config)
    except Refused as refused:
        row["status"], row["status_detail"] = refused.status, refused.detail
        if refused.size is not None:
            row["width_px"], row["height_px"] = refused.size
        return [(row, None)]


def _samples(item: Item, row: dict[str, Any], picture: Picture, config: IngestConfig) -> list[Finding]:
    is_asked = config.detector != "none"
    try:
        found = detector(config)(picture.pixels, item)
    except ValueError as error:
        raise Refused("not_aligned", f"landmarks: {error}") from error
    except cv2.error as error:
        raise Refused("no_face", f"the detector failed: {in_short(error)}") from error
    if not found and not is_asked:
        crop, pixels = _crop_as_is(picture, config)
        return [(row | {"status": "ok"} | _measured(pixels), crop)]
    faces = ranked(found, (picture.pixels.shape[1], picture.pixels.shape[0]), config) if is_asked else found
    if not faces:
        least = f"a score of {config.min_face_score:g} and a side of {config.min_face_px} px"
        raise Refused("no_face", f"{len(found)} faces found, none with {least}" if found else "no face found")
    findings: list[Finding] = []
    for number, face in enumerate(faces if config.faces == "all" else faces[:1], start=1):
        facts = row | (_numbered(item, row, number) if is_asked else {})
        try:
            pixels = aligned(picture.pixels, face.landmarks_px, config.crop_px)
        except ValueError as error:
            findings.append((facts | {"status": "no_face" if is_asked else "not_aligned", "status_detail": f"landmarks: {error}"}, None))
        else:
            findings.append((facts | _described(face) | {"status": "ok"} | _measured(pixels), _encoded(pixels, config)))
    return findings


def _crop_as_is(picture: Picture, config: IngestConfig) -> tuple[bytes, Pixels]:
    """The picture as a crop: its own bytes when nothing changes."""
    side, (height, width) = config.crop_px, picture.pixels.shape[:2]
    if width != height:
        raise Refused(
            "not_aligned", f"{width} x {height} is no aligned crop, and no five landmarks stand beside it. For photos: --detector"
        )
    if width == side:
        return picture.jpeg or _encoded(picture.pixels, config), picture.pixels
    pixels = picture.pixels
    while len(pixels) >= 4 * side and len(pixels) % 2 == 0:  # halves are means of whole pixels, and three times as fast as the rest
        pixels = np.asarray(cv2.resize(pixels, (len(pixels) // 2, len(pixels) // 2), interpolation=cv2.INTER_AREA), np.uint8)
    way = cv2.INTER_AREA if width > side else cv2.INTER_CUBIC
    pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=way), np.uint8)
    return _encoded(pixels, config), pixels


def _numbered(item: Item, row: dict[str, Any], number: int) -> dict[str, Any]:
    if number == 1:
        return {"face_number": 1}
    name = shards.sample_id(item.identity, row["content_sha256"], face=number)
    return {"face_number": number, "source_uri": f"{row['source_uri']}#face={number}", "sample_id": name}


def _described(face: Face) -> dict[str, Any]:
    x, y, width, height = face.box or (None, None, None, None)
    return {
        "face_score": face.score,
        "face_x_px": x,
        "face_y_px": y,
        "face_width_px": width,
        "face_height_px": height,
        "landmarks_px": face.landmarks_px.ravel().tolist(),
        "yaw_deg": yaw_deg(face.landmarks_px),
    }


def _measured(pixels: Pixels) -> dict[str, Any]:
    found = measure(pixels)
    return {"sharpness": found.sharpness, "brightness": found.brightness, "perceptual_hash": found.perceptual_hash}


def _encoded(pixels: Pixels, config: IngestConfig) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), config.jpeg_quality, colorspace="RGB", colorsubsampling="444")
    return content
