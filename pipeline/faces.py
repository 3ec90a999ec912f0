"""The faces of a picture: which detector, and which face is the first. A detector is made once per process and asked once per picture.

Detectors see upright RGB pixels and answer in their coordinates. Pictures longer than 1,280 px are reduced for them. A model file is read
once: what is loaded is what was hashed. It is tried on an empty picture, so that a model of another kind is an error before any work is done.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IngestConfig
from pipeline.detectors import Face, Find
from pipeline.detectors.base import read_file
from pipeline.detectors.given import landmarks, none
from pipeline.detectors.scrfd import scrfd
from pipeline.detectors.yunet import yunet
from pipeline.errors import BadConfig

__all__ = ["DETECTORS", "Face", "Find", "detector", "inputs", "ranked"]

DETECTORS: dict[str, Callable[[IngestConfig], Find]] = {"none": none, "landmarks": landmarks, "yunet": yunet, "scrfd": scrfd}


def inputs(config: IngestConfig) -> dict[str, str]:
    """SHA-256 of the files that the detector is made of, by setting: `detector_model`, `landmarks`. The detector is made and tried here.

    Raises BadConfig: when the files do not fit the detector. Raises BadInput: when a file is not what it should be.
    """
    needed = {"landmarks": "landmarks", "yunet": "detector_model", "scrfd": "detector_model"}.get(config.detector)
    for setting, flag in (("detector_model", "--detector-model"), ("landmarks", "--landmarks")):
        given = getattr(config, setting)
        if given is None and setting == needed:
            see = "docs/faces.md says where to get one" if setting == "detector_model" else "docs/faces.md shows what stands in it"
            raise BadConfig(f"The detector {config.detector} needs {flag} FILE (ingest.{setting}). {see}.")
        if given is not None and setting != needed:
            wanted = "--detector yunet or --detector scrfd" if setting == "detector_model" else "--detector landmarks"
            raise BadConfig(f"{flag} (ingest.{setting}) says nothing to the detector {config.detector}. Add {wanted}, or leave it out.")
    read_file.cache_clear()
    detector.cache_clear()
    digests = {} if needed is None else {needed: hashlib.sha256(read_file(getattr(config, needed), needed)).hexdigest()}
    detector(config)
    return digests


@functools.lru_cache(maxsize=2)
def detector(config: IngestConfig) -> Find:
    """The detector of these settings, made once per process, with one thread."""
    made = DETECTORS[config.detector](config)
    read_file.cache_clear()  # a file of landmarks may be large
    return made


def ranked(faces: Sequence[Face], size: tuple[int, int], config: IngestConfig) -> list[Face]:
    """The faces that are finite, sure and large enough, best first: the largest and most central.

    The rank is `area * (1 - d)`: area of the box, and distance `d` of its middle from the middle of the picture (`size`: width, height), as a
    share of half the picture's diagonal, at most 1. Ties go to the surer, then to the left, then to the upper face. Limits are included: a score of
    `ingest.min_face_score` and a shorter side of `ingest.min_face_px` are enough. Where a face has no box, that
    of its points serves for the rank, and only there.
    """
    good = []
    for face in faces:
        left, top, wide, high = box = face.box or _around(face.landmarks_px)
        if not (np.isfinite(face.landmarks_px).all() and np.isfinite(box).all() and np.abs(face.landmarks_px).max() < 1e6):
            continue
        if (face.box and min(wide, high) < config.min_face_px) or not (face.score is None or face.score >= config.min_face_score):
            continue
        away = math.hypot(left + wide / 2 - size[0] / 2, top + high / 2 - size[1] / 2) / (math.hypot(*size) / 2)
        score = 1.0 if face.score is None else face.score
        good.append(((-wide * high * (1 - min(away, 1.0)), -score, left, top), face))
    return [face for _, face in sorted(good, key=lambda pair: pair[0])]


def _around(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, top = points.min(0)
    right, bottom = points.max(0)
    return float(left), float(top), float(right - left), float(bottom - top)
