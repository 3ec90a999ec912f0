"""The plan of a crawl of single files: a Parquet file in slicing order. Streamed out, and sorted by DuckDB, which spills to disk."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.duck import literal, spilling
from pipeline.places import Entry
from pipeline.sources.base import UNITS, Growth, Listing, digest_of, order_of, unit_of, uri_text

_LISTED = pa.schema(
    [
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("order", pa.uint64()),
        ("extra", pa.string()),
        ("unit", pa.binary(16)),
        ("mark", pa.binary(16)),
    ]
)
_BATCH = 10_000
_FILES = "files.parquet"


@dataclass(frozen=True)
class PlannedFile:
    """One file to read."""

    path: bytes
    size: int
    extra: str | None


def write(plan: Path, entries: Iterable[tuple[Entry, str | None]], config: IngestConfig) -> Listing:
    """The listing of `entries`, each with a text that goes along (`extra`), which is a part of the digest."""
    items = total = digest = 0
    unsorted = plan / "unsorted.parquet"
    entries = iter(entries)
    with pq.ParquetWriter(unsorted, _LISTED) as writer:
        while batch := list(islice(entries, _BATCH)):
            paths = [os.fsencode(entry.path) for entry, _ in batch]
            sizes = [entry.size for entry, _ in batch]
            marks = [digest_of(entry.path, entry.size, entry.mark if extra is None else f"{entry.mark}\0{extra}") for entry, extra in batch]
            items, total, digest = items + len(batch), total + sum(sizes), (digest + sum(marks)) % 2**128
            columns: dict[str, list[Any]] = {
                "path": paths,
                "size": sizes,
                "order": [order_of(path) for path in paths],
                "extra": [extra for _, extra in batch],
                "unit": [unit_of(uri_text(entry.path)) for entry, _ in batch],
                "mark": [mark.to_bytes(16, "big") for mark in marks],
            }
            writer.write_table(pa.table(columns, schema=_LISTED))
    with spilling(plan / "spill") as db:
        db.read_parquet(literal(unsorted)).order('"order", path').write_parquet(str(plan / _FILES), row_group_size=config.samples_per_shard)
    unsorted.unlink()
    return Listing(items, total, -(-items // config.samples_per_shard), f"{digest:032x}")


def write_units(plan: Path, out: Path, config: IngestConfig) -> None:
    """Every file of the plan as UNITS, with its slice."""
    row = 0
    with pq.ParquetFile(plan / _FILES) as file, pq.ParquetWriter(out, UNITS) as writer:
        for batch in file.iter_batches(columns=["unit", "mark"]):
            slices = pa.array(np.arange(row, row + batch.num_rows) // config.samples_per_shard, pa.int64())
            columns = [batch.column(name).cast(pa.binary(16)) for name in ("unit", "mark")]
            writer.write_batch(pa.RecordBatch.from_arrays([*columns, slices], schema=UNITS))
            row += batch.num_rows


def narrow(plan: Path, units: Path, config: IngestConfig) -> int:
    """Leave only the files of `units` in the plan, in the same order; the number of slices then."""
    narrowed = plan / "narrowed.parquet"
    with spilling(plan / "spill") as db:
        db.read_parquet(literal(plan / _FILES)).create_view("files")
        db.read_parquet(literal(units)).create_view("wanted")
        kept = db.sql("""SELECT * FROM files WHERE unit IN (SELECT unit FROM wanted) ORDER BY "order", path""")
        kept.write_parquet(str(narrowed), row_group_size=config.samples_per_shard)
    narrowed.replace(plan / _FILES)
    return int(-(-pq.read_metadata(plan / _FILES).num_rows // config.samples_per_shard))


def read(plan: Path, number: int, config: IngestConfig) -> list[PlannedFile]:
    """Rows `number * samples_per_shard` and on; no other row groups are read."""
    start, stop = number * config.samples_per_shard, (number + 1) * config.samples_per_shard
    with pq.ParquetFile(plan / _FILES) as file:
        groups: list[int] = []
        row = first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row + count > start and row < stop:
                first = first if groups else row
                groups.append(group)
            row += count
        rows = file.read_row_groups(groups, columns=["path", "size", "extra"]).slice(start - first, stop - start).to_pylist()
    return [PlannedFile(row["path"], row["size"], row["extra"]) for row in rows]


def paths(plan: Path) -> Iterator[tuple[bytes, str | None]]:
    """(path, extra) of every file, in slicing order."""
    with pq.ParquetFile(plan / _FILES) as file:
        for batch in file.iter_batches(columns=["path", "extra"]):
            yield from zip(batch.column("path").to_pylist(), batch.column("extra").to_pylist(), strict=True)


GROWTH = Growth(write_units, narrow)
