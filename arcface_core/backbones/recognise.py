"""Which backbone weights belong to, by their names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from arcface_core.backbones.iresnet import DEPTHS
from arcface_core.backbones.mobilefacenet import BLOCKS
from arcface_core.backbones.vit import PATCH_PX, SIZES

__all__ = ["Recognised", "recognise"]

_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.conv1\.weight")


class Recognised(NamedTuple):
    """What `build_backbone` takes."""

    name: str
    embedding_dim: int
    input_px: int


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Recognised | None:
    """The backbone whose state dict has such names and shapes; None when it is none of ours. Loading the weights proves it."""
    for known in (_iresnet, _mobilefacenet, _vit, _tiny):
        found = known(shapes)
        if found is not None:
            return found
    return None


def _iresnet(shapes: Mapping[str, tuple[int, ...]]) -> Recognised | None:
    """Blocks are counted; the side of the input follows from the last layer, which sees 512 channels of (side / 16)^2."""
    blocks = [match for name in shapes if (match := _BLOCK.fullmatch(name))]
    depths = tuple(sum(match[1] == stage for match in blocks) for stage in "1234")
    names = [name for name, known in DEPTHS.items() if known == depths]
    return _with_side(names[0], shapes, channels=512, stride=16) if names else None


def _mobilefacenet(shapes: Mapping[str, tuple[int, ...]]) -> Recognised | None:
    """The first convolution says how wide, the kernel over the last map how large the input is."""
    widths = {64 * scale: name for name, (scale, _) in BLOCKS.items()}
    outputs, *_ = shapes.get("features.layers.2.weight", (0,))
    name = widths.get(shapes.get("layers.0.layers.0.weight", (0,))[0])
    kernel = shapes.get("features.layers.0.layers.0.weight", (0,))[-1]
    return Recognised(name, outputs, 16 * kernel) if name and kernel and outputs else None


def _vit(shapes: Mapping[str, tuple[int, ...]]) -> Recognised | None:
    """Width and depth; of the sides that have so many patches the one that is a multiple of 16."""
    _, patches, width = shapes.get("pos_embed", (0, 0, 0))
    depth = sum(name.endswith(".attn.qkv.weight") for name in shapes)
    names = [name for name, size in SIZES.items() if size[:2] == (width, depth)]
    across = math.isqrt(patches)
    sides = [side for side in range(PATCH_PX * across, PATCH_PX * (across + 1)) if side % 16 == 0]
    outputs, *_ = shapes.get("feature.2.weight", (0,))
    is_ours = shapes.get("patch_embed.proj.weight", ())[2:] == (PATCH_PX, PATCH_PX) and across**2 == patches
    return Recognised(names[0], outputs, sides[0]) if names and sides and outputs and is_ours else None


def _tiny(shapes: Mapping[str, tuple[int, ...]]) -> Recognised | None:
    return _with_side("tiny", shapes, channels=128, stride=8) if "stem.0.weight" in shapes and "block2.conv1.weight" in shapes else None


def _with_side(name: str, shapes: Mapping[str, tuple[int, ...]], *, channels: int, stride: int) -> Recognised | None:
    outputs, inputs = shapes.get("fc.weight", (0, 0))
    side = math.isqrt(inputs // channels)
    return Recognised(name, outputs, side * stride) if side and side * side * channels == inputs else None
