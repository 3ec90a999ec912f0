"""Faces that a frozen backbone imagines: images found by gradient descent on pixels alone.

Where the dominant sub-center of an identity gives one face and another sub-center gives a second one, two people share the name. The
BatchNorm term compares the statistics of the batch with those of the training set, so a batch of many different identities gives faces
where a batch of one gives artefacts; the paper takes 256. How good a face is should be judged by another model: its own flatters it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcface_core.angles import angle_deg, cosine, rowwise_cosine
from arcface_core.margins import Margin

__all__ = ["RECIPES", "IdentityTerm", "InversionResult", "Recipe", "closed_set", "invert", "open_set"]

_HALF_RANGE = 127.5
_JITTER = 28

IdentityTerm = Callable[[Tensor], Tensor]
"""Features [B, D] of the images so far to a loss, a scalar, that is small where they show who is wanted."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How pixels are found, but for the number of steps. The weights are the paper's."""

    learning_rate: float = 0.25
    bn_weight: float = 0.05
    tv_weight: float = 1e-3
    l2_weight: float = 1e-4
    is_squared: bool = False
    """BatchNorm term of squared norms and standard deviations, as the paper writes it; else of norms and variances, as DeepInversion's code."""
    is_moved: bool = True
    """Every step sees the batch shifted by up to input_px / 28 pixels each way (wrapped around), and mirrored half of the time."""
    is_annealed: bool = True
    """The learning rate falls to 0 along half a cosine."""
    is_bounded: bool = True
    """Pixels are clamped to -1..1 after each step."""
    coarse: tuple[tuple[int, float], ...] = ()
    """(divisor, share of the steps), in order: first a picture whose side is that much smaller is found, scaled up for the backbone; the rest is whole."""


RECIPES: dict[str, Recipe] = {
    "audit": Recipe(learning_rate=0.1, bn_weight=0.005, tv_weight=0.03, l2_weight=1e-3),
    "coarse": Recipe(learning_rate=0.1, bn_weight=0.005, tv_weight=0.03, l2_weight=1e-3, coarse=((4, 0.25), (2, 0.35))),
    "paper": Recipe(is_squared=True, is_moved=False, is_annealed=False, is_bounded=False),
}
"""`audit`: a hundred steps or more; weights for the cosine term, which is at most 2 where the paper's loss is tens (with the paper's, the statistics of
BatchNorm drown it). `coarse`: the same from coarse to fine.
`paper`: section 3.3 to the letter, which takes 20,000 steps, and `closed_set` or `open_set` as its term."""


class InversionResult(NamedTuple):
    """images uint8 [B, 3, H, W] RGB · angle_deg float32 [B], of each such image's embedding to its center · loss_history float32 [steps] ·
    bn_gap, the BatchNorm term of the final images (of norms and variances, unweighted; 0 without such layers): natural images have a small one.

    All on the CPU. The loss is the one before the step, on the image as moved for it.
    """

    images: Tensor
    angle_deg: Tensor
    loss_history: Tensor
    bn_gap: float


def closed_set(centers_CD: Tensor, class_index_B: Tensor, *, margin: Margin = Margin(), scale: float = 64.0) -> IdentityTerm:
    """The paper's term for identities that the head knows: its loss, against all centers. Source: ArcFace TPAMI section 3.3."""

    def term(features_BD: Tensor) -> Tensor:
        cos_BC = cosine(features_BD, centers_CD.to(features_BD.device))
        own_B1 = class_index_B.to(features_BD.device)[:, None]
        return functional.cross_entropy(scale * cos_BC.scatter(1, own_B1, margin(cos_BC.gather(1, own_B1))), own_B1[:, 0])

    return term


def open_set(features_BD: Tensor) -> IdentityTerm:
    """The paper's term for faces that the head does not know: the Euclidean distance to their features, not normalised."""
    return lambda found_BD: (found_BD - features_BD.to(found_BD.device)).norm(dim=1).mean()


def invert(
    backbone: nn.Module,
    target_centers_BD: Tensor,
    *,
    input_px: int,
    steps: int,
    seed: int,
    device: torch.device | str,
    recipe: Recipe = RECIPES["audit"],
    identity: IdentityTerm | None = None,
    init: Tensor | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> InversionResult:
    """Images whose embeddings lie near `target_centers_BD`, and the angles that are left. See InversionResult.

    Adam minimises, over pixels in the backbone's range of -1..1,

        identity + bn_weight * R_bn + tv_weight * R_tv + l2_weight * mean_B |x|
        R_bn = sum over BatchNorm layers of |mean - running mean| + |variance - running variance|, of the layer's input over the batch
        R_tv = mean_B of the norms of pixel differences to the right, down, and along both diagonals

    with Euclidean norms, not squared (but see Recipe). Angles are of the final uint8 images, not moved. The same seed gives the same images on
    the same machine; no global random state is used. On a GPU the backbone runs in bfloat16 where that exists.

    backbone   lies on `device`, maps [B, 3, input_px, input_px] in (u8 - 127.5) / 127.5 to [B, D]. Runs in evaluation mode; its parameters,
               gradients, flags, modes and hooks are afterwards what they were, also after an error. Without BatchNorm R_bn is 0.
    identity   a term other than mean_B (1 - cos(f(x), center)), which has no margin, so that it needs no head: `closed_set`, `open_set`
    init       [B, 3, input_px, input_px] to start from, uint8 or float in the backbone's range; None: drawn from N(0, 1).
    on_step    called with the number of steps done and the loss.

    Raises ValueError: centers that are no finite non-zero [B, D], steps below 0, a wrong `init`, or a loss that is not finite.
    Source: ArcFace TPAMI section 3.3 and algorithm 1; norms, variance and jitter as in DeepInversion, Yin et al., CVPR 2020. BatchNorm1d
    layers count too, the last layer of iresnet among them.
    """
    centers = _checked_centers(target_centers_BD).to(device)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    generator = torch.Generator().manual_seed(seed)
    pixels = _start(init, len(centers), input_px, generator).to(device)
    sides = _sides(recipe, input_px, steps)
    losses: list[Tensor] = []
    kind = torch.device(device).type
    with torch.inference_mode(False), torch.enable_grad(), _frozen(backbone), _batchnorm_gaps(backbone) as gaps:
        pixels = pixels.clone().requires_grad_()
        centers = centers.clone()
        optimizer = torch.optim.Adam([pixels], lr=recipe.learning_rate)
        for step in range(steps):
            if pixels.shape[-1] != sides[step]:
                pixels = _scaled(pixels.detach(), sides[step]).requires_grad_()
                optimizer = torch.optim.Adam([pixels], lr=recipe.learning_rate)
            if recipe.is_annealed:
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            gaps.clear()
            with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and torch.cuda.is_bf16_supported()):
                whole = _scaled(pixels, input_px)
                features = backbone(_jittered(whole, generator) if recipe.is_moved else whole).float()
            wanted = 1 - rowwise_cosine(features, centers).mean() if identity is None else identity(features)
            size = pixels.flatten(1).norm(dim=1).mean()
            priors = recipe.tv_weight * _total_variation(pixels) + recipe.l2_weight * size
            loss = wanted + recipe.bn_weight * _batchnorm_term(gaps, wanted, recipe.is_squared) + priors
            (pixels.grad,) = torch.autograd.grad(loss, pixels)
            optimizer.step()
            if recipe.is_bounded:
                with torch.no_grad():
                    pixels.clamp_(-1.0, 1.0)
            losses.append(loss.detach())
            if on_step is not None:
                on_step(step + 1, float(losses[-1]))
        images = (_scaled(pixels.detach(), input_px) * _HALF_RANGE + _HALF_RANGE).round().clamp(0, 255).to(torch.uint8)
        gaps.clear()
        angles = angle_deg(rowwise_cosine(backbone(_to_input(images)).float().detach(), centers))
        bn_gap = float(_batchnorm_term(gaps, angles, is_squared=False).detach())
    history = torch.stack(losses).float().cpu() if losses else torch.zeros(0)
    if not history.isfinite().all() or not angles.isfinite().all():
        finite = int(history.isfinite().sum())
        raise ValueError(f"the loss is finite in {finite} of {steps} steps only: lower learning_rate, or check the backbone")
    return InversionResult(images.cpu(), angles.float().cpu(), history, bn_gap)


def _checked_centers(centers_BD: Tensor) -> Tensor:
    if centers_BD.ndim != 2 or 0 in centers_BD.shape:
        raise ValueError(f"target centers must be [B, D] with at least one row, got {tuple(centers_BD.shape)}")
    usable = centers_BD.isfinite().all(dim=1) & (centers_BD != 0).any(dim=1)
    if not usable.all():
        rows = (~usable).nonzero()[:, 0].tolist()[:5]
        raise ValueError(f"target centers {rows} are zero or not finite: leave out identities without a center")
    return centers_BD.detach()


def _start(init: Tensor | None, batch: int, input_px: int, generator: torch.Generator) -> Tensor:
    shape = (batch, 3, input_px, input_px)
    if init is None:
        return torch.randn(shape, generator=generator)
    if tuple(init.shape) != shape:
        raise ValueError(f"init must be {shape}, one image per center, got {tuple(init.shape)}")
    start = _to_input(init) if init.dtype == torch.uint8 else init.detach().float()
    if not start.isfinite().all() or start.abs().max() > 1.0:
        raise ValueError("init must be uint8, or float in -1..1 as the backbone takes it: divide by 127.5 after taking 127.5 away")
    return start


def _sides(recipe: Recipe, input_px: int, steps: int) -> list[int]:
    """Side of the picture at each step."""
    coarse = [max(1, input_px // divisor) for divisor, share in recipe.coarse for _ in range(int(share * steps))]
    return coarse[:steps] + [input_px] * (steps - len(coarse))


def _scaled(pixels: Tensor, side: int) -> Tensor:
    return pixels if pixels.shape[-1] == side else functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)


def _to_input(images: Tensor) -> Tensor:
    return (images.float() - _HALF_RANGE) / _HALF_RANGE


def _jittered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    reach = pixels.shape[-1] // _JITTER
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    shifted = pixels.roll((down, right), dims=(-2, -1))
    return shifted.flip(-1) if torch.rand((), generator=generator) < 0.5 else shifted


def _total_variation(pixels: Tensor) -> Tensor:
    differences = (
        pixels[..., :, 1:] - pixels[..., :, :-1],
        pixels[..., 1:, :] - pixels[..., :-1, :],
        pixels[..., 1:, 1:] - pixels[..., :-1, :-1],
        pixels[..., 1:, :-1] - pixels[..., :-1, 1:],
    )
    return torch.stack([difference.flatten(1).norm(dim=1).mean() for difference in differences]).sum()


@contextmanager
def _frozen(backbone: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient for any parameter; every module and parameter gets its own state back."""
    modes = [(module, module.training) for module in backbone.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    try:
        backbone.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _batchnorm_term(gaps: list[tuple[Tensor, Tensor, Tensor]], like: Tensor, is_squared: bool) -> Tensor:
    if not gaps:
        return like.new_zeros(())
    if is_squared:
        spreads = [(variance.clamp_min(1e-12).sqrt() - running.sqrt()) for _, variance, running in gaps]
        return torch.stack([(away**2).sum() + (spread**2).sum() for (away, _, _), spread in zip(gaps, spreads, strict=True)]).sum()
    return torch.stack([away.norm() + (variance - running).norm() for away, variance, running in gaps]).sum()


@contextmanager
def _batchnorm_gaps(backbone: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """A list to which each forward pass appends, per BatchNorm layer, of its input: mean less running mean, variance, running variance."""
    gaps: list[tuple[Tensor, Tensor, Tensor]] = []

    def compare(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        features = given[0].float().transpose(0, 1).flatten(1)
        gaps.append((features.mean(1) - mean, features.var(1, correction=0), variance))

    layers = [m for m in backbone.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.running_mean is not None]
    handles = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(compare))
        yield gaps
    finally:
        for handle in handles:
            handle.remove()
