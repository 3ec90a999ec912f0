"""What a detector is, and what those that load a model share."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import onnx_files
from pipeline.config import IngestConfig
from pipeline.errors import BadConfig, BadInput
from pipeline.measures import Pixels
from pipeline.sources import Item

MAX_SIDE_PX = 1280
"""Of the copy of a picture that a model looks at."""
STRIDES = (8, 16, 32)
MAX_CANDIDATES = 1000
_MAX_FILE_BYTES = 2**30
_LONGEST = 160
_OPENCV_PLACE = re.compile(r"OpenCV\(\S+\) \S+:\d+: error: \(-?\d+:[^)]*\) ?")


@dataclass(frozen=True)
class Face:
    """One face, in pixels of the upright picture."""

    landmarks_px: NDArray[np.float64]
    """[5, 2]: left eye, right eye, nose, left and right mouth corner, left and right as seen."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, width, height; None where only points are known."""
    score: float | None = None
    """0..1, higher is surer."""


Find = Callable[[Pixels, Item], Sequence[Face]]
"""The faces of a picture, unsorted. Raises ValueError when the landmarks given with the item are none."""


@functools.lru_cache(maxsize=2)
def read_file(path: str, setting: str) -> bytes:
    """The bytes of a file that a setting names, read once per process. Raises BadConfig when it is not there, BadInput when it cannot be read."""
    file = Path(path)
    if not file.is_file():
        raise BadConfig(f"There is no file {path!r} (ingest.{setting}). Check the path; nothing is downloaded. See docs/faces.md.")
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise BadInput(f"{path} has more than {_MAX_FILE_BYTES} bytes (ingest.{setting}). Give the detector's own file.")
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror} (ingest.{setting}). Mend that and run again.") from error


def read_model(config: IngestConfig) -> bytes:
    """The bytes of `ingest.detector_model`, an ONNX file that holds all of its weights."""
    content = read_file(config.detector_model or "", "detector_model")
    onnx_files.check(str(config.detector_model), content, see="docs/faces.md")
    return content


@contextlib.contextmanager
def refusing(config: IngestConfig, advice: str) -> Iterator[None]:
    """Whatever a runtime raises over a model is BadInput, with the next step."""
    try:
        yield
    except Exception as error:
        raise BadInput(f"{config.detector_model} is no model for the detector {config.detector} ({in_short(error)}). {advice}") from error


def in_short(error: Exception) -> str:
    """What a runtime says, on one line of at most 160 characters; of OpenCV's errors, which may be nested, without the places in its own source."""
    said = " ".join(str(getattr(error, "err", "") or error).split())
    return _OPENCV_PLACE.sub("", said).strip("> ")[:_LONGEST]


def on_reduced_copy(find: Find) -> Find:
    """The same detector, on pictures reduced to 1,280 px where they are longer, with its answers scaled back."""

    def found(pixels: Pixels, item: Item) -> list[Face]:
        height, width = pixels.shape[:2]
        scale = MAX_SIDE_PX / max(height, width)
        if scale >= 1:
            return list(find(pixels, item))
        small = resized(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
        across, down = width / small.shape[1], height / small.shape[0]
        return [
            Face(face.landmarks_px * [across, down], face.box and _scaled(face.box, across, down), face.score) for face in find(small, item)
        ]

    cv2.setNumThreads(1)  # each worker is one thread
    return found


def _scaled(box: tuple[float, float, float, float], across: float, down: float) -> tuple[float, float, float, float]:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """The picture at another size: by areas where it shrinks."""
    way = cv2.INTER_AREA if width < pixels.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=way), np.uint8)
