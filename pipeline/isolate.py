"""Who is noise: dominant sub-centers by vote, angles to them, and a verdict for every sample, with all the raw angles.

Two passes over the embeddings (vote, then angles), then one over the angles alone (calibrate and judge). Memory holds the centers and one
part. Identities that the head was not trained on, held out or too small, get their centers from their own embeddings, so all are judged.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram, Calibration, degenerate_head, fit_calibration
from arcface_core.noise.centers import angle_to, cluster_centers, dominant, dominant_centers, nearest_subcenter, random_other, rival, vote
from arcface_core.noise.rules import REASONS, VERDICTS, Evidence, judge, sweep
from pipeline import shards, tables
from pipeline.config import Config, IsolateConfig, as_dict
from pipeline.duck import every, literal
from pipeline.embed import read_embeddings
from pipeline.errors import HeadNotLearned
from pipeline.models import pick_device, save_tensors
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage, write_json
from pipeline.train import read_classes

VERSION = 1
SWEEP_DEG = range(60, 91)
_EVIDENCE = ".evidence"


def isolate(
    raw: Path, train: Path, embeddings: Path, out: Path, config: Config, *, previous: Path | None = None, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`: a noise table per raw shard, and judge.json. `previous` is the noise folder of the round before, which chose what
    this round's head was trained on; untrained identities then take their center from what that round kept.

    A head that has not learned to tell identities apart judges nothing: every verdict is `review`, the receipt's count `head_learned` is
    False, and `require_learned` turns that into an error.
    """
    inputs = {"train": mark_of(train), "embeddings": mark_of(embeddings), "previous": mark_of(previous) if previous else "none"}
    mark = fingerprint("isolate", VERSION, as_dict(config.isolate), **inputs)

    def work(folder: Path) -> Counts:
        return _isolate(raw, train, embeddings, previous, folder, config, progress)

    return run_stage(out, stage="isolate", mark=mark, work=work)


def require_learned(noise: Path) -> None:
    """Raise HeadNotLearned, with what was seen and what to do, when the head of this round told no identities apart."""
    facts = json.loads((noise / "judge.json").read_text("utf-8"))
    if facts["warning"] and not facts["judged_anyway"]:
        raise HeadNotLearned(
            f"{facts['warning']} Nothing was judged: the raw angles stand in {noise}, every verdict is `review`. "
            "Start from trained weights (--init), train longer (train.epochs), or judge all the same (--set isolate.judge_anyway=true)."
        )


@dataclass(frozen=True)
class _Head:
    names: list[str]
    index: dict[str, int]
    size_C: Tensor
    centers_CKD: Tensor
    dominant_C: Tensor
    dominant_CD: Tensor


def _isolate(
    raw: Path, train: Path, embeddings: Path, previous: Path | None, folder: Path, config: Config, progress: Progress | None
) -> Counts:
    device = pick_device(config.device)
    stems = shards.shard_stems(embeddings)
    head = _head(raw, train, embeddings, previous, folder, device)
    evidence = folder / _EVIDENCE
    evidence.mkdir(exist_ok=True)
    for number, stem in enumerate(stems):
        if not (evidence / f"{stem}.parquet").exists():
            _write_evidence(embeddings / f"{stem}.parquet", evidence / f"{stem}.parquet", head, device)
        if progress:
            progress(number + 1, len(stems))
    own, null, kept_at = _histograms(evidence, stems)
    warning = degenerate_head(own, null)
    settings = config.isolate
    calibration = fit_calibration(own, null)
    may_judge = warning is None or settings.judge_anyway
    verdicts: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    for stem in stems:
        counted = _write_verdicts(evidence / f"{stem}.parquet", folder / f"{stem}.parquet", calibration, settings, may_judge, head)
        for name, count in counted.items():
            verdicts[name] += count
    facts: dict[str, Any] = {
        "rule": settings.rule,
        "max_angle_deg": _drawn_cut(calibration, settings),
        "max_noise_probability": settings.max_noise_probability,
        "noise_rate": calibration.noise_rate,
        "noise_rate_low": calibration.noise_rate_low,
        "noise_rate_high": calibration.noise_rate_high,
        "kept_by_max_angle_deg": dict(zip(map(str, SWEEP_DEG), kept_at.tolist(), strict=True)),
        "subcenters": int(head.centers_CKD.shape[1]),
        "warning": warning,
        "judged_anyway": settings.judge_anyway,
        "calibration": calibration.to_dict(),
    }
    write_json(folder / "judge.json", facts)
    save_tensors(folder / "centers.safetensors", {"dominant": head.dominant_CD})
    for file in evidence.iterdir():
        file.unlink()
    evidence.rmdir()
    return {**verdicts, "noise_rate": round(float(calibration.noise_rate), 4), "head_learned": warning is None}


def _head(raw: Path, train: Path, embeddings: Path, previous: Path | None, folder: Path, device: torch.device) -> _Head:
    table = pq.read_table(raw / "identities.parquet", filters=[("samples", ">", 0)])
    names: list[str] = table["identity"].to_pylist()
    index = {name: number for number, name in enumerate(names)}
    size_C = torch.from_numpy(table["samples"].to_numpy().copy())
    trained, learned_CKD = read_classes(train)
    _, subcenters, dim = learned_CKD.shape
    centers_CKD = torch.zeros(len(names), subcenters, dim)
    centers_CKD[torch.tensor([index[name] for name in trained])] = learned_CKD
    for name, vectors_ND in _untrained(set(names) - set(trained), embeddings, previous, folder):
        centers_CKD[index[name]] = cluster_centers(vectors_ND, subcenters)
    centers_CKD = centers_CKD.to(device)
    counts_CK = torch.zeros(len(names), subcenters, dtype=torch.int64)
    for stem in shards.shard_stems(embeddings):
        _, identities, _, vectors = read_embeddings(embeddings / f"{stem}.parquet")
        class_N = _class_index(identities, index, device)
        nearest_N, _ = nearest_subcenter(torch.from_numpy(vectors.copy()).to(device), class_N, centers_CKD)
        counts_CK += vote(nearest_N.cpu(), class_N.cpu(), len(names), subcenters)
    dominant_C = dominant(counts_CK).to(device)
    return _Head(names, index, size_C, centers_CKD, dominant_C, dominant_centers(centers_CKD, dominant_C))


def _class_index(identities: list[str], index: dict[str, int], device: torch.device) -> Tensor:
    return torch.tensor([index[name] for name in identities], dtype=torch.int64, device=device)


def _untrained(names: set[str], embeddings: Path, previous: Path | None, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(identity, its embeddings), one identity at a time; of a round before, only those it kept, where it kept any."""
    if not names:
        return
    wanted = folder / ".untrained.parquet"
    gathered = folder / ".gathered.parquet"
    pq.write_table(pa.table({"identity": sorted(names)}), wanted)
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(folder / ".spill")])
        kept = "true"
        if previous is not None:
            kept = "EXISTS (FROM read_parquet($noise) n WHERE n.source_uri = e.source_uri AND n.verdict = 'keep')"
        given: dict[str, Any] = {"embeddings": every(embeddings, "raw-*.parquet"), "wanted": literal(wanted)}
        given |= {"noise": every(previous, "raw-*.parquet")} if previous else {}
        relation = db.sql(
            f"""SELECT identity, embedding::FLOAT[] AS embedding FROM (
                    SELECT e.identity, e.source_uri, e.embedding, {kept} AS is_kept FROM read_parquet($embeddings) e
                    SEMI JOIN read_parquet($wanted) w ON w.identity = e.identity)
                QUALIFY is_kept OR NOT bool_or(is_kept) OVER (PARTITION BY identity) ORDER BY identity, source_uri""",
            params=given,
        )
        reader = relation.to_arrow_reader(10_000)
        with pq.ParquetWriter(gathered, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    rows = ((row["identity"], row["embedding"]) for batch in pq.ParquetFile(gathered).iter_batches(2000) for row in batch.to_pylist())
    for name, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield name, torch.from_numpy(np.asarray([vector for _, vector in group], np.float32))
    wanted.unlink()
    gathered.unlink()


def _write_evidence(embedded: Path, out: Path, head: _Head, device: torch.device) -> None:
    uris, identities, quality, vectors = read_embeddings(embedded)
    keys = pq.read_table(embedded, columns=["sample_id"])["sample_id"].to_pylist()
    vectors_ND = torch.from_numpy(vectors.copy()).to(device)
    class_N = _class_index(identities, head.index, device)
    nearest_N, nearest_deg_N = nearest_subcenter(vectors_ND, class_N, head.centers_CKD)
    own_deg_N = angle_to(vectors_ND, class_N, head.dominant_CD)
    other_N, other_deg_N = rival(vectors_ND, class_N, head.dominant_CD)
    salt_N = torch.tensor([int(key[:15], 16) for key in keys], dtype=torch.int64, device=device)
    null_deg_N = angle_to(vectors_ND, random_other(class_N, salt_N, head.dominant_CD), head.dominant_CD)
    all_deg_NK = torch.stack([angle_to(vectors_ND, class_N, head.centers_CKD[:, k]) for k in range(head.centers_CKD.shape[1])], dim=1)
    columns = {
        "sample_id": keys,
        "identity": identities,
        "source_uri": uris,
        "nearest_subcenter": nearest_N.cpu().numpy().astype(np.int16),
        "dominant_subcenter": head.dominant_C[class_N].cpu().numpy().astype(np.int16),
        "nearest_angle_deg": nearest_deg_N.cpu().numpy(),
        "angle_deg": own_deg_N.cpu().numpy(),
        "other_identity": [head.names[number] if number >= 0 else None for number in other_N.tolist()],
        "other_angle_deg": other_deg_N.cpu().numpy(),
        "quality": quality,
        "subcenter_angles_deg": all_deg_NK.nan_to_num(nan=90.0).cpu().tolist(),
        "null_angle_deg": null_deg_N.cpu().numpy(),
    }
    arrays = {name: pa.array(values, _type_of(name)) for name, values in columns.items()}
    with atomic(out) as temporary:
        pq.write_table(pa.table(arrays), temporary)


def _type_of(name: str) -> pa.DataType:
    return pa.float32() if name == "null_angle_deg" else tables.NOISE.field(name).type


def _histograms(evidence: Path, stems: list[str]) -> tuple[AngleHistogram, AngleHistogram, Tensor]:
    own, null = AngleHistogram(), AngleHistogram()
    kept_at = torch.zeros(len(SWEEP_DEG), dtype=torch.int64)
    for stem in stems:
        table = pq.read_table(evidence / f"{stem}.parquet", columns=["angle_deg", "null_angle_deg"])
        angle_N = torch.from_numpy(table["angle_deg"].to_numpy().copy())
        own.add(angle_N)
        null.add(torch.from_numpy(table["null_angle_deg"].to_numpy().copy()))
        kept_at += sweep(angle_N, SWEEP_DEG)
    return own, null, kept_at


def _write_verdicts(
    evidence: Path, out: Path, calibration: Calibration, settings: IsolateConfig, may_judge: bool, head: _Head
) -> dict[str, int]:
    table = pq.read_table(evidence)
    numbers = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in ("angle_deg", "nearest_angle_deg", "other_angle_deg")}
    noise_N = calibration.noise_probability(numbers["angle_deg"])
    found = Evidence(
        **numbers,
        is_dominant=torch.from_numpy(table["nearest_subcenter"].to_numpy() == table["dominant_subcenter"].to_numpy()),
        noise_probability=noise_N,
        identity_size=head.size_C[_class_index(table["identity"].to_pylist(), head.index, torch.device("cpu"))],
    )
    judged = judge(
        found,
        rule=settings.rule,
        max_angle_deg=settings.max_angle_deg,
        max_noise_probability=settings.max_noise_probability,
        relabel_angle_deg=settings.relabel_angle_deg,
    )
    verdicts = [VERDICTS[code] for code in judged.verdict_N.tolist()] if may_judge else ["review"] * table.num_rows
    reasons = [REASONS[code] for code in judged.reason_N.tolist()] if may_judge else ["head_not_learned"] * table.num_rows
    columns = {name: table[name] for name in table.column_names if name != "null_angle_deg"}
    columns |= {"noise_probability": pa.array(noise_N.numpy(), pa.float32()), "verdict": pa.array(verdicts), "reason": pa.array(reasons)}
    with atomic(out) as temporary:
        pq.write_table(
            pa.Table.from_arrays([columns[name] for name in tables.NOISE.names], schema=tables.NOISE), temporary, compression="zstd"
        )
    return {name: verdicts.count(name) for name in VERDICTS}


def _drawn_cut(calibration: Calibration, settings: IsolateConfig) -> float | None:
    """The angle at which the rule cuts, for pictures: `max_angle_deg`, or where the calibrated probability passes its limit."""
    if settings.rule == "nondominant":
        return None
    if settings.rule != "calibrated":
        return settings.max_angle_deg
    angles = torch.arange(0.0, 180.25, 0.25)
    kept = angles[calibration.noise_probability(angles) <= settings.max_noise_probability]
    return float(kept.max()) if len(kept) else 0.0
