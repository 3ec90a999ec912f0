"""SCRFD and RetinaFace with landmarks, by onnxruntime. Source of the layout: insightface, detection/scrfd/tools/scrfd.py."""

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import IngestConfig
from pipeline.detectors.base import MAX_CANDIDATES, STRIDES, Face, Find, on_reduced_copy, read_model, refusing, resized
from pipeline.errors import BadConfig
from pipeline.measures import Pixels
from pipeline.sources import Item

_ANCHORS = 2
_FREE_PX = 640
"""Input of models that take any size."""
_OVERLAP = 0.4


def scrfd(config: IngestConfig) -> Find:
    """SCRFD or RetinaFace with landmarks, in insightface's layout of nine outputs, by onnxruntime.

    Input [1, 3, H, W], RGB, `(x - 127.5) / 128`, the picture in the upper left, its ratio kept; H and W are the model's, 640 where it is free.
    Outputs for strides 8, 16, 32, two anchors a cell, cells by rows: scores [cells * 2, 1]; distances to left, top, right, bottom [cells * 2, 4] and
    offsets of five points [cells * 2, 10], both from the cell's upper left corner and in strides. Overlaps above 0.4 go to the surer face.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BadConfig(
            "The detector scrfd needs onnxruntime: pip install 'arcface-purify[onnx]', then give the same command again."
        ) from error
    content = read_model(config)
    advice = "It takes a model of nine outputs with landmarks, as insightface's det_10g.onnx or scrfd_*_bnkps.onnx; see docs/faces.md."
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with refusing(config, advice):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        [given] = session.get_inputs()
        if given.type != "tensor(float)" or len(given.shape) != 4 or given.shape[1] != 3 or len(session.get_outputs()) != 9:
            raise ValueError(f"input {given.type} {given.shape} and {len(session.get_outputs())} outputs")
        height, width = (side if isinstance(side, int) and side > 0 else _FREE_PX for side in given.shape[2:])
        if height % 32 or width % 32 or max(height, width) > 4096:
            raise ValueError(f"input of {width} x {height} pixels")
        run = functools.partial(session.run, None)
        _cells(run({given.name: np.zeros((1, 3, height, width), np.float32)}), height, width)

    def find(pixels: Pixels, item: Item) -> list[Face]:
        scale = min(width / pixels.shape[1], height / pixels.shape[0])
        image = resized(pixels, max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        blob = cv2.dnn.blobFromImage(canvas, 1 / 128, (width, height), (127.5, 127.5, 127.5))
        scores, boxes, points = _cells(run({given.name: blob}), height, width)
        sure = np.flatnonzero(scores >= config.min_face_score)
        sure = sure[np.argsort(-scores[sure], kind="stable")][:MAX_CANDIDATES]
        kept = sure[not_overlapping(boxes[sure], _OVERLAP)]
        back = np.array([pixels.shape[1] / image.shape[1], pixels.shape[0] / image.shape[0]])
        return [
            Face(
                points[n].reshape(5, 2) * back,
                (*(boxes[n, :2] * back), *((boxes[n, 2:] - boxes[n, :2]) * back)),
                min(float(scores[n]), 1.0),
            )
            for n in kept
        ]

    return on_reduced_copy(find)


def not_overlapping(boxes: NDArray[np.float64], limit: float) -> NDArray[np.intp]:
    """Rows of `boxes` [N, 4] (left, top, right, bottom, surest first) kept: those whose intersection over union with every surer one kept is `limit` at most."""
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while left.size:
        first, left = left[0], left[1:]
        kept.append(int(first))
        common = np.minimum(boxes[first, 2:], boxes[left, 2:]) - np.maximum(boxes[first, :2], boxes[left, :2])
        shared = np.prod(np.maximum(common, 0), axis=1)
        left = left[shared <= limit * np.maximum(area[first] + area[left] - shared, 1e-12)]
    return np.array(kept, np.intp)


def _cells(
    outputs: Sequence[NDArray[Any]], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores [N], boxes [N, 4] (left, top, right, bottom) and points [N, 10] of all cells, in pixels of the input."""
    scores, boxes, points = [], [], []
    for level, stride in enumerate(STRIDES):
        rows, columns = height // stride, width // stride
        corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        corners = np.repeat(corners, _ANCHORS, axis=0) * stride
        parts = []
        for group, numbers in enumerate((1, 4, 10)):
            part = np.asarray(outputs[3 * group + level])
            if part.shape not in {(len(corners), numbers), (1, len(corners), numbers)}:
                raise ValueError(f"output {3 * group + level} has shape {list(part.shape)}, [{len(corners)}, {numbers}] wanted")
            parts.append(part.reshape(-1, numbers).astype(np.float64))
        scores.append(parts[0][:, 0])
        boxes.append(np.hstack([corners - parts[1][:, :2] * stride, corners + parts[1][:, 2:] * stride]))
        points.append(np.tile(corners, 5) + parts[2] * stride)
    return np.concatenate(scores), np.vstack(boxes), np.vstack(points)
