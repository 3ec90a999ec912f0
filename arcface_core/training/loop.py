"""One training loop, a generator of step metrics: whoever drives it decides when to stop, save or draw.

The state after step n depends on the state after step n - 1 and its batch alone, so a resumed training gives the same losses. Over several processes
(torch.distributed) each takes an equal share of every global batch and of the head's identities: the gradient is that of the whole batch, and so are the statistics
of BatchNorm, unless `sync_batchnorm` is off. Losses then differ from those of one process by rounding only.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from arcface_core.training.augmentation import augmented, mirrored, to_input
from arcface_core.training.batchnorm import share_statistics
from arcface_core.training.ranks import mean_over_ranks, rank_and_ranks
from arcface_core.training.recompute import recompute_blocks
from arcface_core.training.state import Diverged, TrainState, update_average

__all__ = ["LoopOptions", "StepMetrics", "training_steps"]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the steps are taken."""

    seed: int
    grad_clip_norm: float
    """Largest L2 norm of the backbone's gradient; the head's is not clipped."""
    precision: torch.dtype | None = None
    """Autocast of the backbone: bfloat16, or float16 with a loss scale; None is float32. The head works in float32 or wider."""
    accumulation: int = 1
    """A step's batch in so many parts, one after the other, each with BatchNorm statistics of its own."""
    recompute: bool = False
    """Activation checkpointing of the backbone's blocks."""
    compile: bool = False
    """torch.compile; not together with `recompute`, which it cannot trace."""
    average_decay: float | None = None
    """Of the moving average of the backbone's weights, where the state has one."""
    sync_batchnorm: bool = True
    augmentations: tuple[str, ...] = ()
    """Names of AUGMENTATIONS, beside mirroring."""
    augmentation_probability: float = 0.2


@dataclass(frozen=True)
class StepMetrics:
    """One step, of the global batch. `step` counts from 1; `loss` in nats; `grad_norm`: L2 norm of the backbone's gradient before clipping."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples: int
    seconds: float
    """From the moment that the step was asked for."""
    waited_s: float
    """Of these, how long the batch was waited for."""
    dominant_share: float
    """Share of the samples nearest to their identity's dominant sub-center, 0..1; NaN for K = 1, and before an identity is seen again."""


def training_steps(
    state: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    learning_rate: Callable[[int], float],
    device: torch.device,
    options: LoopOptions,
) -> Iterator[StepMetrics]:
    """Trains `state` in place, one step per batch (uint8 [B, 3, H, W], int64 class indices [B]: this process's share of the global batch).

    Each image is mirrored with probability 1/2. All chance, dropout too, is drawn from (seed, step), so torch's global generator is seeded at every step.
    `learning_rate` is asked for steps counted from 0. Raises ValueError for a batch too small for BatchNorm and for options that exclude each other, and
    Diverged when loss or gradient are not finite: the state is of no use then.
    """
    rank, ranks = rank_and_ranks()
    if state.head.ranks != ranks:
        raise ValueError(f"The head is spread over {state.head.ranks} processes, and there are {ranks}. Make it with their process group.")
    if options.compile and options.recompute:
        raise ValueError("Compiling and recomputing exclude each other. Leave one out.")
    backbone = _prepared(state.backbone, device, options)
    state.backbone.train()
    state.head.train()
    parameters = [parameter for parameter in state.backbone.parameters() if parameter.requires_grad]
    started = time.perf_counter()
    for images_BCHW, class_index_B in batches:
        waited_s = time.perf_counter() - started
        if len(images_BCHW) * (ranks if options.sync_batchnorm else 1) < 2 * options.accumulation:
            raise ValueError("A training batch of one sample cannot be normalised. Use a batch size of 2 or more a process and part.")
        torch.manual_seed((options.seed * 1_000_003 + state.step * ranks + rank) % 2**63)
        rate = learning_rate(state.step)
        for group in (*state.optimizer.param_groups, *state.head_optimizer.param_groups):
            group["lr"] = rate
        inputs = to_input(images_BCHW, device)
        inputs = augmented(inputs, options.augmentations, probability=options.augmentation_probability, seed=options.seed, step=state.step)
        inputs = mirrored(inputs, options.seed, state.step).contiguous(memory_format=torch.channels_last)
        state.optimizer.zero_grad(set_to_none=True)
        state.head_optimizer.zero_grad(set_to_none=True)
        index_B = class_index_B.to(device, non_blocking=True)
        loss, features_BD = _backward(state, backbone, inputs, index_B, options)
        norm = _update(state, parameters, options)
        share = state.votes.share(features_BD, index_B, state.head) if state.votes else norm.new_tensor(math.nan)
        seen = torch.stack([loss, norm.detach(), share]).tolist()
        _check(seen[0], seen[1], state.step + 1, options)
        state.step += 1
        if options.average_decay is not None:
            update_average(state, options.average_decay)
        seconds = time.perf_counter() - started
        yield StepMetrics(state.step, seen[0], rate, seen[1], len(images_BCHW) * ranks, seconds, waited_s, seen[2])
        started = time.perf_counter()


def _prepared(backbone: nn.Module, device: torch.device, options: LoopOptions) -> nn.Module:
    """What is called in the backbone's place. It shares the backbone's parameters."""
    ranks = rank_and_ranks()[1]
    if ranks > 1 and options.sync_batchnorm:
        share_statistics(backbone, device)
    if options.recompute:
        recompute_blocks(backbone)
    prepared: nn.Module = backbone
    if options.compile:
        prepared = torch.compile(prepared)  # type: ignore[assignment]
    if ranks > 1:
        where = None if device.type == "cpu" else [device]
        prepared = DistributedDataParallel(prepared, device_ids=where, broadcast_buffers=False, gradient_as_bucket_view=True)
    return prepared


def _backward(state: TrainState, backbone: nn.Module, inputs: Tensor, class_index_B: Tensor, options: LoopOptions) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss over the samples of all processes; the loss, and the features of this process's samples."""
    scale = state.loss_scale.value if options.precision is torch.float16 else 1.0
    parts = list(zip(inputs.chunk(options.accumulation), class_index_B.chunk(options.accumulation), strict=True))
    losses, features = [], []
    for number, (images, index) in enumerate(parts):
        with contextlib.ExitStack() as stack:
            if isinstance(backbone, DistributedDataParallel) and number < len(parts) - 1:
                stack.enter_context(backbone.no_sync())
            with torch.autocast(inputs.device.type, dtype=options.precision, enabled=options.precision is not None):
                features_BD = backbone(images)
                loss = state.head(features_BD.float(), index) * (len(images) / len(inputs))
            (loss * scale).backward()
        losses.append(loss.detach())
        features.append(features_BD.detach())
    return torch.stack(losses).sum(), torch.cat(features)


def _update(state: TrainState, parameters: list[nn.Parameter], options: LoopOptions) -> Tensor:
    """Takes the step, but in float16 when a gradient has overflowed; the norm of the backbone's gradient."""
    if options.precision is not torch.float16:
        norm = nn.utils.clip_grad_norm_(parameters, options.grad_clip_norm)
        state.optimizer.step()
        state.head_optimizer.step()
        return norm
    gradients = [parameter.grad for parameter in state.head.parameters() if parameter.grad is not None]
    of_head = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    of_backbone = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_([*of_backbone, *of_head], 1 / state.loss_scale.value)
    norm = nn.utils.clip_grad_norm_(parameters, options.grad_clip_norm)
    overflowed = not math.isfinite(float(mean_over_ranks(norm + nn.utils.get_total_norm(of_head))))
    if not overflowed:
        state.optimizer.step()
        state.head_optimizer.step()
    state.loss_scale.update(overflowed=overflowed)
    return norm


def _check(loss: float, grad_norm: float, step: int, options: LoopOptions) -> None:
    for name, value in (("loss", loss), ("gradient", grad_norm)):
        if not math.isfinite(value) and (name == "loss" or options.precision is not torch.float16):
            raise Diverged(f"The {name} is {value} at step {step}.")
