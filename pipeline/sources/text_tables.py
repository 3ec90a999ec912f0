"""Tables of text: CSV, TSV and JSON lines in UTF-8, as rows of texts, and turned into Parquet."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.sources.base import printable

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_MAX_FIELD = 1 << 20


def to_parquet(place: str, to: Path, config: IngestConfig) -> None:
    """All values as text, JSON's numbers and lists as they are written there. Columns are those of the first 20,000 rows."""
    writer: pq.ParquetWriter | None = None
    lines = text_rows(place, config)
    while rows := list(islice(lines, 20_000)):
        if writer is None:
            schema = pa.schema([(name, pa.string()) for name in dict.fromkeys(name for row in rows for name in row)])
            writer = pq.ParquetWriter(to, schema)
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    if writer is None:
        raise BadCrawl(f"{places.recorded(place)} is an empty table.")
    writer.close()


def text_rows(place: str, config: IngestConfig) -> Iterator[dict[str, str | None]]:
    """Rows of CSV, TSV or JSON lines in UTF-8, all values as text. A line that is no JSON object is a row without values.

    Raises OSError, csv.Error. BadCrawl: for another encoding, of which nobody could say which it is, and names would become others.
    """
    try:
        yield from _text_rows(place, config, "strict")
    except UnicodeDecodeError as error:
        raise BadCrawl(
            f"{places.shown(place)} is no UTF-8: it has {error.object[error.start : error.start + 1]!r} where that cannot stand. "
            "Convert it, as by: iconv -f LATIN1 -t UTF-8 (or from CP1252, UTF-16 ...), and look at some names."
        ) from error


def first_row(place: str, config: IngestConfig) -> dict[str, str | None]:
    """The first row by what can be read of it, whatever the encoding; empty when there is none. Raises OSError, csv.Error."""
    return next(_text_rows(place, config, "replace"), {})


def _text_rows(place: str, config: IngestConfig, errors: str) -> Iterator[dict[str, str | None]]:
    suffix = places.name_of(place).lower()
    csv.field_size_limit(_MAX_FIELD)
    with places.open_file(place, config) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors=errors, newline="")
        if suffix.endswith((".csv", ".tsv")):
            for row in csv.DictReader(text, delimiter="\t" if suffix.endswith(".tsv") else ",", restval=None, restkey="_rest"):
                yield {name: value for name, value in row.items() if name != "_rest"}
            return
        for line in text:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                yield {printable(name): _text(value) for name, value in found.items()}
            elif line.strip():
                yield {}


def _text(value: Any) -> str | None:
    return None if value is None else printable(value if isinstance(value, str) else json.dumps(value))
