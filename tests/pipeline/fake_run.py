"""A small finished run folder, written from the schemas alone: what report and audit are tested on."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from pipeline import tables
from pipeline.layout import RunLayout
from pipeline.shards import ShardWriter, sample_id, write_twin

SAMPLES_PER_SHARD = 16


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One crawl item and the answer planted for it."""

    identity: str
    angle_deg: float | None = 30.0
    verdict: str = "keep"
    reason: str = "accepted"
    status: str = "ok"
    is_dominant: bool = True
    other_identity: str | None = None
    other_angle_deg: float | None = None
    duplicate_set: str | None = None
    license: str | None = None
    near_duplicate_set: str | None = None
    near_duplicate_of: int | None = None
    """Position of the item that stands for this one."""
    is_gone: bool = False


_PROPOSAL = {"kind": "merge", "identity": "Ada", "other_identity": "Bob", "samples": 3, "other_samples": 4, "share_near": 0.9,
             "other_share_near": 1.0, "center_angle_deg": 21.0}  # fmt: skip


@cache
def crop(seed: int) -> bytes:
    """A 112 x 112 JPEG with a face of two eyes and a mouth, its colours from `seed`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:112, :112]
    pixels = np.empty((112, 112, 3), np.uint8)
    pixels[:] = random.integers(40, 220, 3)
    pixels[((x - 56) / 38) ** 2 + ((y - 58) / 48) ** 2 < 1] = random.integers(120, 250, 3)
    for at in ((38, 52), (74, 52)):
        pixels[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 36] = random.integers(0, 90, 3)
    pixels[(abs(x - 56) < 16) & (abs(y - 84) < 4)] = random.integers(90, 200, 3)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB"))


def write_run(
    root: Path,
    planted: list[Planted],
    *,
    rounds: int = 2,
    evaluated: bool = True,
    cut_deg: float | None = 75.0,
    per_shard: int = SAMPLES_PER_SHARD,
    crops: int | None = None,
) -> Path:
    """`root`, filled with raw shards, noise tables of `rounds` rounds (3 sub-centers, then 1), a manifest and an evaluation.

    `crops`: draw only so many different faces, which is quicker for a large run; the samples of an identity must then be fewer.
    """
    layout = RunLayout(root)
    for folder in (layout.raw, layout.manifest, layout.evaluation, *(layout.round(number).noise for number in range(1, rounds + 1))):
        folder.mkdir(parents=True)
    for first in range(0, len(planted), per_shard):
        _write_shard(layout, f"{first // per_shard:06d}", first, planted[first : first + per_shard], rounds, crops)
    items, samples = (Counter(item.identity for item in planted if item.status == "ok" or every) for every in (True, False))
    counted = [{"identity": name, "items": items[name], "samples": samples[name]} for name in sorted(items)]
    _write(layout.identities, counted, tables.IDENTITIES)
    for number in range(1, rounds + 1):
        facts = {"rule": "angle", "max_angle_deg": cut_deg, "noise_rate": 0.123, "noise_rate_low": 0.101, "noise_rate_high": 0.149}
        (layout.round(number).noise / "judge.json").write_text(json.dumps(facts | {"max_noise_probability": 0.5, "warning": None}), "utf-8")
        _write(layout.round(number).noise / "proposals.parquet", [_PROPOSAL], tables.PROPOSALS)
        layout.round(number).train.mkdir()
        steps = [{"step": step, "epoch": 0, "loss": 9.0 / step, "learning_rate": 0.1, "grad_norm": 1.0} for step in (1, 2, 3)]
        _write(layout.round(number).train / "metrics.parquet", steps, tables.METRICS_OF_TRAINING)
    layout.protected.mkdir()
    match = {"kind": "image", "identity": "Ada", "sample_id": "x", "source_uri": "Ada/0000.jpg", "protected_set": "lfw",
             "protected_image": "image 3", "angle_deg": 2.0}  # fmt: skip
    _write(layout.protected / "contamination.parquet", [match], tables.CONTAMINATION)
    if evaluated:
        _write(layout.evaluation / "metrics.parquet", _metrics(), tables.METRICS)
    return root


def key_of(planted: list[Planted], position: int) -> str:
    """The sample_id of the item at `position`."""
    return sample_id(planted[position].identity, sha256(crop(position)).hexdigest())


def _metrics() -> list[dict[str, Any]]:
    values = {
        ("round-1", "accuracy"): 0.91,
        ("round-2", "accuracy"): 0.95,
        ("round-1", "tar@far=1e-05"): None,
        ("round-2", "tar@far=1e-05"): None,
    }
    return [
        {"backbone": backbone, "dataset": "held-out", "metric": metric, "value": value, "low": value and value - 0.01,
         "high": value and value + 0.01, "pairs": 6000, "genuine": 3000, "impostor": 3000, "protocol": "verification/1"}
        for (backbone, metric), value in values.items()
    ]  # fmt: skip


def _write_shard(layout: RunLayout, number: str, first: int, planted: list[Planted], rounds: int, crops: int | None) -> None:
    stem = f"raw-{number}"
    items, judged, manifest = [], [], []
    with ShardWriter(layout.raw / f"{stem}.tar") as shard:
        for position, item in enumerate(planted, first):
            content = crop(position % crops if crops else position)
            key = sample_id(item.identity, sha256(content).hexdigest())
            offset = shard.add(key, {"jpg": content, "json": b"{}"})["jpg"] if item.status == "ok" else None
            base = {
                "sample_id": key,
                "identity": item.identity,
                "source_uri": f"{item.identity}/{position:04d}.jpg",
                "shard": stem,
                "content_sha256": f"{position:064x}",
                "width_px": 112,
                "height_px": 112,
                "status": item.status,
                "status_detail": None if item.status == "ok" else "planted",
                "is_gone": item.is_gone,
                "duplicate_set": item.duplicate_set,
                "license": item.license,
                "near_duplicate_set": item.near_duplicate_set,
            }
            items.append(base | {"crop_offset": offset, "crop_size": len(content) if item.status == "ok" else None})
            evidence = {
                "nearest_subcenter": 0 if item.is_dominant else 2,
                "dominant_subcenter": 0,
                "nearest_angle_deg": item.angle_deg,
                "angle_deg": item.angle_deg,
                "other_identity": item.other_identity,
                "other_angle_deg": item.other_angle_deg,
                "noise_probability": None if item.angle_deg is None else 1 / (1 + math.exp((75 - item.angle_deg) / 4)),
                "quality": 20.0,
                "near_duplicate_of": None
                if item.near_duplicate_of is None
                else sample_id(item.identity, sha256(crop(item.near_duplicate_of)).hexdigest()),
            }
            is_ok = item.status == "ok"
            found = {"verdict": item.verdict, "reason": item.reason}
            manifest.append(
                base
                | (evidence if is_ok else {})
                | (found if is_ok else {"verdict": "drop", "reason": item.status})
                | {"round": rounds if is_ok else None, "decided_by": "rule:angle" if is_ok else "ingest"}
                | {"clean_identity": item.identity if is_ok and item.verdict == "keep" else None}
            )
            if is_ok:
                judged.append(base | evidence | found | {"subcenter_angles_deg": [item.angle_deg]})
    write_twin(layout.raw / f"{stem}.parquet", _table(items, tables.ITEMS), shard.sidecar)
    _write(layout.manifest / f"part-{number}.parquet", manifest, tables.MANIFEST)
    for round_number in range(1, rounds + 1):
        nearest = {} if round_number == 1 else {"nearest_subcenter": 0}
        _write(layout.round(round_number).noise / f"{stem}.parquet", [row | nearest for row in judged], tables.NOISE)


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(_table(rows, schema), path)
