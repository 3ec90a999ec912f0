"""Sub-centers without a training: where a model was given, each identity's embeddings are clustered, and the clusters are its sub-centers.

The folder is the counterpart of a training: classes, centers, the model. What follows (votes, consensus, verdicts) does not tell one from the other.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arcface_core.noise.centers import cluster_groups, groups_of_one_size
from pipeline import receipts, tables
from pipeline.buckets import Claims, split
from pipeline.config import Config
from pipeline.decisions import digest
from pipeline.models import pick_device, save_tensors
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage, write_json

VERSION = 1
_STAGE = "centers"


def find_centers(
    raw: Path,
    embedder: Path,
    embeddings: Path,
    out: Path,
    config: Config,
    *,
    noise: Path | None = None,
    decisions: pa.Table | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Receipt of `out`: classes.parquet, head.safetensors with unit centers [C, K, D], and the model of `embedder`, for who looks for the round's.

    K is `train.subcenters`, by spherical K-means within each identity. With `noise`, only samples of verdict `keep` count, with K = 1; `decisions`
    win over its verdicts, and a relabelled sample counts for its new identity. Identities of which nothing counts are not in the classes; isolate
    clusters all that they have. Memory holds the centers and one bucket.
    """
    subcenters = config.train.subcenters if noise is None else 1
    inputs = {"noise": mark_of(noise) if noise else "none", "decisions": digest(decisions)}
    mark = fingerprint(_STAGE, VERSION, {"subcenters": subcenters}, embedder=mark_of(embedder), embeddings=mark_of(embeddings), **inputs)

    def work(folder: Path) -> Counts:
        facts = json.loads((embedder / "model.json").read_text("utf-8"))
        receipts.link(embedder / facts["file"], folder / facts["file"])
        write_json(folder / "model.json", facts | {"subcenters": subcenters})
        claims = _kept(noise, decisions) if noise else None
        counts = _cluster(raw, embeddings, folder, claims, subcenters, pick_device(config.device), progress)
        return counts | {"subcenters": subcenters}

    return run_stage(out, stage=_STAGE, mark=mark, work=work)


def is_given(train: Path) -> bool:
    """True when the model of a round was given and not trained."""
    receipt = receipts.read(train)
    return receipt is not None and receipt.stage == _STAGE


def _kept(noise: Path, decisions: pa.Table | None) -> Claims:
    return partial(_claims, noise, {} if decisions is None else {row["sample_id"]: row for row in decisions.to_pylist()})


def _claims(noise: Path, decided: dict[str, dict[str, Any]], stem: str, uris: list[str], identities: list[str]) -> list[str | None]:
    judged = pq.read_table(noise / f"{stem}.parquet", columns=["source_uri", "sample_id", "verdict"]).to_pylist()
    said = {row["source_uri"]: decided.get(row["sample_id"], row) for row in judged}
    found: list[str | None] = []
    for uri, identity in zip(uris, identities, strict=True):
        verdict = said[uri]["verdict"]
        relabelled = said[uri].get("clean_identity") if verdict == "relabel" else None  # proposed by a rule, it has none
        found.append(identity if verdict == "keep" else relabelled)
    return found


def _cluster(
    raw: Path,
    embeddings: Path,
    folder: Path,
    claims: Claims | None,
    subcenters: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> Counts:
    names: list[str] = pq.read_table(raw / "identities.parquet", filters=[("samples", ">", 0)])["identity"].to_pylist()
    buckets = split(raw, embeddings, pa.chunked_array([names], pa.string()), folder / ".buckets", claims=claims)
    centers_CKD = torch.zeros(len(names), subcenters, buckets.dim)
    size_C = torch.zeros(len(names), dtype=torch.int64)
    for number in range(buckets.count):
        bucket = buckets.read(number)
        class_N, unit_ND = torch.from_numpy(bucket.class_N), torch.from_numpy(bucket.unit_ND).to(device)
        size_C += torch.bincount(class_N, minlength=len(names))
        for identity_G, place_Gn in groups_of_one_size(class_N, buckets.dim):
            centers_CKD[identity_G] = cluster_groups(unit_ND[place_Gn.to(device)], subcenters).cpu()
        if progress:
            progress(number + 1, buckets.count)
    shutil.rmtree(folder / ".buckets")
    there_C = (centers_CKD != 0).any(dim=2).any(dim=1)
    known = there_C.nonzero()[:, 0].tolist()
    rows = [{"class_index": row, "identity": names[number], "samples": int(size_C[number])} for row, number in enumerate(known)]
    with atomic(folder / "classes.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.CLASSES), temporary)
    save_tensors(folder / "head.safetensors", {"centers": centers_CKD[there_C]})
    return {"identities": len(known), "samples": int(size_C[there_C].sum())}
