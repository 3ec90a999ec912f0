"""YuNet, by OpenCV. Model: libfacedetection.train and opencv_zoo (docs/faces.md). Source of the outputs: OpenCV's face_detect.cpp."""

import contextlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from pipeline.config import IngestConfig
from pipeline.detectors.base import MAX_CANDIDATES, STRIDES, Face, Find, on_reduced_copy, read_model, refusing
from pipeline.measures import Pixels
from pipeline.sources import Item

_OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
"""Numbers per cell; an output is named by its kind and stride, `kps_8`."""
_OVERLAP = 0.3
_STEP_PX = 64
"""Pictures are padded to multiples of it, so that a crawl of many sizes is few sizes to the net."""


def yunet(config: IngestConfig) -> Find:
    """OpenCV's YuNet: `cv2.FaceDetectorYN` with the model `ingest.detector_model`."""
    content = read_model(config)
    buffer = np.frombuffer(content, np.uint8)
    advice = "OpenCV takes yunet_n_640_640.onnx or face_detection_yunet_2023mar.onnx, for pictures of any size; see docs/faces.md."
    with refusing(config, advice), _silence():
        probe = cv2.dnn.readNetFromONNX(buffer)
        net = cv2.FaceDetectorYN.create(
            "onnx", buffer, np.empty(0, np.uint8), (_STEP_PX, _STEP_PX), config.min_face_score, _OVERLAP, MAX_CANDIDATES
        )
        _try(probe, _STEP_PX, _STEP_PX)
    tried = {(_STEP_PX, _STEP_PX)}

    def find(pixels: Pixels, item: Item) -> list[Face]:
        # OpenCV reads the outputs by their places, whatever their size: each size of picture is tried with a net of our own before.
        image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        height, width = (-(-side // _STEP_PX) * _STEP_PX for side in image.shape[:2])
        image = cv2.copyMakeBorder(image, 0, height - image.shape[0], 0, width - image.shape[1], cv2.BORDER_CONSTANT)
        if (width, height) not in tried:
            with refusing(config, advice):
                _try(probe, width, height)
            tried.add((width, height))
        net.setInputSize((width, height))
        found = net.detect(image)[1]
        rows = np.empty((0, 15)) if found is None else np.asarray(found, np.float64)
        return [Face(row[4:14].reshape(5, 2), (row[0], row[1], row[2], row[3]), row[14]) for row in rows]

    return on_reduced_copy(find)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """OpenCV writes to the terminal before it raises; what it raises says it all."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _try(net: Any, width: int, height: int) -> None:
    names = [f"{kind}_{stride}" for kind in _OUTPUTS for stride in STRIDES]
    net.setInput(np.zeros((1, 3, height, width), np.float32))
    for name, output in zip(names, net.forward(names), strict=True):
        kind, stride = name.split("_")
        wanted = (height // int(stride)) * (width // int(stride)) * _OUTPUTS[kind]
        if output.size != wanted or output.dtype != np.float32:
            raise ValueError(f"output {name} has {output.size} numbers for {width} x {height} pixels, {wanted} wanted")
