"""Any ONNX model of one picture in, one vector out, by onnxruntime. Source of the defaults: insightface, model_zoo/arcface_onnx.py."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import onnx_files
from pipeline.config import EmbedderConfig
from pipeline.embedders.base import MEAN, STD, Embedder, check_crops, three
from pipeline.embedders.parts import by_parts
from pipeline.errors import BadConfig, BadInput

METADATA = "arcface_purify."
"""Before the names of what our own exports say of themselves: `channels`, `mean`, `std`."""
_FREE_PX = 112
_MAX_BYTES = 2**31
"""A protobuf message has no more."""
_ADVICE = "It takes a model of one input, float [B, 3, H, W] or [B, H, W, 3] with H = W, and one output, [B, D]; see docs/models.md."


def load(path: Path, device: torch.device, config: EmbedderConfig) -> Embedder:
    """The embedder of an ONNX file. On a GPU where `device` is one and onnxruntime was built for it.

    Channels, mean and deviation are those of `config`; else of the file's metadata, where we exported it; else insightface's: RGB, and
    (x - 127.5) / 127.5, or pixels as they are where the graph itself begins by subtracting and multiplying.

    Raises BadConfig without onnxruntime. Raises BadInput: for a file that is no ONNX model, keeps weights elsewhere, has other inputs or outputs
    than one picture and one vector, answers with numbers that are not finite, or gives a picture another feature beside another picture.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BadConfig(
            "An ONNX embedder needs onnxruntime: pip install 'arcface-purify[onnx]', then give the same command again."
        ) from error
    if path.stat().st_size >= _MAX_BYTES:
        raise BadInput(f"{path} has {path.stat().st_size} bytes, and an ONNX file has less than {_MAX_BYTES}. {_ADVICE}")
    content = path.read_bytes()
    onnx_files.check(str(path), content, see="docs/models.md")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads have parts of their own
    options.log_severity_level = 4
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    there = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[*there, "CPUExecutionProvider"])
        form = _form(session, config)
        features = _Features(session, form, _look(session, content, config))
        dim = features.tried()
    except Exception as error:  # onnxruntime has errors of its own for every cause
        raise BadInput(f"{path} is no model that embeds faces ({' '.join(str(error).split())[:300]}). {_ADVICE}") from error

    def run(images_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(features(images_BCHW.numpy()))

    def embed(images_BCHW: Tensor) -> Tensor:
        check_crops(images_BCHW, form.side)
        if not len(images_BCHW):
            return torch.zeros(0, dim)
        return run(images_BCHW) if there else by_parts(run, images_BCHW, features.batch)

    digest = hashlib.sha256(content).hexdigest()
    return Embedder(name=path.stem, kind="onnx", sha256=digest, input_px=form.side, dim=dim, embed=embed, module=None)


class _Form(NamedTuple):
    name: str
    side: int
    batch: int | None
    """Pictures that the model takes at a time; None where it takes any number."""
    channels_last: bool


class _Look(NamedTuple):
    is_bgr: bool
    mean_C: NDArray[np.float32]
    std_C: NDArray[np.float32]


def _form(session: Any, config: EmbedderConfig) -> _Form:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    [given] = inputs
    shape = given.shape
    if given.type != "tensor(float)" or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(f"input {given.type} {shape}")
    channels_last = shape[1] != 3
    height, width = shape[1:3] if channels_last else shape[2:4]
    sides = {side for side in (height, width) if isinstance(side, int) and side > 0} or {config.input_px or _FREE_PX}
    side = sides.pop()
    if sides or not 16 <= side <= 1024:
        raise ValueError(f"input {given.type} {shape}")
    if config.input_px not in (None, side):
        raise ValueError(f"its side is {side} pixels, and embedder.input_px says {config.input_px}")
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    return _Form(given.name, side, batch, channels_last)


def _look(session: Any, content: bytes, config: EmbedderConfig) -> _Look:
    said = {
        name.removeprefix(METADATA): value
        for name, value in session.get_modelmeta().custom_metadata_map.items()
        if name.startswith(METADATA)
    }
    scales_itself = onnx_files.begins_with(content, session.get_inputs()[0].name, ("Sub", "Mul"))
    mean = _numbers(said["mean"]) if "mean" in said else three(None, 0.0 if scales_itself else MEAN)
    std = _numbers(said["std"]) if "std" in said else three(None, 1.0 if scales_itself else STD)
    if min(std) <= 0:
        raise ValueError(f"metadata {METADATA}std is {std}")
    channels = config.channels or said.get("channels", "rgb")
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"metadata {METADATA}channels is {channels[:40]!r}")
    mean_C = np.array(mean if config.mean is None else three(config.mean, MEAN), np.float32)
    std_C = np.array(std if config.std is None else three(config.std, STD), np.float32)
    return _Look(channels == "bgr", mean_C, std_C)


def _numbers(text: str) -> tuple[float, float, float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"metadata {text[:60]!r} is not three numbers")
    return numbers[0], numbers[1], numbers[2]


class _Features:
    """uint8 [B, 3, H, W], RGB -> float32 [B, D]."""

    def __init__(self, session: Any, form: _Form, look: _Look) -> None:
        self._session = session
        self._form = form
        self._look = look
        self.batch = form.batch
        """Pictures that the model takes at a time; None where it takes any number."""

    def __call__(self, images_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        step = self.batch or len(images_BCHW)
        parts = [self._run(images_BCHW[start : start + step]) for start in range(0, len(images_BCHW), step)]
        return np.concatenate(parts)

    def tried(self) -> int:
        """The dimension, after two pictures that are unlike were embedded together and one by one. A model may be fit for one at a time only."""
        side = self._form.side
        ramp = np.linspace(0, 255, 3 * side * side).reshape(3, side, side).astype(np.uint8)
        pair = np.stack([ramp, 255 - ramp[:, ::-1]])
        if self.batch is None:
            try:
                self(pair)
            except Exception:  # noqa: BLE001 - of a graph that has the size of a batch fixed inside; the same is asked again, one by one
                self.batch = 1
        found, alone = self(pair), np.concatenate([self(pair[:1]), self(pair[1:])])
        if not np.isfinite(found).all():
            raise ValueError("its features are not finite")
        if not np.allclose(found, alone, rtol=1e-2, atol=1e-2 * np.abs(found).max()):
            raise ValueError("a picture's feature depends on the pictures beside it, as of a model exported in training mode")
        if found.shape[1] < 2 or np.allclose(found[0], found[1]):
            raise ValueError(f"two unlike pictures have the same feature of {found.shape[1]} numbers")
        return int(found.shape[1])

    def _run(self, images_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images_BCHW)
        if self.batch is not None and count < self.batch:
            images_BCHW = np.concatenate([images_BCHW, np.repeat(images_BCHW[-1:], self.batch - count, axis=0)])
        pixels = images_BCHW[:, ::-1] if self._look.is_bgr else images_BCHW
        inputs = (pixels.astype(np.float32) - self._look.mean_C[:, None, None]) / self._look.std_C[:, None, None]
        if self._form.channels_last:
            inputs = inputs.transpose(0, 2, 3, 1)
        [found] = self._session.run(None, {self._form.name: np.ascontiguousarray(inputs)})
        if found.ndim < 2 or len(found) != len(inputs) or math.prod(found.shape[2:]) != 1:
            raise ValueError(f"output {list(found.shape)} of {len(inputs)} pictures")
        features: NDArray[np.float32] = np.asarray(found.reshape(len(found), -1)[:count], np.float32)
        return features
