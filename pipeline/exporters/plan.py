"""Which samples an export holds, in which order, in which part: worked out by DuckDB, which spills to the disk, and written as Parquet.

An identity belongs to `val` when the first 32 bits of its name's SHA-256, as a fraction, lie below the share: it stays there however the crawl
grows. Class indices are dense within a split and follow the order of the folder names, which is how torchvision's ImageFolder counts.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.duck import every, fetch, literal
from pipeline.errors import BadInput
from pipeline.exporters.base import Exporter, Split, Wanted
from pipeline.exporters.names import folder_names
from pipeline.receipts import atomic, write_json

SPLITS = ("train", "val")
RECORD_BYTES = 32
"""Bytes of a record of `recordio` but its picture: two words and the image header."""
_MEMORY = "1GB"
"""For DuckDB; beyond, it sorts on the disk."""


@dataclass(frozen=True)
class Plan:
    """What an export will hold."""

    splits: tuple[Split, ...]
    left_out_identities: int
    """With fewer than `min_images` samples."""
    left_out_samples: int


def make_plan(clean: Path, folder: Path, wanted: Wanted, exporter: Exporter) -> Plan:
    """The plan, whose tables are written into `folder`; read from there when it was made before.

    samples.parquet: split, part, rank, shard, row, class_index, size; by (split, rank). For exports by identity also where a sample stands in
    its shard's run (run_offset, run_row) and in the records (record_at), and by_shard.parquet: the same by (shard, row).
    identities.parquet: split, class_index, identity, folder, samples.
    Raises BadInput: when no sample is left.
    """
    told = folder / "plan.json"
    if told.exists():
        facts = json.loads(told.read_text("utf-8"))
        return Plan(tuple(Split(**one) for one in facts.pop("splits")), **facts)
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(folder / "spill")])
        db.execute("SET memory_limit = ?", [_MEMORY])
        twins = every(clean, "clean-*.parquet")
        found = fetch(
            db, "SELECT identity, count(*) AS samples FROM read_parquet($twins) GROUP BY identity ORDER BY identity", {"twins": twins}
        )
        db.register("named", _named(found, wanted.val))
        _copy(
            db,
            """SELECT split, (row_number() OVER (PARTITION BY split ORDER BY folder) - 1)::INT AS class_index, identity, folder, samples
               FROM named WHERE samples >= $least ORDER BY split, class_index""",
            folder / "identities.parquet",
            {"least": wanted.min_images},
        )
        db.read_parquet(literal(folder / "identities.parquet")).create_view("identities")
        _copy(db, _samples(wanted, exporter), folder / "samples.parquet", {"twins": twins})
        if exporter.by_identity:
            sorted_again = "SELECT * FROM read_parquet($samples) ORDER BY shard, row"
            _copy(db, sorted_again, folder / "by_shard.parquet", {"samples": literal(folder / "samples.parquet")})
        rows = db.execute(
            f"""SELECT s.split, (SELECT count(*) FROM identities i WHERE i.split = s.split), count(*), max(part) + 1, sum(size),
                       sum({exporter.sample_bytes}) FROM read_parquet(?) s GROUP BY s.split ORDER BY s.split""",
            [literal(folder / "samples.parquet")],
        ).fetchall()
    if not rows:
        raise BadInput(
            f"No sample of {clean} is left to export. The largest identity has {_most(found)} samples; --min-images is {wanted.min_images}."
        )
    splits = tuple(Split(str(name), *(int(number) for number in numbers)) for name, *numbers in rows)
    plan = Plan(splits, found.num_rows - sum(one.identities for one in splits), _total(found) - sum(one.samples for one in splits))
    write_json(told, {**asdict(plan), "splits": [asdict(one) for one in splits]})
    return plan


def _named(found: pa.Table, val: float) -> pa.Table:
    identities = found["identity"].to_pylist()
    edge = val * 2**32
    split = [SPLITS[int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < edge] for name in identities]
    return found.append_column("folder", pa.array(folder_names(identities), pa.string())).append_column(
        "split", pa.array(split, pa.string())
    )


def _samples(wanted: Wanted, exporter: Exporter) -> str:
    order = "class_index, shard, row" if exporter.by_identity else "shard, row"
    size = f"({exporter.sample_bytes})"
    before = f"sum({size}) OVER (PARTITION BY split ORDER BY {order} ROWS UNBOUNDED PRECEDING) - {size}"
    part = f"before // {wanted.bytes_per_shard}" if wanted.bytes_per_shard else f"rank // {wanted.samples_per_shard}"
    more = ""
    if exporter.by_identity:  # an identity is never cut, so that its samples are one stretch of every run
        part = f"min({part}) OVER (PARTITION BY split, class_index)"
        run = "OVER (PARTITION BY shard ORDER BY split, class_index, row ROWS UNBOUNDED PRECEDING)"
        record = f"(size + 3) // 4 * 4 + {RECORD_BYTES}"
        more = f""", (sum(size) {run} - size)::BIGINT AS run_offset, row_number() {run} - 1 AS run_row,
            (sum({record}) OVER (PARTITION BY split ORDER BY {order} ROWS UNBOUNDED PRECEDING) - ({record}))::BIGINT AS record_at"""
    return f"""
        WITH rows AS (
            SELECT substr(t.filename, -14, 6)::INT AS shard, t.file_row_number AS row, t.crop_size::BIGINT AS size, i.split, i.class_index
            FROM read_parquet($twins, filename = true, file_row_number = true) t JOIN identities i ON i.identity = t.identity),
        ranked AS (SELECT *, row_number() OVER (PARTITION BY split ORDER BY {order}) - 1 AS rank FROM rows),
        placed AS (SELECT *, ({before}) AS before {more} FROM ranked),
        cut AS (SELECT * EXCLUDE (before), {part} AS stretch FROM placed)
        SELECT * EXCLUDE (stretch), dense_rank() OVER (PARTITION BY split ORDER BY stretch) - 1 AS part FROM cut ORDER BY split, rank"""


def _copy(db: duckdb.DuckDBPyConnection, query: str, path: Path, given: dict[str, object]) -> None:
    with atomic(path) as temporary:
        db.sql(query, params=given).write_parquet(str(temporary), compression="zstd")


def _most(found: pa.Table) -> int:
    return max(found["samples"].to_pylist(), default=0)


def _total(found: pa.Table) -> int:
    return sum(found["samples"].to_pylist())
