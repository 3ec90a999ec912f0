"""Sub-center ArcFace on the identities as crawled (round 1, K sub-centers), or on what the round before kept (K = 1)."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from arcface_core.backbones import build_backbone
from arcface_core.heads import SubCenterHead
from arcface_core.margins import MARGINS, Margin
from arcface_core.schedules import poly, step_decay
from arcface_core.training import TrainState, load_state_tensors, new_state, state_tensors, training_steps
from pipeline import shards, tables
from pipeline.config import Config, TrainConfig, as_dict
from pipeline.decisions import digest
from pipeline.duck import fetch, literal
from pipeline.errors import BadCrawl
from pipeline.fanout import worker_count
from pipeline.loading import CropStream
from pipeline.models import load_into, load_tensors, pick_device, place, save_tensors
from pipeline.order import SampleOrder
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage, write_json

VERSION = 1
_CHANGES_NO_RESULT = {"cache_bytes", "checkpoint_steps"}
_MOST_LOADERS = 8


def train(
    raw: Path, out: Path, config: Config, *, noise: Path | None = None, decisions: pa.Table | None = None, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`: backbone, head centers, classes and metrics. With `noise`, only samples of verdict `keep` are trained on, with K = 1;
    `decisions` (those that stand) win over its verdicts, and a relabelled sample is trained under its new identity.

    Raises BadCrawl when fewer than two identities have `train.min_samples` samples; BadCheckpoint when `train.init` does not fit.
    """
    settings = {name: value for name, value in as_dict(config.train).items() if name not in _CHANGES_NO_RESULT}
    inputs = {"raw": mark_of(raw), "noise": mark_of(noise) if noise else "none", "decisions": digest(decisions)}
    if config.train.init is not None:
        load_tensors(Path(config.train.init))
        inputs["init"] = shards.file_sha256(Path(config.train.init))
    mark = fingerprint("train", VERSION, {**settings, "seed": config.seed, "holdout": config.evaluate.holdout}, **inputs)
    subcenters = config.train.subcenters if noise is None else 1
    return run_stage(out, stage="train", mark=mark, work=lambda folder: _train(raw, noise, decisions, folder, config, subcenters, progress))


def is_held_out(identity: str, *, share: float, seed: int) -> bool:
    """True for about `share` of all identities, the same ones in every round and every crawl, whatever else the crawl holds."""
    digest = hashlib.blake2b(identity.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def held_out(raw: Path, config: Config) -> pa.Table:
    """The identities that no round trains on, as a table of one column, `identity`."""
    file = pq.ParquetFile(raw / "identities.parquet")
    names = (name for batch in file.iter_batches(columns=["identity"]) for name in batch["identity"].to_pylist())
    chosen = [name for name in names if is_held_out(name, share=config.evaluate.holdout, seed=config.seed)]
    return pa.table({"identity": pa.array(chosen, pa.string())})


def _train(
    raw: Path, noise: Path | None, decisions: pa.Table | None, folder: Path, config: Config, subcenters: int, progress: Progress | None
) -> Counts:
    settings = config.train
    selection = folder / ".selection"
    if not (folder / "classes.parquet").exists():
        _select(raw, noise, decisions, folder, selection, config)
    classes = pq.read_table(folder / "classes.parquet")
    if classes.num_rows < 2:
        raise BadCrawl(
            f"{classes.num_rows} identities have {settings.min_samples} or more samples {'that the round before kept' if noise else 'to train on'}, "
            "and a head needs two to tell apart. Give a larger crawl, or lower evaluate.holdout or train.min_samples."
        )
    device = pick_device(config.device)
    order = SampleOrder(
        selection,
        batch_size=settings.batch_size,
        seed=config.seed,
        shuffle_buffer=settings.shuffle_buffer,
        samples_C=classes["samples"].to_numpy() if settings.sampling == "balanced" else None,
    )
    stream = CropStream(order, raw, input_px=settings.input_px, cache_bytes=settings.cache_bytes)
    torch.manual_seed(config.seed)
    backbone = build_backbone(settings.backbone, embedding_dim=settings.embedding_dim, input_px=settings.input_px)
    if settings.init is not None:
        load_into(backbone, Path(settings.init))
    head = SubCenterHead(
        classes.num_rows, settings.embedding_dim, num_subcenters=subcenters, margin=_margin(settings), scale=settings.scale
    )
    place(backbone, device)
    head.to(device)
    state = new_state(backbone, head, momentum=settings.momentum, weight_decay=settings.weight_decay)
    rows = _resume(folder, state)
    loop = training_steps(
        state,
        stream.batches(settings.epochs, done=state.step, workers=_loaders(config, device), pin=device.type == "cuda"),
        learning_rate=_schedule(settings, order.steps_per_epoch),
        seed=config.seed,
        grad_clip_norm=settings.grad_clip_norm,
        device=device,
        amp=settings.amp and device.type == "cuda",
    )
    total = settings.epochs * order.steps_per_epoch
    for metrics in loop:
        epoch = (metrics.step - 1) // order.steps_per_epoch
        rows.append(
            {
                "step": metrics.step,
                "epoch": epoch,
                "loss": metrics.loss,
                "learning_rate": metrics.learning_rate,
                "grad_norm": metrics.grad_norm,
            }
        )
        if metrics.step % settings.checkpoint_steps == 0 or metrics.step % order.steps_per_epoch == 0:
            _checkpoint(folder, state, rows)
        if progress:
            progress(metrics.step, total)
    _finish(folder, state, config, subcenters)
    last = [row["loss"] for row in rows[-order.steps_per_epoch :]]
    return {
        "identities": classes.num_rows,
        "samples": order.samples,
        "subcenters": subcenters,
        "steps": state.step,
        "first_loss": round(rows[0]["loss"], 4),
        "last_loss": round(sum(last) / len(last), 4),
        "device": device.type,
    }


def _select(raw: Path, noise: Path | None, decisions: pa.Table | None, folder: Path, selection: Path, config: Config) -> None:
    """Write what is trained on: classes.parquet, and per raw shard the offsets and class indices of its samples. Every shard is proven whole."""
    selection.mkdir(exist_ok=True)
    usable = """(SELECT sample_id, identity, crop_offset, crop_size FROM read_parquet($raw) WHERE status = 'ok')"""
    if noise:
        usable = """(SELECT i.sample_id, CASE d.verdict WHEN 'relabel' THEN d.clean_identity ELSE i.identity END AS identity, crop_offset, crop_size
                     FROM read_parquet($raw) i JOIN read_parquet($noise) n USING (source_uri) LEFT JOIN decided d ON d.sample_id = i.sample_id
                     WHERE status = 'ok' AND coalesce(d.verdict, n.verdict) IN ('keep', CASE WHEN d.verdict IS NOT NULL THEN 'relabel' END))"""
    with duckdb.connect() as db:
        db.register("held_out", held_out(raw, config))
        db.register("decided", tables.DECISIONS.empty_table() if decisions is None else decisions)
        db.execute("CREATE TABLE counted (identity VARCHAR, samples BIGINT)")
        db.execute("CREATE TABLE placed (class_index INT PRIMARY KEY, samples BIGINT)")
        stems = shards.shard_stems(raw)
        for stem in stems:
            given = {"raw": literal(raw / f"{stem}.parquet")} | ({"noise": literal(noise / f"{stem}.parquet")} if noise else {})
            db.execute(f"INSERT INTO counted SELECT identity, count(*) FROM {usable} GROUP BY ALL", given)
        db.execute(
            """CREATE TABLE classes AS SELECT (row_number() OVER (ORDER BY identity) - 1)::INT AS class_index, identity, samples
               FROM (SELECT identity, sum(samples)::BIGINT AS samples FROM counted GROUP BY identity)
               WHERE samples >= ? AND identity NOT IN (SELECT identity FROM held_out)""",
            [config.train.min_samples],
        )
        for stem in stems:
            shards.check_shard(raw / f"{stem}.tar", deep=True)
            given = {"raw": literal(raw / f"{stem}.parquet")} | ({"noise": literal(noise / f"{stem}.parquet")} if noise else {})
            chosen = fetch(
                db,
                f"""SELECT r.crop_offset, r.crop_size, c.class_index, (coalesce(p.samples, 0)
                           + row_number() OVER (PARTITION BY c.class_index ORDER BY r.crop_offset) - 1)::INT AS class_place
                    FROM {usable} r JOIN classes c ON c.identity = r.identity LEFT JOIN placed p USING (class_index) ORDER BY r.crop_offset""",
                given,
            )
            db.register("chosen", chosen)
            db.execute(
                """INSERT INTO placed SELECT class_index, count(*) AS samples FROM chosen GROUP BY ALL
                   ON CONFLICT DO UPDATE SET samples = placed.samples + excluded.samples"""
            )
            with atomic(selection / f"{stem}.parquet") as temporary:
                pq.write_table(chosen, temporary)
        classes = fetch(db, "FROM classes ORDER BY class_index").cast(tables.CLASSES)
    with atomic(folder / "classes.parquet") as temporary:
        pq.write_table(classes, temporary)


def _margin(settings: TrainConfig) -> Margin:
    margin = MARGINS[settings.margin]
    return dataclasses.replace(margin, m2_rad=settings.margin_rad) if settings.margin == "arcface" else margin


def _schedule(settings: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    total = settings.epochs * steps_per_epoch
    warmup = min(int(settings.warmup_epochs * steps_per_epoch), total // 2)
    if settings.schedule == "poly":
        return lambda step: poly(step, total_steps=total, warmup_steps=warmup, base_lr=settings.learning_rate)
    milestones = tuple(epoch * steps_per_epoch for epoch in settings.milestones)
    return lambda step: step_decay(step, milestones=milestones, warmup_steps=warmup, base_lr=settings.learning_rate)


def _loaders(config: Config, device: torch.device) -> int:
    """Processes that decode for this one: none where it trains on the processor itself."""
    return 0 if device.type == "cpu" else min(worker_count(config.workers), _MOST_LOADERS)


def _checkpoint(folder: Path, state: TrainState, rows: list[dict[str, Any]]) -> None:
    with atomic(folder / "metrics.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.METRICS_OF_TRAINING), temporary)
    save_tensors(folder / "checkpoint.safetensors", state_tensors(state), {"step": str(state.step)})


def _resume(folder: Path, state: TrainState) -> list[dict[str, Any]]:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    load_state_tensors(state, load_tensors(path), step)
    rows: list[dict[str, Any]] = pq.read_table(folder / "metrics.parquet").to_pylist()
    return [row for row in rows if row["step"] <= step]


def _finish(folder: Path, state: TrainState, config: Config, subcenters: int) -> None:
    save_tensors(folder / "backbone.safetensors", state.backbone.state_dict())
    save_tensors(folder / "head.safetensors", {"centers": state.head.unit_centers()})
    settings = config.train
    model = {
        "backbone": settings.backbone,
        "embedding_dim": settings.embedding_dim,
        "input_px": settings.input_px,
        "subcenters": subcenters,
    }
    write_json(folder / "model.json", model)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    for file in (folder / ".selection").iterdir():
        file.unlink()
    (folder / ".selection").rmdir()


def read_classes(train_folder: Path) -> tuple[list[str], Tensor]:
    """Identities in head order, and the head's unit centers [C, K, D]."""
    classes = pq.read_table(train_folder / "classes.parquet")
    names: list[str] = classes["identity"].to_pylist()
    return names, load_tensors(train_folder / "head.safetensors")["centers"]


def model_facts(train_folder: Path) -> dict[str, Any]:
    """model.json of a finished training."""
    facts: dict[str, Any] = json.loads((train_folder / "model.json").read_text("utf-8"))
    return facts
