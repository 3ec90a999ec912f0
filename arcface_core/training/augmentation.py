"""Augmentation of whole batches on the device: what a sample becomes depends on (seed, step, its place in the global batch) and on nothing else.

So a resumed training, and one over another number of processes, sees the same pictures. Mirroring is the paper's only augmentation; the others, each
with its own probability, are those of AdaFace (crop, low resolution, colour) and of masks and lenses (occlusion, blur).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from arcface_core.training.ranks import rank_and_ranks

__all__ = ["AUGMENTATIONS", "augmented", "mirrored", "to_input"]

_DRAWS = 6


def to_input(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 pixels 0..255 as the backbone's input, float32 in [-1, 1]: (x - 127.5) / 127.5."""
    return (images_BCHW.to(device, non_blocking=True).float() - 127.5) / 127.5


def mirrored(images_BCHW: Tensor, seed: int, step: int) -> Tensor:
    """Each image as its mirror image with probability 1/2."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    mirror_B = (_of_all(len(images_BCHW), generator)[:, 0] < 0.5).to(images_BCHW.device)
    return torch.where(mirror_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def augmented(images_BCHW: Tensor, names: Sequence[str], *, probability: float, seed: int, step: int) -> Tensor:
    """Images in [-1, 1] after each of the augmentations `names`, in the order of AUGMENTATIONS, with `probability` each."""
    for number, (name, apply) in enumerate(AUGMENTATIONS.items()):
        if name not in names:
            continue
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step * 31 + 7_919 * (number + 1)) % 2**63)
        draws_B7 = _of_all(len(images_BCHW), generator, 1 + _DRAWS)
        chosen = (draws_B7[:, 0] < probability).nonzero().squeeze(1)
        if len(chosen):
            at = chosen.to(images_BCHW.device)
            images_BCHW = images_BCHW.index_copy(0, at, apply(images_BCHW[at], draws_B7[chosen, 1:].to(images_BCHW.device)))
    return images_BCHW


def _of_all(count: int, generator: torch.Generator, numbers: int = 1) -> Tensor:
    """Numbers in [0, 1) for this process's samples, drawn for the global batch, [B, numbers]."""
    rank, ranks = rank_and_ranks()
    return torch.rand(count * ranks, numbers, generator=generator)[rank::ranks]


def _crop(images: Tensor, draws: Tensor) -> Tensor:
    """0.85 to 1.15 of the size, moved by up to 8 % of the side, turned by up to 10 degrees; the border is repeated."""
    zoom, turn = 1 / (0.85 + 0.3 * draws[:, 0]), (draws[:, 1] * 2 - 1) * math.radians(10)
    shift = (draws[:, 2:4] * 2 - 1) * 0.16
    cos, sin = zoom * torch.cos(turn), zoom * torch.sin(turn)
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _low_resolution(images: Tensor, draws: Tensor) -> Tensor:
    """As from a picture of 0.2, 0.3, 0.45 or 0.7 of the side."""
    side = images.shape[-1]
    out = images.clone()
    for number, share in enumerate((0.2, 0.3, 0.45, 0.7)):
        at = (draws[:, 0] * 4).long() == number
        small = functional.interpolate(images[at], size=max(4, round(side * share)), mode="area")
        out[at] = functional.interpolate(small, size=side, mode="bilinear", align_corners=False)
    return out


def _blur(images: Tensor, draws: Tensor) -> Tensor:
    """A Gaussian of 0.5 to 2.5 pixels of a 112-pixel crop."""
    count, channels, height, width = images.shape
    sigma = (0.5 + 2 * draws[:, 0]) * width / 112
    reach = max(1, math.ceil(7.5 * width / 112))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = images.reshape(1, count * channels, height, width)
    flat = functional.conv2d(
        functional.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=count * channels
    )
    flat = functional.conv2d(
        functional.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel[:, None, :, None], groups=count * channels
    )
    return flat.reshape(images.shape)


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness and contrast by a factor of 0.6 to 1.4, saturation by 0 (grey) to 1.4."""
    brightness, contrast, saturation = (part[:, None, None, None] for part in draws[:, :3].unbind(1))
    light = (images + 1) * (0.6 + 0.8 * brightness)
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    light = mean + (light - mean) * (0.6 + 0.8 * contrast)
    grey = (light * light.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    return (grey + (light - grey) * 1.4 * saturation - 1).clamp(-1, 1)


def _occlusion(images: Tensor, draws: Tensor) -> Tensor:
    """A rectangle of 0.2 to 0.5 of each side, of one grey."""
    down, across = (torch.arange(side, device=images.device)[None, :] / side for side in images.shape[-2:])
    size = 0.2 + 0.3 * draws[:, :2]
    first = draws[:, 2:4] * (1 - size)
    rows = (down >= first[:, :1]) & (down < first[:, :1] + size[:, :1])
    columns = (across >= first[:, 1:]) & (across < first[:, 1:] + size[:, 1:])
    covered = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(covered, (draws[:, 4] * 2 - 1)[:, None, None, None], images)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop": _crop,
    "low_resolution": _low_resolution,
    "blur": _blur,
    "colour": _colour,
    "occlusion": _occlusion,
}
"""(images [B, 3, H, W] in [-1, 1], numbers in [0, 1) [B, 6]) to images."""
