"""What one process of a training does: from the selection to weights, by way of checkpoints. Alone, or one of several (pipeline/ranks.py)."""

import dataclasses
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from torch import distributed as dist

from arcface_core.angles import cos_of_deg
from arcface_core.backbones import build_backbone, let_norms_move
from arcface_core.heads import SubCenterHead
from arcface_core.margins import MARGINS, Margin
from arcface_core.quality import QUALITY_MARGINS, MagFace, QualityMargin
from arcface_core.schedules import poly, step_decay
from arcface_core.training import (
    Diverged,
    LoopOptions,
    StepMetrics,
    TrainState,
    check_finite,
    load_state_tensors,
    new_state,
    state_tensors,
    training_steps,
)
from pipeline import tables
from pipeline.config import Config, TrainConfig
from pipeline.errors import BadConfig, TrainingFailed
from pipeline.fanout import worker_count
from pipeline.loading import CropStream
from pipeline.models import fit as put_into
from pipeline.models import load_tensors, place, save_tensors
from pipeline.order import SampleOrder
from pipeline.receipts import Progress, atomic, write_json

WORK = ".work"
"""Folder, below that of a training, of what is removed when it is finished."""
_MOST_LOADERS = 8


@dataclass(frozen=True)
class Job:
    """A training to be done: `folder` has classes.parquet and, below `.work`, the selection; weights and metrics go into it."""

    raw: Path
    folder: Path
    config: Config
    subcenters: int

    @property
    def selection(self) -> Path:
        """Per raw shard the samples trained on."""
        return self.folder / WORK / "selection"

    @property
    def checkpoint(self) -> Path:
        """The whole state, and the step it was saved at."""
        return self.folder / WORK / "checkpoint.safetensors"


def fit(job: Job, device: torch.device, *, rank: int = 0, ranks: int = 1, progress: Progress | None = None) -> None:
    """Trains, from the last checkpoint on where there is one; process 0 writes. Raises BadCheckpoint, BadConfig and TrainingFailed."""
    settings = job.config.train
    classes = pq.read_table(job.folder / "classes.parquet", columns=["samples"])
    order = SampleOrder(
        job.selection,
        batch_size=settings.batch_size,
        seed=job.config.seed,
        shuffle_buffer=settings.shuffle_buffer,
        samples_C=classes["samples"].to_numpy() if settings.sampling == "balanced" else None,
    )
    if order.batch_size % ranks:
        raise BadConfig(
            f"A batch of {order.batch_size} samples cannot be shared by {ranks} processes. Set train.processes or train.batch_size accordingly."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, by torchrun
    stream = CropStream(order, job.raw, input_px=settings.input_px, cache_bytes=settings.cache_bytes // here, rank=rank, ranks=ranks)
    state = _state(job, classes.num_rows, device)
    log = _resume(job, state)
    steps = training_steps(
        state,
        stream.batches(settings.epochs, done=state.step, workers=_loaders(job.config, device, here), pin=device.type == "cuda"),
        learning_rate=_schedule(settings, order.steps_per_epoch),
        device=device,
        options=_options(job.config, device),
    )
    board = _board(job, state.step) if rank == 0 and settings.tensorboard else None
    try:
        for metrics in steps:
            log.add(metrics, (metrics.step - 1) // order.steps_per_epoch)
            if board:
                log.show(board)
            if metrics.step % settings.checkpoint_steps == 0 or metrics.step % order.steps_per_epoch == 0:
                _save(job, state, log, rank)
            if progress:
                progress(metrics.step, settings.epochs * order.steps_per_epoch)
    except Diverged as error:
        raise TrainingFailed(f"{error} {_last_good(job)}") from error
    if board:
        board.close()
    centers = state.head.whole(state.head.unit_centers())
    if centers is not None:
        _finish(job, state, centers)


def _state(job: Job, classes: int, device: torch.device) -> TrainState:
    settings = job.config.train
    torch.manual_seed(job.config.seed)
    backbone = build_backbone(settings.backbone, embedding_dim=settings.embedding_dim, input_px=settings.input_px)
    if settings.init is not None:
        path = Path(settings.init)
        tensors = load_tensors(path)
        own = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
        put_into(backbone, own or tensors, path)  # a checkpoint of ours, or weights
    margin = _margin(settings)
    if isinstance(margin, MagFace):
        let_norms_move(backbone)
    head = SubCenterHead(
        classes,
        settings.embedding_dim,
        num_subcenters=job.subcenters,
        margin=margin,
        scale=settings.scale,
        sample_rate=settings.sample_rate,
        max_negative_cos=None if settings.filter_angle_deg is None else cos_of_deg(settings.filter_angle_deg),
        process_group=dist.group.WORLD if dist.is_initialized() else None,
        seed=job.config.seed,
    )
    return new_state(
        place(backbone, device),
        head.to(device),
        optimizer=settings.optimizer,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        average=settings.average_decay is not None,
    )


def _margin(settings: TrainConfig) -> Margin | QualityMargin:
    if settings.margin in QUALITY_MARGINS:
        make = QUALITY_MARGINS[settings.margin]
        return make(margin_rad=settings.margin_rad, scale=settings.scale, embedding_dim=settings.embedding_dim)
    margin = MARGINS[settings.margin]
    return dataclasses.replace(margin, m2_rad=settings.margin_rad) if settings.margin == "arcface" else margin


def _schedule(settings: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    total = settings.epochs * steps_per_epoch
    warmup = min(int(settings.warmup_epochs * steps_per_epoch), total // 2)
    if settings.schedule == "poly":
        return lambda step: poly(step, total_steps=total, warmup_steps=warmup, base_lr=settings.learning_rate)
    milestones = tuple(epoch * steps_per_epoch for epoch in settings.milestones)
    return lambda step: step_decay(step, milestones=milestones, warmup_steps=warmup, base_lr=settings.learning_rate)


def _options(config: Config, device: torch.device) -> LoopOptions:
    settings = config.train
    return LoopOptions(
        seed=config.seed,
        grad_clip_norm=settings.grad_clip_norm,
        precision=precision_of(settings.precision, device),
        accumulation=settings.accumulation,
        recompute=settings.recompute,
        compile=settings.compile,
        average_decay=settings.average_decay,
        sync_batchnorm=settings.sync_batchnorm,
        augmentations=settings.augment,
        augmentation_probability=settings.augment_probability,
    )


def precision_of(name: str, device: torch.device) -> torch.dtype | None:
    """The type of the backbone's autocast; None is float32."""
    if name == "auto" and device.type == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)


def _loaders(config: Config, device: torch.device, here: int) -> int:
    """Processes that decode for this one of `here` on the machine: none where it trains on the processor itself."""
    return 0 if device.type == "cpu" else max(1, min(worker_count(config.workers) // here, _MOST_LOADERS))


class _Log:
    """The metrics of all steps, as columns."""

    def __init__(self, table: pa.Table | None = None) -> None:
        names = tables.METRICS_OF_TRAINING.names
        self._columns = {name: array("d", table[name].to_numpy() if table else ()) for name in names}

    def add(self, metrics: StepMetrics, epoch: int) -> None:
        row: dict[str, float] = {
            "step": metrics.step,
            "epoch": epoch,
            "loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "grad_norm": metrics.grad_norm,
            "images_per_s": metrics.samples / metrics.seconds,
            "wait_share": metrics.waited_s / metrics.seconds,
            "dominant_share": metrics.dominant_share,
        }
        for name, column in self._columns.items():
            column.append(row[name])

    def show(self, board: Any) -> None:
        """The last step, to TensorBoard."""
        step = int(self._columns["step"][-1])
        for name in self._columns.keys() - {"step", "epoch"}:
            board.add_scalar(f"train/{name}", self._columns[name][-1], step)

    def table(self) -> pa.Table:
        return pa.table({name: np.array(column) for name, column in self._columns.items()}).cast(tables.METRICS_OF_TRAINING)


def _save(job: Job, state: TrainState, log: _Log, rank: int) -> None:
    """A checkpoint. Raises Diverged, and keeps the one before, when a weight is not finite."""
    check_finite(state)
    tensors = state_tensors(state)  # of all processes
    if rank == 0:
        with atomic(job.folder / "metrics.parquet") as temporary:
            pq.write_table(log.table(), temporary)
        save_tensors(job.checkpoint, tensors, {"step": str(state.step)})


def _resume(job: Job, state: TrainState) -> _Log:
    if not job.checkpoint.exists():
        return _Log()
    load_state_tensors(state, load_tensors(job.checkpoint), _step_of(job.checkpoint))
    return _Log(pq.read_table(job.folder / "metrics.parquet", filters=[("step", "<=", state.step)]))


def _step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(file.metadata()["step"])


def _last_good(job: Job) -> str:
    if not job.checkpoint.exists():
        return "There is no checkpoint yet. Lower train.learning_rate, or check that the weights of train.init fit."
    return (
        f"The last good checkpoint is that of step {_step_of(job.checkpoint)}, {job.checkpoint}. The same command goes on from it. "
        "Should it end here again: copy it elsewhere, lower train.learning_rate, and start from the copy with --init."
    )


def _board(job: Job, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BadConfig("train.tensorboard needs the package tensorboard: pip install 'arcface-purify[tensorboard]'.") from error
    return SummaryWriter(str(job.folder / "tensorboard"), purge_step=step + 1)


def _finish(job: Job, state: TrainState, centers_CKD: Tensor) -> None:
    """Writes the results; model.json last: where it stands, the training is finished."""
    weights: dict[str, Tensor] = state.backbone.state_dict() | (state.average or {})
    save_tensors(job.folder / "backbone.safetensors", weights)
    save_tensors(job.folder / "head.safetensors", {"centers": centers_CKD})
    settings = job.config.train
    model = {
        "backbone": settings.backbone,
        "embedding_dim": settings.embedding_dim,
        "input_px": settings.input_px,
        "subcenters": job.subcenters,
    }
    write_json(job.folder / "model.json", model)
