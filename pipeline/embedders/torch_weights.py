"""Weights of one of our backbones: ours as safetensors, insightface's as `.pt` or `.pth`. Which backbone is read off names and shapes."""

from pathlib import Path

import torch
from torch import Tensor, nn

from arcface_core.backbones import BACKBONES, build_backbone, recognise
from arcface_core.training import to_input
from pipeline.config import EmbedderConfig
from pipeline.embedders.base import MEAN, STD, Embedder, check_crops, three
from pipeline.embedders.parts import by_parts
from pipeline.errors import BadCheckpoint
from pipeline.models import fit, load_tensors, place
from pipeline.sums import file_sha256


def load(path: Path, device: torch.device, config: EmbedderConfig) -> Embedder:
    """The embedder of a file of weights, in evaluation mode, frozen.

    Raises BadCheckpoint: for a file that is damaged or holds more than tensors, and when backbone and weights do not fit.
    """
    tensors = load_tensors(path)
    found = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if found is None:
        raise BadCheckpoint(
            f"{path} holds weights of no backbone that is known here ({', '.join(BACKBONES)}): its first names are "
            f"{', '.join(list(tensors)[:4])}. Turn the model into ONNX where its code is at hand; docs/models.md shows how."
        )
    if config.input_px not in (None, found.input_px):
        raise BadCheckpoint(
            f"{path} holds weights of {found.name} for {found.input_px} pixels, and embedder.input_px says {config.input_px}. Leave the setting out."
        )
    net = build_backbone(found.name, embedding_dim=found.embedding_dim, input_px=found.input_px)
    fit(net, tensors, path)
    usual = config.channels in (None, "rgb") and config.mean in (None, MEAN) and config.std in (None, STD)
    module = place((net if usual else _Adapted(net, config)).eval().requires_grad_(False), device)

    @torch.no_grad()
    def run(images_BCHW: Tensor) -> Tensor:
        features: Tensor = module(to_input(images_BCHW, device).contiguous(memory_format=torch.channels_last))
        return features.float().cpu()

    def embed(images_BCHW: Tensor) -> Tensor:
        check_crops(images_BCHW, found.input_px)
        if not len(images_BCHW):
            return torch.zeros(0, found.embedding_dim)
        return by_parts(run, images_BCHW) if device.type == "cpu" else run(images_BCHW)

    return Embedder(
        name=found.name,
        kind="torch",
        sha256=file_sha256(path),
        input_px=found.input_px,
        dim=found.embedding_dim,
        embed=embed,
        module=module,
    )


class _Adapted(nn.Module):
    """A net that takes our input and hands it on as the net was trained: channels turned, its own mean and deviation."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, net: nn.Module, config: EmbedderConfig) -> None:
        super().__init__()
        self.net = net
        self.is_bgr = config.channels == "bgr"
        self.register_buffer("mean_C11", torch.tensor(three(config.mean, MEAN)).view(3, 1, 1))
        self.register_buffer("std_C11", torch.tensor(three(config.std, STD)).view(3, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pixels_BCHW = (x_BCHW.flip(1) if self.is_bgr else x_BCHW) * STD + MEAN
        out: Tensor = self.net((pixels_BCHW - self.mean_C11) / self.std_C11)
        return out
