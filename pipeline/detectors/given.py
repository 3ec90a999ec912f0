"""Detectors that detect nothing: points that the crawl, or the user, has."""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IngestConfig
from pipeline.detectors.base import Face, Find, read_file
from pipeline.errors import BadInput


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
    known = {}
    for uri, value in given.items():
        try:
            known[uri] = _given_faces(value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"{config.landmarks}: {uri!r} has no five points ({error}). docs/faces.md shows the format.") from error
    return lambda pixels, item: [Face(face[5:].reshape(5, 2), _box(face), _score(face)) for face in known.get(item.source_uri, ())]


def _given_faces(value: Any) -> tuple[NDArray[np.float64], ...]:
    """Each as box, score (NaN where not given) and ten numbers, in one array: a million dicts would be a gigabyte."""
    if isinstance(value, list) and not (value and isinstance(value[0], dict)):
        value = {"landmarks": value} if value else []
    faces = value if isinstance(value, list) else [value]
    numbers = []
    for face in faces:
        box, score = face.get("box") or [math.nan] * 4, face.get("score")
        head = np.array([*box, math.nan if score is None else score], np.float64)
        if head.shape != (5,):
            raise ValueError("a box is [x, y, width, height]")
        numbers.append(np.concatenate([head, _five(face["landmarks"]).ravel()]))
    return tuple(numbers)


def _box(face: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    return None if np.isnan(face[0]) else (float(face[0]), float(face[1]), float(face[2]), float(face[3]))


def _score(face: NDArray[np.float64]) -> float | None:
    return None if np.isnan(face[4]) else float(face[4])


def _five(points: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(points, dtype=np.float64).reshape(5, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"five points [[x, y], ...] wanted: {error}") from error
