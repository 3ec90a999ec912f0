"""Backbones: images [B, 3, H, W] in [-1, 1] to features [B, D]. A new one is a file here and a line in BACKBONES."""

from collections.abc import Callable
from functools import partial

from torch import nn

from arcface_core.backbones.iresnet import DEPTHS, IResNet
from arcface_core.backbones.mobilefacenet import BLOCKS, MobileFaceNet
from arcface_core.backbones.recognise import Recognised, recognise
from arcface_core.backbones.tiny import TinyResNet
from arcface_core.backbones.vit import SIZES, VisionTransformer

__all__ = ["BACKBONES", "Recognised", "build_backbone", "let_norms_move", "recognise"]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "tiny": TinyResNet,
    "iresnet18": partial(IResNet, DEPTHS["iresnet18"]),
    "iresnet34": partial(IResNet, DEPTHS["iresnet34"]),
    "iresnet50": partial(IResNet, DEPTHS["iresnet50"]),
    "iresnet100": partial(IResNet, DEPTHS["iresnet100"]),
    "iresnet200": partial(IResNet, DEPTHS["iresnet200"]),
    "mobilefacenet": partial(MobileFaceNet, *BLOCKS["mobilefacenet"]),
    "mobilefacenet_large": partial(MobileFaceNet, *BLOCKS["mobilefacenet_large"]),
    "vit_t": partial(VisionTransformer, *SIZES["vit_t"]),
    "vit_s": partial(VisionTransformer, *SIZES["vit_s"]),
    "vit_b": partial(VisionTransformer, *SIZES["vit_b"]),
}


def build_backbone(name: str, *, embedding_dim: int = 512, input_px: int = 112, dropout: float = 0.0) -> nn.Module:
    """A backbone with fresh weights. Raises ValueError for an unknown name, or an input side that is no multiple of 16."""
    if name not in BACKBONES:
        raise ValueError(f"There is no backbone {name!r}. Use one of: {', '.join(BACKBONES)}.")
    if input_px < 16 or input_px % 16:
        raise ValueError(
            f"The side of the input is a multiple of 16 pixels, got {input_px}. Crops of 112 pixels may be scaled to 48, 64, 96 or 112."
        )
    return BACKBONES[name](embedding_dim=embedding_dim, input_px=input_px, dropout=dropout)


def let_norms_move(backbone: nn.Module) -> None:
    """Lets the last BatchNorm of IResNet and `tiny` scale the features, which others' does anyway: their mean square norm is fixed otherwise.

    For a loss to which norms matter (MagFace, whose own IResNet has it so). Call it before the optimiser is made.
    """
    last = getattr(backbone, "features", None)
    if isinstance(last, nn.BatchNorm1d):
        last.weight.requires_grad_(True)
