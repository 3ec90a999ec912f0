"""DuckDB as the stages use it: over Parquet files of ours, with values as parameters, results as Arrow tables.

Every SQL text is made of this program's own words; what a crawl brings is a parameter or a row, never a part of the text.
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa


def literal(path: Path) -> str:
    """`path` as DuckDB's `read_parquet` takes it, which would read `[`, `*` and `?` in a folder's name as a pattern."""
    return glob.escape(str(path))


def every(folder: Path, pattern: str) -> str:
    """The files of a folder that match `pattern`, whatever stands in the folder's own name."""
    return f"{literal(folder)}/{pattern}"


_MEMORY = "128MB"


@contextlib.contextmanager
def spilling(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that keeps 128 MB in memory, however large the crawl, and what is more in `folder`, which is made when it is needed and removed.

    One thread: each wants a share of the memory. By itself DuckDB takes most of the machine's before it goes to the disk.
    """
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(folder)])
        db.execute("SET memory_limit = ?", [_MEMORY])
        db.execute("SET threads = 1")
        yield db


def fetch(db: duckdb.DuckDBPyConnection, sql: str, given: Mapping[str, Any] | None = None) -> pa.Table:
    """The rows that a query gives. Source of the parameters: `$name` in the text."""
    return db.sql(sql, params=dict(given) if given else None).to_arrow_table()
