"""A crawl into `raw/`: shards of aligned crops, with a row for every item, hostile ones included.

Plan (list the crawl) / part (one slice, one worker, one shard) / seal (duplicates over all shards, by DuckDB, which spills).
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import faces, forgotten, receipts, shards, tables
from pipeline.config import Config, IngestConfig, as_dict
from pipeline.duck import every, spilling
from pipeline.duplicates import mark_duplicates
from pipeline.errors import BadCrawl
from pipeline.examine import examine
from pipeline.fanout import fan_out
from pipeline.growth import LISTING, count_changes, take_over, write_listing
from pipeline.places import Location, located, recorded
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, require_space, run_stage
from pipeline.sources import SOURCES, recognise
from pipeline.sources.base import Listing

VERSION = 10
_BATCH = 100_000
_NOT_BAD = {"ok", "duplicate", "forgotten"}


def ingest(crawl: Location, out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`, the raw shards of `crawl`.

    Raises BadCrawl: when the crawl is not there, is empty, or has fewer than two identities with a usable sample. BadShard: when shards of an
    earlier run are used again, and one is gone or has another length.
    """
    crawl = located(crawl)
    planning = out.parent / ".planning"
    planning.mkdir(parents=True, exist_ok=True)
    found = _listed(crawl, out, planning, config.ingest)
    source, listing, growth = found.source, found.listing, SOURCES[found.source].growth

    def work(folder: Path) -> Counts:
        first, slices = 0, listing.slices
        if growth is not None and found.grown_from is not None:
            first, slices = take_over(out, planning, folder, growth, config.ingest)
        elif growth is not None:
            write_listing(planning, folder, growth, config.ingest)
        require_space(folder, listing.total_bytes // 2 * slices // max(1, listing.slices))
        todo = [
            _Slice(crawl, planning, source, number, folder, f"raw-{first + number:06d}", config.ingest)
            for number in range(slices)
            if not (folder / f"raw-{first + number:06d}.parquet").exists()
        ]
        fan_out(ingest_slice, todo, workers=config.workers, progress=progress)
        digests: Counts = {f"{name}_sha256": digest for name, digest in found.detector_files.items()}
        return _seal(folder, crawl, config.ingest) | digests | {"grown_from": found.grown_from, "settings": found.settings}

    receipt = run_stage(out, stage="ingest", mark=found.mark, work=work)
    if receipt.reused:
        shards.require_shards(out, "raw", receipt.counts["shards"])
    shutil.rmtree(planning)
    return receipt


def plan_ingest(crawl: Location, out: Path, config: Config) -> str:
    """What `ingest` would find changed, in words; the crawl is listed into a temporary folder, and within `receipts.planning` the stage is noted.

    Raises as `ingest` before it reads a file.
    """
    with tempfile.TemporaryDirectory(prefix="purify-plan-") as folder:
        found = _listed(located(crawl), out, Path(folder), config.ingest)
        growth, standing = SOURCES[found.source].growth, receipts.read(out)
        listed = f"{found.listing.items:,} listed"
        if standing is None:
            told = listed
        elif standing.fingerprint == found.mark:
            told = f"{listed}, nothing has changed"
            shards.require_shards(out, "raw", standing.counts["shards"])
        elif growth is not None and found.grown_from is not None:
            changes = count_changes(out, Path(folder), growth, config.ingest)
            told = f"the crawl has changed: {listed}; " + (
                ", ".join(f"{count:,} {what}" for what, count in changes.items() if count) or "the listing has changed"
            )
        else:
            told = f"{listed}, all to be read anew: the settings of ingest changed, or what the crawl is does not let its changes be told"
    run_stage(out, stage="ingest", mark=found.mark, work=lambda _: {})
    return told


@dataclass(frozen=True)
class _Listed:
    source: str
    listing: Listing
    detector_files: dict[str, str]
    settings: str
    """Fingerprint of all that the rows depend on besides the crawl."""
    grown_from: Any
    """Fingerprint of the shards that are taken over, or were; None where all is read."""
    mark: str


def _listed(crawl: str, out: Path, planning: Path, config: IngestConfig) -> _Listed:
    source = recognise(crawl, config)
    detector_files = faces.inputs(config)  # and a detector that does not work is found out here
    listing = SOURCES[source].list_slices(crawl, planning, config)
    if listing.items == 0:
        raise BadCrawl(f"{recorded(crawl)} is empty. docs/crawls.md shows what a crawl looks like.")
    same = fingerprint("ingest settings", VERSION, as_dict(config), source=source, **detector_files)
    standing = receipts.read(out)
    grown_from = standing.counts.get("grown_from") if standing else None
    mark = fingerprint("ingest", VERSION, {"grown_from": grown_from}, crawl=listing.digest, under=same)
    if standing is not None and standing.fingerprint != mark:
        grows = SOURCES[source].growth is not None and standing.counts.get("settings") == same and (out / LISTING).exists()
        grown_from = standing.fingerprint if grows else None
        mark = fingerprint("ingest", VERSION, {"grown_from": grown_from}, crawl=listing.digest, under=same)
    return _Listed(source, listing, detector_files, same, grown_from, mark)


@dataclass(frozen=True)
class _Slice:
    crawl: str
    plan: Path
    source: str
    number: int
    folder: Path
    stem: str
    """Of the shard to write."""
    config: IngestConfig


def ingest_slice(part: _Slice) -> int:
    """Write one raw shard and its twin; returns its number of items."""
    tar = part.folder / f"{part.stem}.tar"
    rows: list[dict[str, Any]] = []
    stored: dict[str, tuple[int, int]] = {}
    gone = forgotten.read(part.folder.parent)
    with atomic(tar) as temporary, shards.ShardWriter(temporary) as shard:
        for item in SOURCES[part.source].read_slice(part.crawl, part.plan, part.number, part.config):
            for found, crop in gone.instead(item) or examine(item, part.config):
                row = gone.scrub(found) | {"shard": part.stem}
                if crop is not None and row["sample_id"] not in stored:
                    facts = shards.json_bytes({"identity": row["identity"], "source_uri": row["source_uri"]})
                    offset = shard.add(row["sample_id"], {"jpg": crop, "json": facts})["jpg"]
                    stored[row["sample_id"]] = offset, len(crop)
                    row["crop_offset"], row["crop_size"] = offset, len(crop)
                rows.append(row)
    shards.write_twin(tar.with_suffix(".parquet"), shards.table_of(rows, tables.ITEMS), shard.sidecar)
    return len(rows)


def _seal(folder: Path, crawl: str, config: IngestConfig) -> Counts:
    """Mark duplicates over all shards, write identities.parquet, and count."""
    with spilling(folder / ".spill") as db:
        db.read_parquet(every(folder, "raw-*.parquet")).create_view("items")
        mark_duplicates(db, folder, config.near_duplicate_bits)
        db.execute(
            "CREATE TABLE counted AS SELECT identity, count(*) AS items, count(*) FILTER (status = 'ok') AS samples FROM items GROUP BY identity"
        )
        with atomic(folder / "identities.parquet") as temporary, pq.ParquetWriter(temporary, tables.IDENTITIES) as writer:
            for batch in db.sql("FROM counted ORDER BY identity").to_arrow_reader(_BATCH):
                writer.write_table(pa.Table.from_batches([batch]).cast(tables.IDENTITIES))
        gone = db.execute("SELECT count(*) FROM items WHERE is_gone").fetchall()[0][0]
        by_status = dict(db.execute("SELECT status, count(*) FROM items GROUP BY status ORDER BY count(*) DESC, status").fetchall())
        usable = db.execute("SELECT count(*) FROM counted WHERE samples > 0").fetchall()[0][0]
    items = sum(by_status.values())
    bad = sum(count for status, count in by_status.items() if status not in _NOT_BAD)
    kinds = ", ".join(f"{count} {status}" for status, count in by_status.items())
    if bad > config.max_bad_items * items:
        raise BadCrawl(
            f"{100 * bad / items:.3g}% of the items of {recorded(crawl)} are no sample, {100 * config.max_bad_items:.3g}% are allowed. Items by status: {kinds}. "
            "`purify inspect` shows how the crawl was read; if that is what it is, allow more with --max-bad-items 1."
        )
    if usable < 2:
        raise BadCrawl(
            f"{recorded(crawl)} has {usable} identities with a usable sample, and a head needs two to tell apart. "
            f"Items by status: {kinds}. `purify inspect` shows how the crawl was read, docs/crawls.md what it should look like."
        )
    return ({"gone": gone} if gone else {}) | {"items": items, "identities": usable, "shards": len(shards.shard_stems(folder)), **by_status}
