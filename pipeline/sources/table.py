"""A table with a row per picture: Parquet, CSV, TSV or JSON lines; one file, a pattern of files, or a folder of them.

The picture is in a column, as bytes, as Hugging Face's struct of bytes and path, as a path relative to the table's folder, or as a URL. Text
tables are turned into Parquet in the plan, once. A slice is a run of rows of one file, so that it can be read as a stream: a table that is
sorted by identity gives raw shards that are, and training mixes them by its order of shards and its shuffle buffer.
"""

import csv
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.sources import text_tables
from pipeline.sources.base import (
    LICENSE,
    Item,
    Listing,
    Problem,
    bad_key,
    digest_of,
    irregular,
    named,
    require_regular,
    text_or_none,
    unreadable,
    uri_text,
)
from pipeline.sources.img2dataset import failure

SUFFIXES = (".parquet", *text_tables.SUFFIXES)
_IMAGE = ("image", "bytes", "jpg", "png", "path", "file_name", "url")
_URL = ("url", "source_url")
_CAPTION = ("caption", "text")
_BATCH = 64
_FETCHES = 8
"""Pictures of a slice that are on their way at once, when the table holds paths or URLs."""


@dataclass(frozen=True)
class Columns:
    """Which column is what."""

    identity: str
    image: str
    url: str | None = None
    caption: str | None = None
    landmarks: str | None = None
    status: str | None = None
    error: str | None = None
    license: str | None = None

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in asdict(self).values() if name))


def recognises(look: Look) -> bool:
    """True for a table, tables by a pattern, and a folder on whose first level one has the columns of identity and picture.

    Also for tables beside fewer than two folders, which are no folders of identities: their columns are to be told of.
    """
    tables = [name for name in look.top if is_table(name)]
    if look.kind != "folder":
        return bool(tables)
    return bool(tables) and (len(look.folders) < 2 or any(_has_columns(places.join(look.crawl, name), look.config) for name in tables[:3]))


def is_table(path: str) -> bool:
    """True by the extension."""
    return places.name_of(path).lower().endswith(SUFFIXES)


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """Find the columns and cut the rows into slices. Raises BadCrawl when a table lacks the columns, with those that it has."""
    if places.is_folder(crawl, config):
        found = [
            one for one in places.children(crawl) if one.kind != "folder" and is_table(one.path) and not one.path.startswith((".", "_"))
        ]
        return list_tables(crawl, sorted(found, key=lambda one: one.path), plan, config)
    base, files = places.matching(crawl, config, SUFFIXES)
    return list_tables(base, files, plan, config)


def list_tables(
    base: str, files: list[places.Entry], plan: Path, config: IngestConfig, *, identity: str | None = None, names: list[str] | None = None
) -> Listing:
    """The listing of tables; `identity` names the column for this crawl, `names` the identities when the column holds numbers of them.

    A table that is a link, or no regular file, is an item. Raises BadCrawl when all are, and when one lacks the columns.
    """
    require_regular(base, files)
    items = total = digest = 0
    tables: list[dict[str, Any]] = []
    slices: list[tuple[int, int, int]] = []
    for number, entry in enumerate(files):
        if (problem := irregular(entry.kind)) is not None:
            tables.append({"path": entry.path, "local": None, "problem": problem})
            slices.append((number, 0, 0))
            items, digest = items + 1, (digest + digest_of(places.name_of(entry.path), entry.size, entry.mark)) % 2**128
            continue
        place = places.join(base, entry.path)
        local = _local(place, plan / f"table-{number:05d}.parquet", config)
        try:
            with _opened(place, local, config) as file, pq.ParquetFile(file) as table:
                rows, schema = table.metadata.num_rows, table.schema_arrow
        except (OSError, pa.ArrowException, ValueError) as error:
            raise BadCrawl(
                f"{places.recorded(place)} cannot be read as a table: {error}. Take it out of the crawl, or write it anew."
            ) from error
        columns = columns_of(schema.names, places.recorded(place), config, identity)
        own = class_names(schema, columns.identity) or names
        tables.append({"path": entry.path, "local": local, "columns": asdict(columns), "names": own})
        slices += [(number, start, min(start + config.samples_per_shard, rows)) for start in range(0, rows, config.samples_per_shard)]
        items, total = items + rows, total + entry.size
        digest = (digest + digest_of(places.name_of(entry.path), entry.size, entry.mark)) % 2**128
    (plan / "tables.json").write_text(json.dumps({"base": base, "tables": tables, "slices": slices}), "utf-8")
    return Listing(items, total, len(slices), f"{digest:032x}")


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the rows of a slice, in order."""
    del crawl
    listed = json.loads((plan / "tables.json").read_text("utf-8"))
    which, start, stop = listed["slices"][number]
    table = listed["tables"][which]
    place = places.join(listed["base"], table["path"])
    shown = uri_text(places.name_of(place) if places.is_web(place) else table["path"])
    if "problem" in table:
        status, detail = table["problem"]
        yield Item(f"{shown}#damage", "", problem=(status, detail))
        return
    columns = Columns(**table["columns"])
    rows, done = _rows(place, table["local"], start, stop, columns, config), start
    try:
        # Pictures elsewhere are waited for; some at a time, in order.
        with ThreadPoolExecutor(_FETCHES) as pool:
            while some := list(islice(rows, _BATCH)):
                given = ((f"{shown}#row={row}", values, columns, table["names"], place, config) for row, values in some)
                yield from pool.map(_item, *zip(*given, strict=True))
                done += len(some)
    except (OSError, pa.ArrowException) as error:
        detail = f"rows {done} to {stop - 1} cannot be read: {error}"[:300]
        yield Item(f"{shown}#damage={done}", "", problem=("unreadable", detail))


def count_identities(plan: Path, config: IngestConfig) -> dict[str, int]:
    """Rows by identity."""
    listed = json.loads((plan / "tables.json").read_text("utf-8"))
    counts: dict[str, int] = {}
    for table in (one for one in listed["tables"] if "problem" not in one):
        column = table["columns"]["identity"]
        with _opened(places.join(listed["base"], table["path"]), table["local"], config) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=[column]):
                for one in batch.column(0).value_counts().to_pylist():
                    name = named(_name(one["values"], table["names"]))[0]
                    counts[name] = counts.get(name, 0) + one["counts"]
    return counts


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a Hugging Face ClassLabel column, as its Parquet files hold them; None when it is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _item(uri: str, values: dict[str, Any], columns: Columns, names: list[str] | None, table: str, config: IngestConfig) -> Item:
    name = _name(values.get(columns.identity), names)
    identity, problem = named(name)
    if name is None:
        problem = "bad_identity", f"nothing in the column {columns.identity!r}"
    content, source, failed = _picture(values.get(columns.image), table, config)
    if failed is not None and failed[1] == _NOTHING:
        failed = failure({"status": values.get(columns.status or ""), "error_message": values.get(columns.error or "")}) or failed
    return Item(
        uri,
        identity,
        content,
        landmarks=_landmarks(values.get(columns.landmarks or "")),
        source_url=text_or_none(values.get(columns.url or "")) or source,
        caption=text_or_none(values.get(columns.caption or "")),
        license=text_or_none(values.get(columns.license or "")),
        problem=failed or problem,
    )


_NOTHING = "no picture in the row"


def _picture(value: object, table: str, config: IngestConfig) -> tuple[bytes, str | None, Problem | None]:
    """(bytes, URL they came from, problem) of a cell."""
    if isinstance(value, dict):
        inner = value.get("bytes")
        value = inner if inner is not None else value.get("path")
    if isinstance(value, bytes):
        if len(value) > config.max_item_bytes:
            return b"", None, ("too_large", f"{len(value)} bytes, {config.max_item_bytes} allowed")
        return value, None, None
    if not isinstance(value, str) or not value:
        return b"", None, ("unreadable", _NOTHING)
    if places.is_remote(value.strip()):  # of a path, white space may be a part
        value = value.strip()
    try:
        if places.holds_credentials(value):
            return b"", None, ("unreadable", "a user or password in the URL")
        if places.is_web(value):
            return places.read_file(value, config), text_or_none(value), None
        if places.is_remote(value):
            if not value.lower().startswith(("s3://", "gs://")):
                return b"", None, ("unreadable", "only http, https, s3 and gs are read")
            return places.read_file(value, config), text_or_none(value), None
        problem = bad_key(value) if not value.lower().startswith(("file:", "pipe:", "data:")) else ("bad_key", "a scheme that is not read")
        if problem is not None:
            return b"", None, problem
        return places.read_inside(table.rpartition("/")[0], value, config), None, None
    except OSError as error:
        return b"", None, unreadable(error)
    except (ValueError, UnicodeError) as error:  # a NUL in a path, a lone surrogate
        return b"", None, ("bad_key", f"no path: {error}")


def _name(value: object, names: list[str] | None) -> object:
    """The identity that a cell names. Whole floats are numbers: pandas writes whole numbers so when some are missing."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if names is None or not isinstance(value, int) or isinstance(value, bool):
        return value
    return names[value] if 0 <= value < len(names) else None


def _landmarks(value: object) -> object:
    """Text tables hold them as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _rows(
    place: str, local: str | None, start: int, stop: int, columns: Columns, config: IngestConfig
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, values) of rows [start, stop); of row groups before them nothing is read."""
    with _opened(place, local, config) as file, pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        groups: list[int] = []
        row = first = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if row + count > start and row < stop:
                first = first if groups else row
                groups.append(group)
            row += count
        row = first
        for batch in table.iter_batches(_BATCH, row_groups=groups, columns=columns.names()):
            if row + batch.num_rows > start:
                for at, values in enumerate(batch.to_pylist(), start=row):
                    if at >= stop:
                        return
                    if at >= start:
                        yield at, values
            row += batch.num_rows


def _opened(place: str, local: str | None, config: IngestConfig) -> BinaryIO:
    return Path(local).open("rb") if local else places.open_seekable(place, config)


def _local(place: str, to: Path, config: IngestConfig) -> str | None:
    """A Parquet file on the disk for a text table and for what comes by http(s); None for Parquet that can be read where it is."""
    try:
        if places.name_of(place).lower().endswith(text_tables.SUFFIXES):
            text_tables.to_parquet(place, to, config)
        elif places.is_web(place):
            places.download(place, to, config)
        else:
            return None
    except (OSError, csv.Error) as error:
        raise BadCrawl(f"{places.recorded(place)} cannot be read: {error}. Mend it, or take it out of the crawl.") from error
    return str(to)


def columns_of(names: list[str], place: str, config: IngestConfig, identity: str | None = None) -> Columns:
    """Which of the columns is what. Raises BadCrawl when identity or picture is not among them."""
    wanted = identity or config.identity_key
    image = config.image_column or next((name for name in _IMAGE if name in names), None)
    for column, setting in ((wanted, "identity_key"), (image, "image_column")):
        if column is None or column not in names:
            lacks = f"no column {column!r}" if column else f"none of the columns that are known for pictures ({', '.join(_IMAGE)})"
            raise BadCrawl(
                f"{place} has {lacks}; it has {', '.join(map(repr, names[:30]))}. "
                f"{_of_delimiter(names) or f'Name it by --set ingest.{setting}=NAME.'}"
            )
    url = next((name for name in _URL if name in names and name != image), None)
    caption = next((name for name in _CAPTION if name in names), None)
    others = {name: name for name in ("landmarks", "status") if name in names}
    return Columns(
        wanted,
        str(image),
        url,
        caption,
        others.get("landmarks"),
        others.get("status"),
        "error_message" if "error_message" in names else None,
        next((name for name in LICENSE if name in names), None),
    )


def _of_delimiter(names: list[str]) -> str:
    """What to say of a text table whose one column is a line of them; else nothing."""
    sign = next((sign for sign in ";\t|" if sign in names[0]), None) if len(names) == 1 else None
    return (
        f"Its columns seem to be parted by {sign!r}, those of a .csv are by commas, and of a .tsv by tabs: write or name it so."
        if sign
        else ""
    )


def _has_columns(place: str, config: IngestConfig) -> bool:
    try:
        if place.lower().endswith(text_tables.SUFFIXES):
            names = list(text_tables.first_row(place, config))
            if len(names) == 1:  # another delimiter, which is to be told of
                names = re.split(r"[;\t|]", names[0])
        else:
            with places.open_seekable(place, config) as file:
                names = list(pq.read_schema(file).names)
        return bool(columns_of(names, place, config))
    except (OSError, csv.Error, pa.ArrowException, BadCrawl):
        return False
