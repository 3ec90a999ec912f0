"""Detectors that detect nothing: points that the crawl, or the user, has."""

import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IngestConfig
from pipeline.detectors.base import Face, Find, read_file
from pipeline.errors import BadInput
from pipeline.measures import Pixels
from pipeline.sources import Item

_NUMBERS = 15
_PACKED = struct.Struct("=15d")


def none(config: IngestConfig) -> Find:
    """No detection: the five points beside the item, where there are any."""
    del config
    return lambda pixels, item: [] if item.landmarks is None else [Face(_five(item.landmarks))]


def landmarks(config: IngestConfig) -> Find:
    """Five points of `ingest.landmarks`, a JSON object by source_uri.

    A value is five points `[[x, y], ...]`, or `{"landmarks": [[x, y], ...], "box": [x, y, width, height], "score": 0.9}`, box and score as you
    like, or a list of such objects, one per face. Pixels of the upright picture.
    """
    content = read_file(config.landmarks or "", "landmarks")
    try:
        given = json.loads(content)
        if not isinstance(given, dict):
            raise TypeError(f"a {type(given).__name__}")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{config.landmarks} is no JSON object of landmarks by source_uri ({error}). docs/faces.md shows one.") from error
    known: dict[str, bytes] = {}
    while given:  # and not a loop over it: what is read is let go
        uri, value = given.popitem()
        try:
            known[uri] = b"".join(_packed(face) for face in _listed(value))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error) as error:
            raise BadInput(f"{config.landmarks}: {uri!r} has no five points ({error}). docs/faces.md shows the format.") from error

    def find(pixels: Pixels, item: Item) -> list[Face]:
        faces = np.frombuffer(known.get(item.source_uri, b"")).reshape(-1, _NUMBERS)
        return [
            Face(
                face[5:].reshape(5, 2),
                None if np.isnan(face[0]) else (float(face[0]), float(face[1]), float(face[2]), float(face[3])),
                None if np.isnan(face[4]) else float(face[4]),
            )
            for face in faces
        ]

    return find


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value]
    return value if not value or isinstance(value[0], dict) else [{"landmarks": value}]


def _packed(face: Any) -> bytes:
    """Box, score (NaN where not given) and ten coordinates, as float64: objects of Python would take ten times the memory."""
    box, score = face.get("box") or (math.nan,) * 4, face.get("score")
    points = [float(number) for point in face["landmarks"] for number in point]
    if len(box) != 4 or len(points) != 10:
        raise ValueError("a box is [x, y, width, height], landmarks are [[x, y], ...]")
    return _PACKED.pack(*box, math.nan if score is None else score, *points)


def _five(points: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(points, dtype=np.float64).reshape(5, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"five points [[x, y], ...] wanted: {error}") from error
