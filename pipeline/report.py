"""DuckDB over a run: its tables as views, and the saved queries of `data/sql/`.

The connection knows the run's Parquet files by names that we give them (`run_files.py`) and no other file: SQL can neither read another one nor
write any, wherever the run stands and whatever its path is made of.
"""

import difflib
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import tables
from pipeline.answers import kept_answer, saved_queries
from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.run_files import ROOT, confine
from pipeline.run_folder import require_whole


def open_run(run: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory connection with a view for each table that the run has; the configuration is locked, files are out of reach.

    manifest    one row per crawl item
    identities  one row per identity
    noise       every round's judgement, with its `round`
    training    every round's loss, with its `round`
    proposals   every round's proposals to merge or split identities, with its `round`
    decisions   what people decided, undone or not
    contamination  what stands in a protected set too
    metrics     the evaluation, and its differences, roc and scores
    Raises BadInput when the run has no manifest yet, SchemaMismatch when it was written by another version, StaleInput while a
    `purify forget` is not finished.
    """
    require_whole(RunLayout(run))
    if not any(RunLayout(run).manifest.glob("*.parquet")):
        begun = run if RunLayout(run).run_json.exists() else "RUN"
        raise BadInput(f"{run} has no manifest. Make one with `purify run CRAWL {begun}`, or give the folder of a finished run.")
    views = [(name, schema, files) for name, schema, files in _tables(run) if files]
    for _, schema, files in views:
        tables.check(files[0][0], schema)
    connection = duckdb.connect(":memory:")
    connection.execute("SET temp_directory = ?", [_spilled().name])
    confine(connection, {_name(run, path): path for _, _, files in views for path, _ in files})
    for name, _, files in views:
        connection.execute(f"CREATE VIEW {name} AS {_rows_of(run, files)}")
    return connection


def report(run: Path, name: str) -> pa.Table:
    """Rows of the saved query `name`, the kept ones where its answer stands beside the manifest.

    Raises BadInput for a name that does not exist, with those that do, and what `open_run` raises.
    """
    known = saved_queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"There is no saved query {name!r}.{hint} Use one of: {', '.join(known)}.")
    if name == "contamination" and RunLayout(run).manifest.exists() and not RunLayout(run).protected.exists():
        raise BadInput(
            f"{run} protected no evaluation set. Name one with `purify run ... --protect SET`, and the crawl is compared with it."
        )
    open_run(run).close()  # which refuses what is no finished run
    kept = kept_answer(RunLayout(run).manifest, known[name])
    return query(run, known[name].sql) if kept is None else kept


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


@functools.cache
def _spilled() -> tempfile.TemporaryDirectory[str]:
    """Where queries spill to that need more than memory, readable by this user only: names of people go there. Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="purify-")


_WHY = ("status", "status_detail", "reason", "verdict", "rule_verdict", "rule_reason", "decided_by", "clean_identity", "clean_shard")


def why(run: Path, sample_id: str) -> pa.Table:
    """The whole life of a sample, a row per step: as crawled, every round's judgement, every decision, and how it ended. Raises BadInput if unknown."""
    with open_run(run) as connection:
        given = {"sample": sample_id}
        rows = connection.sql("SELECT * FROM manifest WHERE sample_id = $sample", params=given).to_arrow_table().to_pylist()
        if not rows:
            raise BadInput(
                f"There is no sample {sample_id[:80]!r} in {run}. `purify query RUN 'SELECT sample_id FROM manifest'` lists them."
            )
        views = {name for (name,) in connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
        judged = (
            connection.sql("FROM noise WHERE sample_id = $sample ORDER BY round", params=given).to_arrow_table().to_pylist()
            if "noise" in views
            else []
        )
        decided = []
        if "decisions" in views:
            decided = (
                connection.sql("FROM decisions WHERE sample_id = $sample ORDER BY decided_at, decision_id", params=given)
                .to_arrow_table()
                .to_pylist()
            )
    steps = [
        ("crawl", {name: row[name] for name in ("source_uri", "identity", "status", "status_detail", "duplicate_set")}) for row in rows
    ]
    evidence = (
        "angle_deg",
        "consensus_angle_deg",
        "density_angle_deg",
        "other_identity",
        "other_angle_deg",
        "noise_probability",
        "near_duplicate_of",
        "copy_of",
    )
    steps += [
        (f"round {row['round']}", {"verdict": row["verdict"], "reason": row["reason"]} | {name: row[name] for name in evidence})
        for row in judged
    ]
    steps += [
        (f"decision of {row['decided_by']}", {name: row[name] for name in ("verdict", "clean_identity", "note", "decided_at")})
        for row in decided
    ]
    steps += [("manifest", {name: row[name] for name in _WHY}) for row in rows]
    return pa.Table.from_pylist(
        [{"step": step, "what": name, "value": str(value)} for step, facts in steps for name, value in facts.items() if value is not None],
        schema=pa.schema([("step", pa.string()), ("what", pa.string()), ("value", pa.string())]),
    )


def diff(one: Path, other: Path) -> pa.Table:
    """How two runs of one crawl differ: items by (status, verdict) in the first and in the second, most frequent first.

    An item that only one of them has stands there with null in the other.
    """
    for run in (one, other):
        open_run(run).close()  # which refuses what is no finished run
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [spilled])
        return fetch(
            db,
            """SELECT a.status AS status, a.verdict AS verdict, a.reason AS reason, b.status AS other_status, b.verdict AS other_verdict,
                      b.reason AS other_reason, count(*) AS items, count(DISTINCT coalesce(a.identity, b.identity)) AS identities,
                      min(coalesce(a.source_uri, b.source_uri)) AS first_source_uri
               FROM read_parquet($one) a FULL JOIN read_parquet($other) b ON b.source_uri = a.source_uri AND b.identity = a.identity
               GROUP BY ALL ORDER BY items DESC, first_source_uri, status, verdict, other_verdict""",
            {"one": every(RunLayout(one).manifest, "*.parquet"), "other": every(RunLayout(other).manifest, "*.parquet")},
        )


SHARED = 0.5
"""Runs of one crawl share at least this of the smaller one, even when it has grown or been cleared."""


def unlike(differences: pa.Table) -> str | None:
    """What to tell the reader of a `diff` of two runs that hardly share an item; None when they do. Boundary: exactly SHARED is enough."""
    shared, one, other = (
        sum(row["items"] for row in differences.to_pylist() if all(row[status] is not None for status in needed))
        for needed in (("status", "other_status"), ("status",), ("other_status",))
    )
    if shared >= SHARED * min(one, other):
        return None
    return (
        f"Only {shared:,} items are in both runs, of {one:,} and {other:,}: these are runs of different crawls, or of one crawl from different "
        "places, and the counts say little. An item is the same when its identity and its source_uri are; `purify inspect CRAWL` shows both."
    )


def _tables(run: Path) -> Iterator[tuple[str, pa.Schema, list[tuple[Path, int | None]]]]:
    """(view, schema, its files, each with its round)."""
    layout = RunLayout(run)
    rounds = layout.rounds
    yield "manifest", tables.MANIFEST, [(path, None) for path in sorted(layout.manifest.glob("*.parquet"))]
    yield "identities", tables.IDENTITIES, [(path, None) for path in (layout.identities,) if path.exists()]
    yield "noise", tables.NOISE, [(path, one.number) for one in rounds for path in sorted(one.noise.glob("raw-*.parquet"))]
    yield "proposals", tables.PROPOSALS, [(path, one.number) for one in rounds if (path := one.noise / "proposals.parquet").exists()]
    yield "decisions", tables.DECISIONS, [(path, None) for path in sorted(layout.decisions.glob("*.parquet"))]
    contamination = layout.protected / "contamination.parquet"
    yield "contamination", tables.CONTAMINATION, [(path, None) for path in (contamination,) if path.exists()]
    yield "training", tables.METRICS_OF_TRAINING, [(path, one.number) for one in rounds if (path := one.train / "metrics.parquet").exists()]
    for name, schema in (("metrics", tables.METRICS), ("differences", tables.DIFFERENCES), ("roc", tables.ROC), ("scores", tables.SCORES)):
        yield name, schema, [(path, None) for path in (layout.evaluation / f"{name}.parquet",) if path.exists()]


def _name(run: Path, path: Path) -> str:
    """The name of a file of the run in SQL."""
    return f"{ROOT}{path.relative_to(run).as_posix()}"


def _rows_of(run: Path, files: list[tuple[Path, int | None]]) -> str:
    """SQL of the rows of the files, with a column `round` where they belong to rounds."""
    selects = []
    for number, some in itertools.groupby(files, key=lambda file: file[1]):
        names = ", ".join("'" + _name(run, path).replace("'", "''") + "'" for path, _ in some)
        of_round = "" if number is None else f", {number}::SMALLINT AS round"
        selects.append(f"SELECT *{of_round} FROM read_parquet([{names}], hive_partitioning = false)")
    return " UNION ALL ".join(selects)


def _help(connection: duckdb.DuckDBPyConnection) -> str:
    views = connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name").fetchall()
    return f"Views of this run: {', '.join(name for (name,) in views)}. `DESCRIBE manifest` lists columns."
