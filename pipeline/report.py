"""DuckDB over a run: its tables as views, and the saved queries of `data/sql/`.

The connection reads the run's Parquet through Arrow, file by file as named by us, so it needs no file access of its own and has none:
SQL can neither read nor write a file, wherever the run stands and whatever its path is made of.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from pipeline import tables
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.resources import data_folder

_ROUND = pa.field("round", pa.int16())


@dataclass(frozen=True)
class SavedQuery:
    """A query of `data/sql/`: `name` is the file's stem, `title` its first line."""

    name: str
    title: str
    sql: str


def open_run(run: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view for each table that the run has; the configuration is locked, files are out of reach.

    manifest    one row per crawl item
    identities  one row per identity
    noise       every round's judgement, with its `round`
    training    every round's loss, with its `round`
    metrics     the evaluation
    Raises BadInput when the run has no manifest yet, SchemaMismatch when it was written by another version.
    """
    if not any(RunLayout(run).manifest.glob("*.parquet")):
        raise BadInput(f"{run} has no manifest yet. Make one with `purify run CRAWL {run}`, or give the folder of a finished run.")
    connection = duckdb.connect(":memory:")
    for name, schema, files in _tables(run):
        if files:
            tables.check(files[0][0], schema)
            connection.register(name, _dataset(schema, files))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def saved_queries() -> dict[str, SavedQuery]:
    """The saved queries by name, in alphabetical order."""
    return {path.stem: _saved(path) for path in sorted(data_folder("sql").glob("*.sql"))}


def report(run: Path, name: str) -> pa.Table:
    """Rows of the saved query `name`. Raises BadInput for a name that does not exist, with those that do."""
    known = saved_queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"There is no saved query {name!r}.{hint} Use one of: {', '.join(known)}.")
    return query(run, known[name].sql)


def query(run: Path, sql: str) -> pa.Table:
    """Rows of one SELECT (also FROM, WITH, DESCRIBE, SUMMARIZE, SHOW, EXPLAIN) over the views of `open_run`.

    Raises BadInput, with DuckDB's own message and the views there are, for anything that cannot be answered.
    """
    with open_run(run) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise BadInput(f"A query is one SELECT statement: a run is never changed by SQL. {_help(connection)}")
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise BadInput(f"{error}\n{_help(connection)}") from error


def _tables(run: Path) -> Iterator[tuple[str, pa.Schema, list[tuple[Path, int | None]]]]:
    """(view, schema, its files, each with its round)."""
    layout = RunLayout(run)
    rounds = [layout.round(number) for number in round_numbers(run)]
    yield "manifest", tables.MANIFEST, [(path, None) for path in sorted(layout.manifest.glob("*.parquet"))]
    yield "identities", tables.IDENTITIES, [(path, None) for path in (layout.identities,) if path.exists()]
    yield "noise", tables.NOISE, [(path, one.number) for one in rounds for path in sorted(one.noise.glob("raw-*.parquet"))]
    yield "training", tables.METRICS_OF_TRAINING, [(path, one.number) for one in rounds if (path := one.train / "metrics.parquet").exists()]
    yield "metrics", tables.METRICS, [(path, None) for path in (layout.evaluation / "metrics.parquet",) if path.exists()]


def round_numbers(run: Path) -> list[int]:
    """Numbers of the rounds that the run has begun, in order."""
    return sorted(int(path.name) for path in (run / "rounds").glob("*") if path.name.isdecimal())


def _dataset(schema: pa.Schema, files: list[tuple[Path, int | None]]) -> ds.Dataset:
    """The files as one table of `schema`, with a column `round` where they belong to rounds. A column that a file lacks is null there."""
    of_rounds = files[0][1] is not None
    return ds.FileSystemDataset.from_paths(
        [str(path) for path, _ in files],
        schema=schema.append(_ROUND) if of_rounds else schema,
        format=ds.ParquetFileFormat(),
        filesystem=LocalFileSystem(),
        partitions=[ds.field("round") == pa.scalar(number, pa.int16()) for _, number in files] if of_rounds else None,
    )


def _saved(path: Path) -> SavedQuery:
    sql = path.read_text("utf-8")
    return SavedQuery(path.stem, sql.splitlines()[0].removeprefix("--").strip(), sql)


def _help(connection: duckdb.DuckDBPyConnection) -> str:
    views = connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name").fetchall()
    return f"Views of this run: {', '.join(name for (name,) in views)}. `DESCRIBE manifest` lists columns."
