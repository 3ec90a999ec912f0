"""What the overview tells: where every crawl item went, angles and where the rule cuts, and whether it helped. Sums over tables, drawn as SVG."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
from markupsafe import Markup

from pipeline import tables
from pipeline.layout import RunLayout
from pipeline.pages.histogram import Series, histogram_svg
from pipeline.report import round_numbers

BIN_DEG = 3


def overview(db: duckdb.DuckDBPyConnection, run: Path) -> dict[str, Any]:
    """What the template of the overview is given of a run; `db` is `report.open_run` of it."""
    return {
        "statuses": _crosstab(db),
        "reasons": _rows(db, _REASONS_SQL),
        "by_people": _rows(db, _PEOPLE_SQL)[0]["items"],
        "rounds": _rounds(db, run),
        "evaluation": _evaluation(db),
        "verdicts": list(tables.VERDICTS),
    }


_REASONS_SQL = "SELECT verdict, reason, count(*) AS items FROM manifest GROUP BY ALL ORDER BY items DESC, verdict, reason"
_PEOPLE_SQL = "SELECT count(*) AS items FROM manifest WHERE decided_by <> 'ingest' AND NOT starts_with(decided_by, 'rule:')"
_ANGLES_SQL = """
    SELECT round, coalesce(nearest_subcenter = dominant_subcenter, true) AS is_dominant,
        CAST(least(floor(angle_deg / $bin), $bins - 1) AS INTEGER) AS bin, count(*) AS samples
    FROM noise WHERE angle_deg IS NOT NULL AND NOT isnan(angle_deg) GROUP BY ALL
"""


def _rows(db: duckdb.DuckDBPyConnection, sql: str, **given: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = db.sql(sql, params=given or None).to_arrow_table().to_pylist()
    return rows


def _has(db: duckdb.DuckDBPyConnection, view: str) -> bool:
    return bool(_rows(db, "SELECT 1 FROM duckdb_views() WHERE view_name = $view", view=view))


def _crosstab(db: duckdb.DuckDBPyConnection) -> list[tuple[str, dict[str, int]]]:
    """(status, items by verdict), in the order of `tables.STATUSES`; every item of the crawl is counted in exactly one cell."""
    cells: dict[str, dict[str, int]] = {}
    for row in _rows(db, "SELECT status, verdict, count(*) AS items FROM manifest GROUP BY ALL"):
        cells.setdefault(row["status"], dict.fromkeys(tables.VERDICTS, 0))[row["verdict"]] = row["items"]
    order = list(tables.STATUSES)
    return sorted(cells.items(), key=lambda cell: order.index(cell[0]) if cell[0] in order else len(order))


def _rounds(db: duckdb.DuckDBPyConnection, run: Path) -> list[dict[str, Any]]:
    """Per round: its number, what its judge estimated, its angles as a chart and as rows."""
    if not _has(db, "noise"):
        return []
    bins = 180 // BIN_DEG
    counts: dict[int, dict[bool, list[int]]] = defaultdict(lambda: {True: [0] * bins, False: [0] * bins})
    for row in _rows(db, _ANGLES_SQL, bin=BIN_DEG, bins=bins):
        counts[row["round"]][row["is_dominant"]][row["bin"]] = row["samples"]
    rounds = []
    for number in round_numbers(run):
        if number not in counts:
            continue
        judge = _judge(RunLayout(run).round(number).noise / "judge.json")
        dominant, other = counts[number][True], counts[number][False]
        series = [Series("nearest to the dominant sub-center", dominant), Series("nearest to another sub-center", other)]
        series = series if any(other) else [Series("all samples (one center)", dominant)]
        total, cut = sum(dominant) + sum(other), judge.get("max_angle_deg")
        described = (
            f"Round {number}: {total} samples by angle to the dominant sub-center, {sum(other)} of them nearest to another sub-center"
        )
        svg = histogram_svg(series, bin_deg=BIN_DEG, cut_deg=cut, name=f"round-{number}", description=described)
        table = [(place * BIN_DEG, own, off) for place, (own, off) in enumerate(zip(dominant, other, strict=True)) if own or off]
        rounds.append({"number": number, "judge": judge, "series": series, "svg": Markup(svg), "table": table})  # noqa: S704 - built by us
    return rounds


def _judge(path: Path) -> dict[str, Any]:
    """What the judge of a round estimated, without the numbers that it could not; empty when it left nothing."""
    facts = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: value for name, value in facts.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _evaluation(db: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """Backbones, and per (dataset, metric) a row of their values with the change from the first to the last; None when not evaluated."""
    if not _has(db, "metrics"):
        return None
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in _rows(db, "SELECT * FROM metrics ORDER BY dataset, metric, backbone"):
        cells[row["dataset"], row["metric"]][row["backbone"]] = row
    backbones = sorted({name for values in cells.values() for name in values})
    rows = []
    for (dataset, metric), values in cells.items():
        first, last = (values.get(name, {}).get("value") for name in (backbones[0], backbones[-1]))
        change = last - first if len(backbones) > 1 and first is not None and last is not None else None
        rows.append({"dataset": dataset, "metric": metric, "values": [values.get(name) for name in backbones], "change": change})
    return {"backbones": backbones, "rows": rows}
