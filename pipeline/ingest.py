"""A crawl into `raw/`: shards of aligned crops, with a row for every item, hostile ones included.

Plan (list the crawl) / part (one slice, one worker, one shard) / seal (duplicates over all shards, by DuckDB, which spills).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import faces, forgotten, shards, tables
from pipeline.config import Config, IngestConfig, as_dict
from pipeline.duck import every, fetch
from pipeline.errors import BadCrawl
from pipeline.examine import examine
from pipeline.fanout import fan_out
from pipeline.places import Location, located, recorded
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, require_space, run_stage
from pipeline.sources import SOURCES, recognise

VERSION = 2
_PLAN = ".plan"


def ingest(crawl: Location, out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`, the raw shards of `crawl`.

    Raises BadCrawl: when the crawl is not there, is empty, or has fewer than two identities with a usable sample.
    """
    crawl = located(crawl)
    source = recognise(crawl, config.ingest)
    detector_files = faces.inputs(config.ingest)  # and a detector that does not work is found out here
    planning = out.parent / ".planning"
    planning.mkdir(parents=True, exist_ok=True)
    listing = SOURCES[source].list_slices(crawl, planning, config.ingest)
    if listing.items == 0:
        raise BadCrawl(f"{recorded(crawl)} is empty. docs/crawls.md shows what a crawl looks like.")
    mark = fingerprint("ingest", VERSION, as_dict(config.ingest), crawl=listing.digest, **detector_files)

    def work(folder: Path) -> Counts:
        require_space(folder, listing.total_bytes // 2)
        todo = [
            _Slice(crawl, planning, source, number, folder, config.ingest)
            for number in range(listing.slices)
            if not (folder / f"raw-{number:06d}.parquet").exists()
        ]
        fan_out(ingest_slice, todo, workers=config.workers, progress=progress)
        return _seal(folder, crawl) | {f"{name}_sha256": digest for name, digest in detector_files.items()}

    receipt = run_stage(out, stage="ingest", mark=mark, work=work)
    shutil.rmtree(planning)
    return receipt


@dataclass(frozen=True)
class _Slice:
    crawl: str
    plan: Path
    source: str
    number: int
    folder: Path
    config: IngestConfig


def ingest_slice(part: _Slice) -> int:
    """Write one raw shard and its twin; returns its number of items."""
    stem = f"raw-{part.number:06d}"
    tar = part.folder / f"{stem}.tar"
    rows: list[dict[str, Any]] = []
    stored: dict[str, tuple[int, int]] = {}
    gone = forgotten.read(part.folder.parent)
    with atomic(tar) as temporary, shards.ShardWriter(temporary) as shard:
        for item in SOURCES[part.source].read_slice(part.crawl, part.plan, part.number, part.config):
            for found, crop in gone.instead(item) or examine(item, part.config):
                row = gone.scrub(found) | {"shard": stem}
                if crop is not None and row["sample_id"] not in stored:
                    facts = shards.json_bytes({"identity": row["identity"], "source_uri": row["source_uri"]})
                    offset = shard.add(row["sample_id"], {"jpg": crop, "json": facts})["jpg"]
                    stored[row["sample_id"]] = offset, len(crop)
                    row["crop_offset"], row["crop_size"] = offset, len(crop)
                rows.append(row)
        samples = shard.samples
    facts_of_tar = shards.sidecar(tar, samples)
    shards.write_twin(tar.with_suffix(".parquet"), shards.table_of(rows, tables.ITEMS), facts_of_tar)
    return len(rows)


def _seal(folder: Path, crawl: str) -> Counts:
    """Mark duplicates over all shards, write identities.parquet, and count."""
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(folder / ".spill")])
        db.read_parquet(every(folder, "raw-*.parquet")).create_view("items")
        db.execute(
            """
            CREATE TABLE marks AS
            SELECT shard, source_uri,
                   left(content_sha256, 16) || CASE WHEN face_number > 1 THEN '#' || face_number ELSE '' END AS duplicate_set,
                   row_number() OVER (PARTITION BY content_sha256, identity, face_number ORDER BY crop_offset IS NULL, shard, crop_offset, source_uri) > 1
                   AS is_repeat
            FROM items WHERE status IN ('ok', 'duplicate')
            QUALIFY count(*) OVER (PARTITION BY content_sha256, face_number) > 1
            """
        )
        for (stem,) in db.execute("SELECT DISTINCT shard FROM marks ORDER BY shard").fetchall():
            marks = db.execute("SELECT source_uri, duplicate_set, is_repeat FROM marks WHERE shard = ?", [stem]).fetchall()
            _mark_duplicates(folder / f"{stem}.parquet", {uri: (name, repeat) for uri, name, repeat in marks})
        with atomic(folder / "identities.parquet") as temporary:
            counted = fetch(
                db,
                "SELECT identity, count(*) AS items, count(*) FILTER (status = 'ok') AS samples FROM items GROUP BY identity ORDER BY identity",
            )
            pq.write_table(counted.cast(tables.IDENTITIES), temporary)
        by_status = dict(db.execute("SELECT status, count(*) FROM items GROUP BY status ORDER BY count(*) DESC, status").fetchall())
        usable = sum(samples > 0 for samples in counted["samples"].to_pylist())
    if usable < 2:
        kinds = ", ".join(f"{count} {status}" for status, count in by_status.items())
        raise BadCrawl(
            f"{recorded(crawl)} has {usable} identities with a usable sample, and a head needs two to tell apart. "
            f"Items by status: {kinds}. `purify inspect` shows how the crawl was read, docs/crawls.md what it should look like."
        )
    return {"items": sum(by_status.values()), "identities": usable, "shards": len(shards.shard_stems(folder)), **by_status}


def _mark_duplicates(twin: Path, marks: dict[str, tuple[str, bool]]) -> None:
    table = pq.read_table(twin)
    uris = table["source_uri"].to_pylist()
    repeats = [uri in marks and marks[uri][1] for uri in uris]
    sets = [marks[uri][0] if uri in marks else None for uri in uris]
    status = [("duplicate" if repeat else old) for repeat, old in zip(repeats, table["status"].to_pylist(), strict=True)]
    repeated = "same bytes and identity as an earlier item"
    detail = [(repeated if repeat else old) for repeat, old in zip(repeats, table["status_detail"].to_pylist(), strict=True)]
    for name, values in (("status", status), ("status_detail", detail), ("duplicate_set", sets)):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, tables.ITEMS.field(name), pa.array(values, tables.ITEMS.field(name).type))
    shards.write_twin(twin, table, shards.read_facts(twin))
