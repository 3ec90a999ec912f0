"""Which items of a crawl are the same: equal bytes, and crops that look the same. DuckDB over the twins of all shards; it spills.

Equal bytes under one identity: one is the sample, the rest are `duplicate`. Equal bytes under two identities: all stay samples, with one
`duplicate_set`, for isolate to resolve. Crops that look the same are only told of (`near_duplicate_set`): 64 coarse bits of an aligned face are
too few to drop a picture by, so what is dropped as a near duplicate is for isolate to say, which sees embeddings.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import shards, tables
from pipeline.receipts import Progress

_BATCH = 100_000
_Marks = dict[str, tuple[str | None, bool, str | None]]
"""source_uri -> (duplicate_set, is a repeat, near_duplicate_set)"""


def mark_duplicates(db: duckdb.DuckDBPyConnection, folder: Path, near_bits: int, *, progress: Progress | None = None) -> None:
    """Write the marks into the twins of `folder`. `db` has a view `items` of all of them.

    near_bits   two crops of an identity are near when their perceptual hashes differ in so many of 64 bits or fewer
    """
    _find_repeats(db)
    _find_near(db, near_bits)
    stems = db.execute(
        """SELECT DISTINCT shard FROM (SELECT shard FROM repeats UNION ALL SELECT shard FROM near
           UNION ALL SELECT shard FROM items WHERE duplicate_set IS NOT NULL OR near_duplicate_set IS NOT NULL) ORDER BY shard"""
    ).fetchall()
    for number, (stem,) in enumerate(stems):
        marks: _Marks = {
            uri: (one, bool(repeat), near)
            for uri, one, repeat, near in db.execute(
                """SELECT source_uri, duplicate_set, is_repeat, near_duplicate_set
                   FROM (FROM repeats WHERE shard = $stem) FULL JOIN (FROM near WHERE shard = $stem) USING (source_uri)""",
                {"stem": stem},
            ).fetchall()
        }
        _write_marks(folder / f"{stem}.parquet", marks)
        if progress:
            progress(number + 1, len(stems))


def _find_repeats(db: duckdb.DuckDBPyConnection) -> None:
    """Table `repeats`: the items whose bytes stand more than once. The first of an identity, in the order of shards, is the sample."""
    db.execute(
        """
        CREATE TABLE repeats AS
        SELECT shard, source_uri,
               left(content_sha256, 16) || CASE WHEN face_number > 1 THEN '#' || face_number ELSE '' END AS duplicate_set,
               row_number() OVER (PARTITION BY content_sha256, identity, face_number
                                  ORDER BY crop_offset IS NULL, is_gone, shard, crop_offset, source_uri) > 1 AS is_repeat
        FROM items WHERE status IN ('ok', 'duplicate')
        QUALIFY count(*) OVER (PARTITION BY content_sha256, face_number) > 1
        """
    )


def _find_near(db: duckdb.DuckDBPyConnection, bits: int) -> None:
    """Table `near`: the samples that share their looks with another one of their identity, and the best of each set.

    The best, largest then sharpest, takes what is near to IT, then the next: a chain of which only neighbours are near is not one set.
    """
    db.execute(
        """
        CREATE TABLE ranked AS
        SELECT shard, source_uri, sample_id, identity, ('0x' || perceptual_hash)::UBIGINT AS look,
               row_number() OVER (PARTITION BY identity
                                  ORDER BY coalesce(face_width_px * face_height_px, width_px * height_px) DESC NULLS LAST,
                                           sharpness DESC NULLS LAST, source_uri) AS place
        FROM items ANTI JOIN (SELECT source_uri FROM repeats WHERE is_repeat) USING (source_uri)
        WHERE status IN ('ok', 'duplicate') AND perceptual_hash IS NOT NULL;
        CREATE TABLE looks AS
        SELECT identity, look, min(place) AS place, arg_min(sample_id, place) AS best FROM ranked GROUP BY identity, look;
        CREATE TABLE follows (identity VARCHAR, place BIGINT, head BIGINT);
        """
    )
    for batch in _batches(_followers(db, bits)):
        db.execute("INSERT INTO follows SELECT * FROM batch")
        del batch
    db.execute(
        """
        CREATE TABLE near AS
        WITH headed AS (
            SELECT l.identity, l.look, h.best
            FROM looks l LEFT JOIN follows f USING (identity, place)
            JOIN looks h ON h.identity = l.identity AND h.place = coalesce(f.head, l.place))
        SELECT shard, source_uri, best AS near_duplicate_set
        FROM ranked JOIN headed USING (identity, look)
        QUALIFY count(*) OVER (PARTITION BY identity, best) > 1;
        DROP TABLE ranked; DROP TABLE looks; DROP TABLE follows;
        """
    )


def _followers(db: duckdb.DuckDBPyConnection, bits: int) -> Iterator[tuple[str, int, int]]:
    """(identity, place, place of the best that it follows) of every look that is near to a better one.

    Hashes that differ in `bits` places at most agree on one of `bits` + 1 bands of the 64; only those that share a band are compared.
    """
    if bits == 0:
        return
    width = -(-64 // (bits + 1))
    pairs = db.cursor().execute(
        """
        WITH bands AS (SELECT identity, look, place, band, (look >> (band * $width)) & $mask AS value
                       FROM looks, (SELECT unnest(range($bits + 1))::UBIGINT AS band))
        SELECT DISTINCT a.identity, a.place, b.place FROM bands a JOIN bands b USING (identity, band, value)
        WHERE a.place < b.place AND bit_count(xor(a.look, b.look)::HUGEINT) <= $bits
        ORDER BY a.identity, a.place, b.place
        """,
        {"bits": bits, "width": width, "mask": (1 << width) - 1},
    )
    rows = iter(lambda: pairs.fetchmany(_BATCH), [])
    for identity, group in groupby((row for batch in rows for row in batch), key=lambda row: row[0]):
        taken: set[int] = set()
        for _, head, place in group:
            if head not in taken and place not in taken:
                taken.add(place)
                yield identity, place, head


def _batches(rows: Iterator[tuple[str, int, int]]) -> Iterator[pa.Table]:
    held: list[tuple[str, int, int]] = []
    for row in rows:
        held.append(row)
        if len(held) == _BATCH:
            yield _table(held)
            held.clear()
    if held:
        yield _table(held)


def _table(rows: list[tuple[str, int, int]]) -> pa.Table:
    identity, place, head = zip(*rows, strict=True)
    return pa.table({"identity": pa.array(identity), "place": pa.array(place, pa.int64()), "head": pa.array(head, pa.int64())})


def _write_marks(twin: Path, marks: _Marks) -> None:
    table = pq.read_table(twin)
    found = [marks.get(uri, (None, False, None)) for uri in table["source_uri"].to_pylist()]
    reason = "same bytes and identity as an earlier item"
    old = list(zip(table["status"].to_pylist(), table["status_detail"].to_pylist(), strict=True))
    status = [
        (("duplicate", reason) if repeat else ("ok", None)) if before[0] in ("ok", "duplicate") else before
        for (_, repeat, _), before in zip(found, old, strict=True)
    ]
    changed = {
        "status": [name for name, _ in status],
        "status_detail": [detail for _, detail in status],
        "duplicate_set": [one for one, _, _ in found],
        "near_duplicate_set": [near for _, _, near in found],
    }
    for name, values in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, tables.ITEMS.field(name), pa.array(values, tables.ITEMS.field(name).type))
    shards.write_twin(twin, table, shards.read_facts(twin))
