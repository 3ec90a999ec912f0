"""What people decided: append-only files in RUN/decisions/, one per act. The last standing decision on a sample wins over every rule.

Nothing is ever rewritten: to undo is one more row, which names the decision that no longer stands. A decision changes the manifest, the clean
shards and the training of later rounds at the next `purify run`, or the manifest and the shards alone with `purify export`.
"""

import csv
import hashlib
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.forgotten import plain
from pipeline.layout import RunLayout
from pipeline.receipts import atomic
from pipeline.run_folder import require_whole
from pipeline.visible import visible

VERDICTS = ("keep", "drop", "relabel")
_UNDO = "undo"
_LONGEST = 2000
_MOST_ROWS = 10_000_000
_MOST_NAMES = 5
_NEAR = 0.85
"""Jaro-Winkler similarity, 0..1, from which a name is proposed for another."""


def decide(
    run: Path,
    wanted: Iterable[dict[str, Any]],
    *,
    by: str,
    new_identities: bool = False,
    dry_run: bool = False,
    standing: Mapping[str, dict[str, Any]] | None = None,
) -> int:
    """Record decisions, all or none; how many. With `dry_run` they are checked only.

    Each is a dict of sample_id, verdict (keep, drop, relabel), and perhaps clean_identity (taken in Unicode's form NFC, as the crawl's) and note.
    A sample that is given twice with the same verdict is one decision. One that stands already, by the same person with the same verdict, identity
    and note, is not recorded again. `new_identities`: a relabel may be to a name that neither the crawl nor a standing decision has. `standing`: the
    decisions that stand, by sample_id, where the caller has read them.
    Raises BadInput: for a sample that the manifest does not have with status `ok`, for a verdict that does not exist, for two verdicts on a sample,
    for a relabel without an identity or to an unknown one, for a text longer than 2,000 characters, and when nobody signs with a name that can be seen.
    """
    rows = _once([_checked(row, number) for number, row in enumerate(wanted, 1)])
    _require_signed(by)
    if not rows:
        raise BadInput("There is nothing to decide: the file has no rows.")
    _require_samples(run, [row["sample_id"] for row in rows.values()])
    if not new_identities:
        _require_identities(run, {row["clean_identity"]: number for number, row in reversed(rows.items()) if row["clean_identity"]})
    said = standing_on(run, [row["sample_id"] for row in rows.values()]) if standing is None else standing
    new = [row for row in rows.values() if not _stands(row, said.get(row["sample_id"]), by)]
    return len(new) if dry_run or not new else _append(run, new, by)


def undo(run: Path, samples: Iterable[str], *, by: str, of: str | None = None, note: str = "") -> int:
    """Undo the decisions of `by` that stand on these samples, all or none; how many. What stood before stands again.

    `of`: whose decisions, where they are not the own ones. Raises BadInput where nothing stands, or what stands is somebody else's.
    """
    _require_signed(by)
    wanted = list(dict.fromkeys(samples))
    standing = standing_on(run, wanted)
    whose = by if of is None else of
    rows = []
    for sample in wanted:
        if sample not in standing:
            raise BadInput(f"No decision stands on sample {sample[:80]!r}. `purify query RUN 'FROM decisions'` lists them.")
        if (decided_by := standing[sample]["decided_by"]) != whose:
            raise BadInput(
                f"No decision of {whose!r} stands on sample {sample[:80]!r}: the one that stands is of {decided_by!r}. Nothing was undone. "
                f"To take that one back all the same: --of {shlex.quote(decided_by)}"
            )
        rows.append({"sample_id": sample, "verdict": _UNDO, "note": note, "undoes": standing[sample]["decision_id"]})
    return _append(run, rows, by)


def _require_signed(by: str) -> None:
    if not by.strip() or len(by) > _LONGEST:
        raise BadInput("A decision wants a name under it: give --by NAME.")
    if visible(by) != by:
        raise BadInput(
            f"--by {visible(by)!r} has characters that are not seen, and that nobody could type again. Give a name without them."
        )


def _stands(row: dict[str, Any], said: dict[str, Any] | None, by: str) -> bool:
    """Whether `said`, the decision that stands on the sample of `row`, is the same one by the same person."""
    return (
        said is not None
        and said["decided_by"] == by
        and all((row[name] or None) == (said[name] or None) for name in ("verdict", "clean_identity", "note"))
    )


def read_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a decision file, Parquet or CSV, with columns sample_id and verdict, and perhaps clean_identity and note. Nothing in it is run.

    Raises BadInput: for a file that cannot be read, without the columns, with two of one name, or with a row of another length than the header.
    """
    try:
        if path.suffix.lower() == ".csv":
            rows = _read_csv(path)
        else:
            if pq.read_metadata(path).num_rows > _MOST_ROWS:
                raise BadInput(f"{path} has more than {_MOST_ROWS:,} rows. Give them in several files.")
            _require_columns(path, names := pq.read_schema(path).names)
            rows = pq.read_table(path, columns=[name for name in names if name in _COLUMNS]).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        told = str(error).rstrip(".")
        raise BadInput(f"{path} cannot be read as decisions: {told}. Give a .parquet or .csv file with sample_id and verdict.") from error
    return [{name: row.get(name) for name in _COLUMNS} for row in rows]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        names: list[str] = []
        begin = 1
        try:
            for fields in lines:
                begin, at = lines.line_num + 1, begin
                if not fields:
                    continue
                if not names:
                    _require_columns(path, names := fields)
                elif len(fields) == len(names):
                    rows.append(dict(zip(names, fields, strict=True)))
                else:
                    raise BadInput(
                        f"{path}, row {len(rows) + 1} (line {at}) has {len(fields)} fields, and the header {len(names)}. Nothing was recorded: "
                        'a text with a comma or a line break in it stands in quotes, "so, as here".'
                    )
        except csv.Error as error:
            raise BadInput(
                f"{path}, row {len(rows) + 1} (line {begin}): {str(error).rstrip('.')}. Nothing was recorded: a text has at most {_LONGEST:,} "
                "characters, and a quote that opens it is closed."
            ) from error
    return rows


def _require_columns(path: Path, names: list[str]) -> None:
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise BadInput(f"{path} has two columns {twice[:80]!r}, and nothing says which one counts. Leave one.")
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


def standing_on(run: Path, samples: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The decisions that stand on some samples, by sample_id."""
    table = read_standing(run)
    rows = table.filter(pc.is_in(table["sample_id"], value_set=pa.array(samples, pa.string()))).to_pylist()
    return {row["sample_id"]: row for row in rows}


def digest(standing: pa.Table | None) -> str:
    """Hex digest of the decisions that stand; `none` when nothing does."""
    table = tables.DECISIONS.empty_table() if standing is None else standing
    if table.num_rows == 0:
        return "none"
    text = repr(table.select(["sample_id", "verdict", "clean_identity", "decided_by"]).to_pylist())
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(row: dict[str, Any], number: int) -> dict[str, Any]:
    texts: dict[str, Any] = {name: row.get(name) for name in _COLUMNS}
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or len(text) > _LONGEST):
            raise BadInput(f"Row {number}: {name} is to be a text of at most {_LONGEST} characters.")
    if not texts["sample_id"]:
        raise BadInput(f"Row {number} names no sample_id.")
    if texts["verdict"] not in VERDICTS:
        raise BadInput(f"Row {number}: verdict {texts['verdict']!r} is none of {', '.join(VERDICTS)}.")
    if (texts["verdict"] == "relabel") != bool(texts["clean_identity"]):
        raise BadInput(f"Row {number}: `relabel` wants a clean_identity, and nothing else takes one.")
    identity = plain(texts["clean_identity"]) if texts["clean_identity"] else None
    return texts | {"clean_identity": identity, "note": texts["note"] or None, "undoes": None}


def _once(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Rows by their number, of each sample the first. Raises BadInput where a later one says something else."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        earlier = first.setdefault(row["sample_id"], number)
        if any(row[name] != rows[earlier - 1][name] for name in ("verdict", "clean_identity")):
            raise BadInput(
                f"Rows {earlier} and {number} decide differently on sample {row['sample_id'][:80]!r}. Nothing was recorded: leave one."
            )
    return {number: rows[number - 1] for number in first.values()}


def _require_identities(run: Path, named: dict[str, int]) -> None:
    """Raise BadInput for names (with the rows that they are first in) that neither the crawl nor a standing decision has; the nearest ones are told."""
    unknown = named.keys() - set(read_standing(run)["clean_identity"].to_pylist())
    if not unknown:
        return
    with duckdb.connect() as db:
        db.register("wanted", pa.table({"name": sorted(unknown, key=lambda name: named[name])}))
        files = {"manifest": every(RunLayout(run).manifest, "part-*.parquet")}
        db.execute("CREATE TEMP TABLE known AS SELECT DISTINCT identity FROM read_parquet($manifest)", files)
        missing = [name for (name,) in db.execute("SELECT name FROM wanted WHERE name NOT IN (FROM known)").fetchall()]
        if not missing:
            return
        told = [f"Row {named[name]}: {name[:80]!r} is no identity of this run.{_did_you_mean(db, name)}" for name in missing[:_MOST_NAMES]]
    more = [f"... and {len(missing) - _MOST_NAMES} more names."] if len(missing) > _MOST_NAMES else []
    raise BadInput("\n".join([*told, *more, "Nothing was recorded. Where a new identity is meant: --new-identity"]))


def _did_you_mean(db: duckdb.DuckDBPyConnection, name: str) -> str:
    near = db.execute(
        """SELECT identity FROM (SELECT identity, jaro_winkler_similarity(lower(identity), lower($name)) AS likeness FROM known)
           WHERE likeness >= $least ORDER BY likeness DESC, identity LIMIT 3""",
        {"name": name, "least": _NEAR},
    ).fetchall()
    return f" Did you mean {' or '.join(repr(identity[:80]) for (identity,) in near)}?" if near else ""


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
