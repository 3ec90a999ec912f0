"""A folder per identity: `crawl/<identity>/**/<file>`.

Items are sliced in the order of a hash of their path, so that each raw shard mixes identities, as training wants, and a slice stays the
same when the file system lists in another order. The listing is streamed to Parquet and sorted by DuckDB, which spills to disk.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.duck import literal
from pipeline.sources.base import Item, Listing, digest_of, printable

_LISTED = pa.schema([("path", pa.binary()), ("size", pa.int64()), ("order", pa.uint64())])
_BATCH = 50_000


def recognises(crawl: Path) -> bool:
    """True for any folder."""
    return crawl.is_dir()


def list_slices(crawl: Path, plan: Path, config: IngestConfig) -> Listing:
    """List the crawl into `plan/files.parquet`, in slicing order."""
    items = total = digest = 0
    unsorted = plan / "unsorted.parquet"
    with pq.ParquetWriter(unsorted, _LISTED) as writer:
        batch: list[dict[str, object]] = []
        for path, found in _walk(os.fsencode(crawl), b""):
            order = int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")
            batch.append({"path": path, "size": found.st_size, "order": order})
            items, total = items + 1, total + found.st_size
            digest = (digest + digest_of(os.fsdecode(path), found.st_size, found.st_mtime_ns)) % 2**128
            if len(batch) == _BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=_LISTED))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema=_LISTED))
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(plan / "spill")])
        db.read_parquet(literal(unsorted)).order('"order", path').write_parquet(
            str(plan / "files.parquet"), row_group_size=config.samples_per_shard
        )
    unsorted.unlink()
    return Listing(items, total, -(-items // config.samples_per_shard), f"{digest:032x}")


def read_slice(crawl: Path, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of rows `number * samples_per_shard` and on."""
    size = config.samples_per_shard
    with duckdb.connect() as db:
        rows = db.execute(
            'SELECT path FROM read_parquet(?) ORDER BY "order", path LIMIT ? OFFSET ?',
            [literal(plan / "files.parquet"), size, number * size],
        ).fetchall()
    for (path,) in rows:
        yield _read(crawl, bytes(path), config)


def _read(crawl: Path, path: bytes, config: IngestConfig) -> Item:
    name = printable(os.fsdecode(path))
    identity = name.split("/", 1)[0] if "/" in name else ""
    full = os.path.join(os.fsencode(crawl), path)  # noqa: PTH118 - a path of bytes, which pathlib does not take
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer. O_NOFOLLOW: a link may lead out of the crawl.
        handle = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                return Item(name, identity, problem=("unreadable", "no regular file"))
            if facts.st_size > config.max_item_bytes:
                return Item(name, identity, problem=("too_large", f"{facts.st_size} bytes, {config.max_item_bytes} allowed"))
            content = file.read()
    except OSError as error:
        return Item(name, identity, problem=("unreadable", error.strerror or str(error)))
    if not identity:
        return Item(name, identity, content, problem=("bad_identity", "the file stands outside of any identity's folder"))
    return Item(name, identity, content)


def _walk(root: bytes, relative: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    with os.scandir(os.path.join(root, relative) if relative else root) as entries:  # noqa: PTH118
        for entry in entries:
            path = os.path.join(relative, entry.name) if relative else entry.name  # noqa: PTH118
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, path)
            else:
                yield path, entry.stat(follow_symlinks=False)
