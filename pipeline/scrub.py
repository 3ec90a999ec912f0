"""Tables, tars and weights without the forgotten: each function reads one file and says what is to stand in its place, or that nothing changes.

What is done depends on nothing but the file and the log, so that it can be repeated: a scrubbed file is left as it is.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import shards, tables
from pipeline.errors import BadShard
from pipeline.forgotten import DETAIL, NAME, STATUS, Forgotten

_LOOKED_AT = (
    *("sample_id", "identity", "source_uri", "content_sha256", "status", "kind", "verdict", "rule_verdict", "other_identity"),
    *(
        "other_angle_deg",
        "clean_identity",
        "near_duplicate_of",
        "copy_of",
        "near_duplicate_set",
        "protected_image",
        "crop_offset",
        *tables.FREE_TEXTS,
    ),
)
_TOMBSTONE: dict[str, Any] = {"identity": NAME, "status": STATUS, "status_detail": DETAIL, "is_gone": False}
_TOMBSTONE |= {"verdict": "drop", "reason": STATUS, "decided_by": "ingest"}


@dataclass(frozen=True)
class Scrubbed:
    """A table that is to stand in place of another."""

    table: pa.Table
    gone: int
    """Rows of the forgotten: removed, or with nothing left in them."""
    crops: int
    """Of these, rows that had a crop in the tar."""
    others: int
    """Rows of others that named the forgotten."""
    hid_uris: bool
    """A source_uri of another row named them, so it stands in its tar's .json too."""


def scrub_table(path: Path, forgotten: Forgotten) -> Scrubbed | None:
    """The table of `path` without the forgotten; None when it holds nothing of them.

    Where every crawl item has a row (items, manifest) theirs stay, with nothing in them but status and a hash; elsewhere they go.
    """
    columns = [name for name in pq.read_schema(path).names if name in _LOOKED_AT]
    looked = pq.read_table(path, columns=columns)
    rows = looked.to_pylist()
    gone_N = _gone(looked, forgotten)
    new: list[dict[str, Any]] = [{} if gone else _told(row, forgotten) for row, gone in zip(rows, gone_N, strict=True)]
    if not any(gone_N) and not any(new):
        return None
    table = pq.read_table(path)
    crops = sum(gone and row.get("crop_offset") is not None for row, gone in zip(rows, gone_N, strict=True))
    for name in sorted({name for row in new for name in row}):
        values = [changed.get(name, row[name]) for row, changed in zip(rows, new, strict=True)]
        table = _with(table, name, pa.array(values, table.schema.field(name).type))
    table = _buried(table, gone_N, forgotten) if "status" in columns else table.filter(pa.array([not gone for gone in gone_N]))
    return Scrubbed(table, sum(gone_N), crops, sum(map(bool, new)), any("source_uri" in row for row in new))


def names_left(twin: Path, forgotten: Forgotten) -> tuple[list[str], list[str]]:
    """(identity, status) of every row of an items table, as they are without the forgotten."""
    looked = pq.read_table(twin, columns=["identity", "sample_id", "content_sha256", "status"])
    rows = zip(looked["identity"].to_pylist(), looked["status"].to_pylist(), _gone(looked, forgotten), strict=True)
    told = [(NAME, STATUS) if gone else (name, status) for name, status, gone in rows]
    return [name for name, _ in told], [status for _, status in told]


def _gone(looked: pa.Table, forgotten: Forgotten) -> list[bool]:
    gone = np.zeros(looked.num_rows, bool)
    for name, kind in (("identity", "identity"), ("sample_id", "sample"), ("content_sha256", "content")):
        if name in looked.column_names:
            gone |= _has(looked[name], kind, forgotten)
    if "status" not in looked.column_names and "clean_identity" in looked.column_names:  # a decision
        gone |= _has(looked["clean_identity"], "identity", forgotten)
    if "other_identity" in looked.column_names and "kind" in looked.column_names:  # a proposal
        is_pair = np.array([kind != "split" for kind in looked["kind"].to_pylist()], bool)
        gone |= _has(looked["other_identity"], "identity", forgotten) & is_pair
    if "status" in looked.column_names:
        gone &= np.array([status != STATUS for status in looked["status"].to_pylist()], bool)
    found: list[bool] = gone.tolist()
    return found


def _has(column: pa.ChunkedArray, kind: str, forgotten: Forgotten) -> NDArray[np.bool_]:
    values = column.to_pylist()
    known = {value: forgotten.has(kind, value) for value in set(values)}
    return np.fromiter((known[value] for value in values), bool, len(values))


def _told(row: dict[str, Any], forgotten: Forgotten) -> dict[str, Any]:
    """The columns of another's row that name the forgotten, with what is to stand there."""
    if row.get("status") == STATUS:
        return {}
    own = row.get("identity") or ""
    new: dict[str, Any] = {name: None for name in tables.FREE_TEXTS if name in row and forgotten.mentions(row[name], own)}
    if row.get("source_uri") and (uri := forgotten.told_uri(row["source_uri"], own)) != row["source_uri"]:
        new["source_uri"] = uri
    if row.get("protected_image") and forgotten.mentions(row["protected_image"]):
        new["protected_image"] = NAME
    for name in ("near_duplicate_of", "copy_of"):
        if forgotten.has("sample", row.get(name)):
            new[name] = None
    if forgotten.has("sample", row.get("near_duplicate_set")):
        new["near_duplicate_set"] = forgotten.mark("near", row["near_duplicate_set"])[:32]
    if forgotten.has("identity", row.get("other_identity")):
        new["other_identity"] = None
        new |= {"other_angle_deg": None} if "other_angle_deg" in row else {}
        new |= {name: "drop" for name in ("verdict", "rule_verdict") if row.get(name) == "relabel"}
    return new


def _buried(table: pa.Table, gone_N: list[bool], forgotten: Forgotten) -> pa.Table:
    mask = pa.array(gone_N)
    uris = table["source_uri"].to_pylist()
    for name in table.column_names:
        if name == "shard":
            continue
        kind = table.schema.field(name).type
        if name == "source_uri":
            there = pa.array([forgotten.uri(uri) if gone else uri for uri, gone in zip(uris, gone_N, strict=True)], kind)
        else:
            there = pc.if_else(mask, pa.scalar(_TOMBSTONE.get(name), kind), table[name])
        table = _with(table, name, there)
    return table


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def rewrite_tar(tar: Path, out: Path, forgotten: Forgotten) -> tuple[dict[str, str], dict[str, int]]:
    """Write `tar` without the forgotten samples to `out`: (its sidecar, sample_id -> offset of its crop).

    Raises BadShard when `tar` is not what its twin says: nothing damaged gets a new proof.
    """
    shards.check_shard(tar, deep=True)
    offsets: dict[str, int] = {}
    with shards.ShardWriter(out) as writer:
        for key, members in _samples(tar):
            if forgotten.has("sample", key):
                continue
            if "json" in members and forgotten.longest:
                members["json"] = _told_json(members["json"], forgotten)
            offsets[key] = writer.add(key, members).get("jpg", -1)
    return writer.sidecar, offsets


def _samples(tar: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, members = "", dict[str, bytes]()
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for info in opened:
                opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                stem, _, extension = info.name.partition(".")
                reader = opened.extractfile(info)
                if stem != key and members:
                    yield key, members
                    members = {}
                key = stem
                members[extension] = reader.read() if reader else b""
    except tarfile.TarError as error:
        raise BadShard(f"{tar} cannot be read: {error}. Remove {tar.parent} and run again: it will be made anew.") from error
    if members:
        yield key, members


def _told_json(content: bytes, forgotten: Forgotten) -> bytes:
    facts = json.loads(content)
    if "source_uri" not in facts:
        return content
    uri = forgotten.told_uri(facts["source_uri"], facts.get("identity", ""))
    return content if uri == facts["source_uri"] else shards.json_bytes(facts | {"source_uri": uri})


def moved_crops(table: pa.Table, offsets: dict[str, int]) -> pa.Table:
    """An items or clean table with the crops' places in a rewritten tar."""
    rows = zip(table["sample_id"].to_pylist(), table["crop_offset"].to_pylist(), strict=True)
    values = [None if offset is None else offsets[key] for key, offset in rows]
    return _with(table, "crop_offset", pa.array(values, pa.int64()))


def means(embeddings: Path, noise: Path, wanted: Callable[[str], bool], forgotten: Forgotten, dim: int) -> dict[str, NDArray[np.float32]]:
    """identity -> unit mean of the embeddings that are left of it, of the kept ones where some are. Zeros when they cancel out.

    Stands in for a center that the forgotten had a part in: from a center of two the forgotten embedding could be had by subtraction.
    """
    sums: dict[tuple[str, bool], NDArray[np.float64]] = {}
    for stem in shards.shard_stems(embeddings):
        looked = pq.read_table(embeddings / f"{stem}.parquet", columns=["identity", "sample_id", "source_uri"])
        gone_N = _gone(looked, forgotten)
        known = {name: wanted(name) for name in set(looked["identity"].to_pylist())}
        rows = [row for row, name in enumerate(looked["identity"].to_pylist()) if known[name] and not gone_N[row]]
        if not rows:
            continue
        judged = noise / f"{stem}.parquet"
        kept = set(pq.read_table(judged, columns=["sample_id"], filters=[("verdict", "=", "keep")])["sample_id"].to_pylist())
        vectors = pq.read_table(embeddings / f"{stem}.parquet", columns=["embedding"])["embedding"].take(rows).to_pylist()
        names, keys = looked["identity"].take(rows).to_pylist(), looked["sample_id"].take(rows).to_pylist()
        for name, key, vector in zip(names, keys, vectors, strict=True):
            which = name, key in kept
            sums[which] = sums.get(which, np.zeros(dim)) + np.asarray(vector)
    found: dict[str, NDArray[np.float32]] = {}
    for name in {name for name, _ in sums}:
        total = sums.get((name, True), sums.get((name, False)))
        assert total is not None  # noqa: S101 - one of the two is there
        found[name] = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return found
