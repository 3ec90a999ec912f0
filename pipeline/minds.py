"""What a person should mind before a crawl is trained on: what was read otherwise than it was meant, and what cannot be learned.

Nothing is refused for it, because each may be right: invented faces are learned from some thousand pictures, and people are called Val.
`purify inspect` asks it of a sample, a run of its raw shards, before the first training. No names of people are told but the crawl's only one.
"""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import receipts, tables
from pipeline.config import Config
from pipeline.duck import every, spilling
from pipeline.layout import RunLayout
from pipeline.sources.huggingface import SPLITS
from pipeline.visible import counted

COLUMNS = ("identity", "source_uri", "status", "width_px", "height_px", "landmarks_px")
ENOUGH = 10_000
"""Pictures from which real faces were seen to be learned from scratch, more or less."""
_LARGEST_CROP_PX = 160
"""Usual aligned crops are 96 to 160 px; larger squares are more often photos, or boxes around a head."""
_MOST = 0.9
_SOME = 0.1


def minds_of_run(run: RunLayout, config: Config) -> list[str]:
    """What to mind before the run trains, from its raw shards; nothing once its first training stands."""
    if receipts.read(run.round(1).train) is not None:
        return []
    with spilling(run.raw.parent / ".minds") as db:
        items = db.read_parquet(every(run.raw, "raw-*.parquet"))
        return list(_minds(db, items, config, None))


def minds_of_sample(rows: list[dict[str, object]], pictures: int, config: Config, folder: Path) -> list[str]:
    """What to mind, from rows of the items table for a sample of a crawl of about so many usable `pictures`."""
    schema = pa.schema([tables.ITEMS.field(name).with_nullable(True) for name in COLUMNS])
    with spilling(folder / ".minds") as db:
        return list(_minds(db, db.from_arrow(pa.Table.from_pylist(rows, schema=schema)), config, pictures))


def _minds(db: duckdb.DuckDBPyConnection, items: duckdb.DuckDBPyRelation, config: Config, pictures: int | None) -> Iterator[str]:
    items.create_view("items")
    [(count, usable, photos, large)] = db.execute(
        """SELECT count(*), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'not_aligned'),
                  count(*) FILTER (status = 'ok' AND landmarks_px IS NULL AND width_px = height_px AND width_px > ?) FROM items""",
        [_LARGEST_CROP_PX],
    ).fetchall()
    yield from _misread(db)
    if count and photos / count > _SOME:
        yield (
            f"{photos:,} of {count:,} items looked into are photographs, not crops: give --detector yunet with --detector-model FILE "
            "(docs/faces.md), or five landmarks beside each."
        )
    if usable and large / usable >= _MOST:
        yield (
            f"{large:,} of {usable:,} pictures looked into are squares of more than {_LARGEST_CROP_PX} px, and are taken as aligned crops. If they are "
            "photos, or boxes around a head, give --detector yunet with --detector-model FILE (docs/faces.md)."
        )
    pictures = usable if pictures is None else pictures
    if pictures < ENOUGH and config.embedder.model is None and config.train.init is None and config.mode != "judge":
        yield (
            f"{pictures:,} pictures are few: real faces are learned from scratch from some ten thousand on (invented ones, as of `purify demo`, from "
            "fewer). Give a face model by --embedder, or weights to start from by --init (docs/models.md)."
        )


def _misread(db: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Of folders: identities that are called like a split, or that are the only one, with folders of pictures in them."""
    is_only = "(SELECT min(identity) = max(identity) FROM items)"
    found = db.execute(
        f"""WITH below AS (
                SELECT DISTINCT identity, split_part(source_uri, '/', 2) AS folder FROM items
                WHERE starts_with(source_uri, identity || '/') AND contains(substr(source_uri, length(identity) + 2), '/')
                      AND (lower(identity) IN (SELECT unnest(?)) OR {is_only}))
            SELECT identity, count(*), {is_only} FROM below GROUP BY identity ORDER BY identity""",
        [sorted(SPLITS)],
    ).fetchall()
    if not found:
        return
    names = " and ".join(f"'{name}'" for name, _, _ in found)
    folders = counted(sum(count for _, count, _ in found), "folder")
    within = f"{names} {'is' if len(found) == 1 else 'are each'} taken for one identity, with {folders} of pictures below"
    if found[0][2] and found[0][0].lower() not in SPLITS:
        yield f"{within}. If those are the people, give that folder as the crawl."
    else:
        yield f"{within}. If those are the people, and {names} no name but a split's: --source huggingface reads them so."
