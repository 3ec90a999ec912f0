"""What an embedder is, whatever file it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

MEAN = STD = 127.5
"""Of insightface's models and of ours: (x - 127.5) / 127.5, RGB."""


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model that turns crops into features."""

    name: str
    """`iresnet50`, or the stem of an ONNX file."""
    kind: Literal["torch", "onnx"]
    sha256: str
    """Of the model's file, in hex."""
    input_px: int
    """Side of the square input."""
    dim: int
    embed: Callable[[Tensor], Tensor]
    """uint8 [B, 3, input_px, input_px], RGB -> features [B, dim], float32, on the CPU, not normalised; on a processor the same to the bit whatever
    the number of threads. B may be 0. ValueError for other crops."""
    module: nn.Module | None
    """Of a torch model: (x - 127.5) / 127.5 [B, 3, H, W], RGB -> features [B, dim], on its device, frozen. None where there is none."""


def three(value: float | Sequence[float] | None, default: float) -> tuple[float, float, float]:
    """A number for each channel, of one number or three. Raises ValueError for any other count."""
    if value is None or isinstance(value, int | float):
        value = (default if value is None else float(value),) * 3
    red, green, blue = value
    return red, green, blue


def check_crops(images_BCHW: Tensor, input_px: int) -> None:
    """Raise ValueError unless these are uint8 crops of the model's side."""
    if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != (3, input_px, input_px):
        raise ValueError(
            f"this embedder takes uint8 crops [B, 3, {input_px}, {input_px}], got {images_BCHW.dtype} {list(images_BCHW.shape)}: scale them first"
        )
