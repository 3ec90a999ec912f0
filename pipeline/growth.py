"""A crawl that grew: the raw shards that stand are taken over as they are, only new files are read, and what vanished is marked.

`raw/listing.parquet` has a row for every file of the crawl: hashes of its name and of what changes with it, and the shard that holds it. No
names stand in it, and `purify forget` removes it: then the next change of the crawl is read anew.
"""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import shards, tables
from pipeline.config import IngestConfig
from pipeline.duck import literal, spilling
from pipeline.receipts import atomic, link
from pipeline.sources.base import Growth, unit_of
from pipeline.sums import prove_twins

LISTING = "listing.parquet"
_KINDS = ("vanished", "returned", "changed")


def write_listing(plan: Path, folder: Path, growth: Growth, config: IngestConfig) -> None:
    """`folder`'s listing of a crawl that is read as a whole."""
    growth.write_units(plan, plan / "units.parquet", config)
    with spilling(plan / "spill") as db, atomic(folder / LISTING) as temporary:
        units = db.sql("SELECT unit, mark, slice AS shard, false AS is_gone FROM read_parquet($units)", params=_given(plan))
        units.write_parquet(str(temporary))


def take_over(old: Path, plan: Path, folder: Path, growth: Growth, config: IngestConfig) -> tuple[int, int]:
    """Fill `folder` with the shards of `old`, and leave in the plan what they do not hold: (number of the first new shard, new slices).

    Rows of a file that is gone have `is_gone`; a file that comes back unchanged loses the mark. Of a file that changed, the rows of what it was
    stay too, gone, with `#before=<first new shard>` behind their source_uri. Tars are linked, or copied to another disk.
    """
    growth.write_units(plan, plan / "units.parquet", config)
    stems = shards.shard_stems(old)
    first = 1 + max(int(stem.removeprefix("raw-")) for stem in stems)
    with spilling(plan / "spill") as db:
        _compare(db, old, plan)
        new = db.sql("FROM read_parquet($units) ANTI JOIN (FROM fates WHERE fate != 'changed') USING (unit)", params=_given(plan))
        new.write_parquet(str(plan / "new.parquet"))
        slices = growth.narrow(plan, plan / "new.parquet", config)
        growth.write_units(plan, plan / "units.parquet", config)
        prove_twins(old, stems)
        for stem in stems:
            link(old / f"{stem}.tar", folder / f"{stem}.tar")
            if not (folder / f"{stem}.parquet").exists():
                found = {kind: _units(db, stem, kind) for kind in _KINDS}
                if any(found.values()):
                    has_one = db.execute("SELECT count(*) = 1 FROM fates WHERE shard = ?", [_number(stem)]).fetchall()[0][0]
                    _write_fates(old / f"{stem}.parquet", folder / f"{stem}.parquet", found, first, is_one_unit=bool(has_one))
                else:
                    link(old / f"{stem}.sha256", folder / f"{stem}.sha256")
                    link(old / f"{stem}.parquet", folder / f"{stem}.parquet")
        with atomic(folder / LISTING) as temporary:
            listed = db.sql(
                """SELECT unit, mark, shard, fate IN ('gone', 'vanished') AS is_gone FROM fates WHERE fate != 'changed'
                   UNION ALL SELECT unit, mark, slice + $first, false FROM read_parquet($units)""",
                params=_given(plan) | {"first": first},
            )
            listed.write_parquet(str(temporary))
    return first, slices


def count_changes(old: Path, plan: Path, growth: Growth, config: IngestConfig) -> dict[str, int]:
    """How many files of the plan are new to `old`, how many changed, vanished and returned: what `take_over` would find."""
    growth.write_units(plan, plan / "units.parquet", config)
    with spilling(plan / "spill") as db:
        _compare(db, old, plan)
        new = db.execute("SELECT count(*) FROM read_parquet($units) ANTI JOIN fates USING (unit)", _given(plan)).fetchall()[0][0]
        by_fate = dict(db.execute("SELECT fate, count(*) FROM fates GROUP BY fate").fetchall())
    return {"new": new} | {fate: by_fate.get(fate, 0) for fate in ("changed", "vanished", "returned")}


def _compare(db: duckdb.DuckDBPyConnection, old: Path, plan: Path) -> None:
    """The table `fates`: what became of every file that the listing of `old` has."""
    db.execute(
        """CREATE TABLE fates AS
           SELECT o.unit, o.mark, o.shard,
                  CASE WHEN u.mark IS NULL AND o.is_gone THEN 'gone' WHEN u.mark IS NULL THEN 'vanished' WHEN u.mark != o.mark THEN 'changed'
                       WHEN o.is_gone THEN 'returned' ELSE 'kept' END AS fate
           FROM read_parquet($listing) o LEFT JOIN read_parquet($units) u USING (unit)""",
        _given(plan) | {"listing": literal(old / LISTING)},
    )


def _given(plan: Path) -> dict[str, str | int]:
    return {"units": literal(plan / "units.parquet")}


def _number(stem: str) -> int:
    return int(stem.removeprefix("raw-"))


def _units(db: duckdb.DuckDBPyConnection, stem: str, fate: str) -> set[bytes]:
    return {bytes(unit) for (unit,) in db.execute("SELECT unit FROM fates WHERE shard = ? AND fate = ?", [_number(stem), fate]).fetchall()}


def _write_fates(old: Path, out: Path, found: dict[str, set[bytes]], first: int, *, is_one_unit: bool) -> None:
    """`is_one_unit`: the shard is one tar of the crawl, so that all of its rows share its fate."""
    table = pq.read_table(old)
    uris, gone = table["source_uri"].to_pylist(), table["is_gone"].to_pylist()
    fate_of = {unit: kind for kind, units in found.items() for unit in units}
    whole = next(iter(fate_of.values())) if is_one_unit else None
    for row, uri in enumerate(uris):
        if "#before=" in uri:
            continue  # what a file was before it changed
        fate = whole or fate_of.get(unit_of(uri.partition("#face=")[0]))
        if fate is not None:
            gone[row] = fate != "returned"
            uris[row] = f"{uri}#before={first}" if fate == "changed" else uri
    for name, values in (("source_uri", uris), ("is_gone", gone)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, tables.ITEMS.field(name), pa.array(values, tables.ITEMS.field(name).type))
    shards.write_twin(out, table, shards.read_facts(old))
