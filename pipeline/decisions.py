"""What people decided: append-only files in RUN/decisions/, one per act. The last standing decision on a sample wins over every rule.

Nothing is ever rewritten: to undo is one more row, which names the decision that no longer stands. A decision changes the manifest, the clean
shards and the training of later rounds at the next `purify run`, or the manifest and the shards alone with `purify export`.
"""

import csv
import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.receipts import atomic
from pipeline.run_folder import require_whole

VERDICTS = ("keep", "drop", "relabel")
_UNDO = "undo"
_LONGEST = 2000
_MOST_ROWS = 10_000_000


def decide(run: Path, wanted: Iterable[dict[str, Any]], *, by: str, dry_run: bool = False) -> int:
    """Record decisions, all or none; how many. With `dry_run` they are checked only.

    Each is a dict of sample_id, verdict (keep, drop, relabel), and perhaps clean_identity and note.
    Raises BadInput: for a sample that the manifest does not have with status `ok`, for a verdict that does not exist, for a relabel without an
    identity, for a text longer than 2,000 characters, and when nobody signs.
    """
    rows = [_checked(row, number) for number, row in enumerate(wanted, 1)]
    if not by.strip() or len(by) > _LONGEST:
        raise BadInput("A decision wants a name under it: give --by NAME.")
    if not rows:
        raise BadInput("There is nothing to decide: the file has no rows.")
    _require_samples(run, [row["sample_id"] for row in rows])
    return len(rows) if dry_run else _append(run, rows, by)


def undo(run: Path, samples: Iterable[str], *, by: str, note: str = "") -> int:
    """Undo the standing decisions on these samples; what stood before stands again. Raises BadInput where nothing stands."""
    standing = {row["sample_id"]: row["decision_id"] for row in read_standing(run).to_pylist()}
    rows = []
    for sample in samples:
        if sample not in standing:
            raise BadInput(f"No decision stands on sample {sample[:80]!r}. `purify query RUN 'FROM decisions'` lists them.")
        rows.append({"sample_id": sample, "verdict": _UNDO, "note": note, "undoes": standing[sample]})
    return _append(run, rows, by)


def read_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a decision file, Parquet or CSV, with columns sample_id and verdict, and perhaps clean_identity and note. Nothing in it is run."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
        else:
            if pq.read_metadata(path).num_rows > _MOST_ROWS:
                raise BadInput(f"{path} has more than {_MOST_ROWS:,} rows. Give them in several files.")
            table = pq.read_table(path)
            _require_columns(path, table.column_names)
            rows = table.select([name for name in table.column_names if name in _COLUMNS]).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as decisions: {error}. Give a .parquet or .csv file with sample_id and verdict.") from error
    if rows:
        _require_columns(path, list(rows[0]))
    return [{name: row.get(name) for name in _COLUMNS} for row in rows]


def _require_columns(path: Path, names: list[str]) -> None:
    if not {"sample_id", "verdict"} <= set(names):
        raise BadInput(f"{path} has columns {', '.join(map(str, names))}; a decision file has sample_id and verdict.")


_COLUMNS = ("sample_id", "verdict", "clean_identity", "note")


def read_standing(run: Path) -> pa.Table:
    """The decisions that stand, at most one for a sample: the last one that was not undone."""
    folder = RunLayout(run).decisions
    if not any(folder.glob("*.parquet")):
        return tables.DECISIONS.empty_table()
    with duckdb.connect() as db:
        return fetch(
            db,
            f"""WITH said AS (FROM read_parquet($files) WHERE verdict <> '{_UNDO}'),
                     undone AS (SELECT undoes FROM read_parquet($files) WHERE verdict = '{_UNDO}')
                SELECT * FROM said WHERE decision_id NOT IN (SELECT undoes FROM undone WHERE undoes IS NOT NULL)
                QUALIFY row_number() OVER (PARTITION BY sample_id ORDER BY decided_at DESC, decision_id DESC) = 1 ORDER BY sample_id""",
            {"files": every(folder, "*.parquet")},
        ).cast(tables.DECISIONS)


def digest(standing: pa.Table | None) -> str:
    """Hex digest of the decisions that stand; `none` when nothing does."""
    table = tables.DECISIONS.empty_table() if standing is None else standing
    if table.num_rows == 0:
        return "none"
    text = repr(table.select(["sample_id", "verdict", "clean_identity", "decided_by"]).to_pylist())
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(row: dict[str, Any], number: int) -> dict[str, Any]:
    texts = {name: row.get(name) for name in _COLUMNS}
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or len(text) > _LONGEST):
            raise BadInput(f"Row {number}: {name} is to be a text of at most {_LONGEST} characters.")
    if not texts["sample_id"]:
        raise BadInput(f"Row {number} names no sample_id.")
    if texts["verdict"] not in VERDICTS:
        raise BadInput(f"Row {number}: verdict {texts['verdict']!r} is none of {', '.join(VERDICTS)}.")
    if (texts["verdict"] == "relabel") != bool(texts["clean_identity"]):
        raise BadInput(f"Row {number}: `relabel` wants a clean_identity, and nothing else takes one.")
    return texts | {"clean_identity": texts["clean_identity"] or None, "undoes": None}


def _require_samples(run: Path, samples: list[str]) -> None:
    layout = RunLayout(run)
    if not any(layout.manifest.glob("part-*.parquet")):
        raise BadInput(f"{run} has no manifest yet, so there is nothing to decide on. Run `purify run` first.")
    with duckdb.connect() as db:
        db.register("wanted", pa.table({"sample_id": samples}))
        unknown = fetch(
            db,
            "SELECT sample_id FROM wanted WHERE sample_id NOT IN (SELECT sample_id FROM read_parquet($manifest) WHERE status = 'ok')",
            {"manifest": every(layout.manifest, "part-*.parquet")},
        )
    if unknown.num_rows:
        first = unknown["sample_id"][0].as_py()
        raise BadInput(
            f"{unknown.num_rows} of {len(samples)} samples are not in this run with status `ok`; the first is {first[:80]!r}. Nothing was recorded."
        )


def _append(run: Path, rows: list[dict[str, Any]], by: str) -> int:
    require_whole(RunLayout(run))
    folder = RunLayout(run).decisions
    folder.mkdir(parents=True, exist_ok=True)
    # Two people may decide in the same second; nobody's act sorts before one that stood already.
    now = max(datetime.now(UTC), _last(folder))
    act = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
    whole = [row | {"decision_id": f"{act}-{number:08d}", "decided_by": by, "decided_at": now} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist([{name: row.get(name) for name in tables.DECISIONS.names} for row in whole], schema=tables.DECISIONS)
    with atomic(folder / f"{act}.parquet") as temporary:
        pq.write_table(table, temporary)
    return len(rows)


def _last(folder: Path) -> datetime:
    """A microsecond after the latest act, so that a clock set back reverses no order."""
    latest = max((path.name[:21] for path in folder.glob("*.parquet")), default="")
    if not latest:
        return datetime.min.replace(tzinfo=UTC)
    stamp = datetime.strptime(latest, "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
    return datetime.fromtimestamp(stamp.timestamp() + 2e-6, UTC)
