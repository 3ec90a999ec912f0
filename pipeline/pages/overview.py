"""What the overview tells: where every crawl item went, angles and where the rule cuts, who is dropped, and whether it helped.

Sums over tables, drawn as SVG. Every figure of a chart also stands in a table or a caption.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from markupsafe import Markup

from pipeline import tables
from pipeline.duck import fetch, literal
from pipeline.layout import RunLayout
from pipeline.pages.flow import Route, flow_svg
from pipeline.pages.histogram import Series, histogram_svg
from pipeline.pages.lines import Curve, curves_svg
from pipeline.pages.text import SPOKEN
from pipeline.report import report
from pipeline.shards import shard_stems

BIN_DEG = 3
PAPER_DEG = 75.0
"""The constant cut of the paper."""
_POINTS = 240
"""Points of a curve at most: a page has no use for more."""


def overview(db: duckdb.DuckDBPyConnection, run: Path) -> dict[str, Any]:
    """What the template of the overview is given of a run; `db` is `report.open_run` of it."""
    numbers = [number for number in RunLayout(run).round_numbers if _has(db, "noise")]
    judges = {number: _judge(RunLayout(run).round(number).noise / "judge.json") for number in numbers}
    return {
        "flow": _flow(db),
        "exported": _rows(db, "SELECT count(clean_identity) AS samples FROM manifest")[0]["samples"],
        "statuses": _crosstab(db),
        "reasons": _rows(db, _REASONS_SQL),
        "by_people": _rows(db, _PEOPLE_SQL)[0]["items"],
        "rounds": _rounds(db, judges),
        "sweep": _sweep(db, judges[numbers[-1]] if numbers else {}),
        "changes": _changes(RunLayout(run), numbers),
        "pairs": pairs(db),
        "sources": _sources(db, run),
        "groups": _groups(run),
        "training": _training(db),
        "evaluation": _evaluation(db),
        "roc": _roc(RunLayout(run).evaluation / "roc.parquet"),
        "verdicts": list(tables.VERDICTS),
    }


_FLOW_SQL = """
    SELECT status, rule_verdict, verdict, starts_with(decided_by, 'person:') AS by_person, clean_identity IS NOT NULL AS is_exported, count(*) AS items
    FROM manifest GROUP BY ALL
"""
_REASONS_SQL = "SELECT verdict, reason, count(*) AS items FROM manifest GROUP BY ALL ORDER BY items DESC, verdict, reason"
_PEOPLE_SQL = "SELECT count(*) AS items FROM manifest WHERE starts_with(decided_by, 'person:')"
_ANGLES_SQL = """
    SELECT round, coalesce(nearest_subcenter = dominant_subcenter, true) AS is_dominant,
        CAST(least(floor(angle_deg / $bin), $bins - 1) AS INTEGER) AS bin, count(*) AS samples
    FROM noise WHERE angle_deg IS NOT NULL AND NOT isnan(angle_deg) GROUP BY ALL
"""
_SWEEP_SQL = """
    SELECT CAST(ceil(angle_deg) AS INTEGER) AS degree, count(*) AS samples, sum(noise_probability) AS noise
    FROM manifest WHERE status = 'ok' AND angle_deg IS NOT NULL AND NOT isnan(angle_deg) AND noise_probability IS NOT NULL GROUP BY ALL
"""
_CHANGES_SQL = """
    SELECT a.verdict AS before, b.verdict AS after, count(*) AS samples
    FROM read_parquet($first) a JOIN read_parquet($last) b ON b.source_uri = a.source_uri GROUP BY ALL
"""
_PAIRS_SQL = """
    WITH asked AS (
        SELECT kind, identity, other_identity, samples, other_samples, least(share_near, other_share_near) AS share_near, center_angle_deg
        FROM proposals WHERE kind IN ('merge', 'review') AND round = (SELECT max(round) FROM proposals)
        ORDER BY kind, share_near DESC, samples + other_samples DESC, identity, other_identity LIMIT $most),
    moved AS (
        SELECT identity, clean_identity, count(*) AS samples FROM manifest
        WHERE clean_identity <> identity AND identity IN (SELECT identity FROM asked UNION SELECT other_identity FROM asked) GROUP BY ALL)
    SELECT asked.*, coalesce(there.samples, 0) + coalesce(back.samples, 0) AS moved
    FROM asked LEFT JOIN moved there ON there.identity = asked.identity AND there.clean_identity = asked.other_identity
    LEFT JOIN moved back ON back.identity = asked.other_identity AND back.clean_identity = asked.identity
    ORDER BY kind, share_near DESC, asked.samples + other_samples DESC, asked.identity, asked.other_identity
"""
PAIRS = 12
"""Pairs of names shown, the surest first."""
_TRAINING_SQL = """
    SELECT round, CAST(avg(step) AS DOUBLE) AS step, avg(loss) AS loss
    FROM (SELECT *, ntile($points) OVER (PARTITION BY round ORDER BY step) AS part FROM training WHERE loss IS NOT NULL)
    GROUP BY round, part ORDER BY round, step
"""


def pairs(db: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The names that the last round takes for one person, and then those of which it is not sure."""
    return _rows(db, _PAIRS_SQL, most=PAIRS) if _has(db, "proposals") else []


def _rows(db: duckdb.DuckDBPyConnection, sql: str, **given: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = db.sql(sql, params=given or None).to_arrow_table().to_pylist()
    return rows


def _has(db: duckdb.DuckDBPyConnection, view: str) -> bool:
    return bool(_rows(db, "SELECT 1 FROM duckdb_views() WHERE view_name = $view", view=view))


def _svg(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - built by us, from escaped texts


def _flow(db: duckdb.DuckDBPyConnection) -> Markup:
    """From crawl items over what ingest found and the rule said to what people say and to the clean shards."""
    rows = _rows(db, _FLOW_SQL)
    has_people = any(row["by_person"] for row in rows)
    statuses, verdicts = list(tables.STATUSES), list(tables.VERDICTS)
    routes: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    rank: dict[tuple[tuple[str, ...], str], tuple[int, ...]] = {}
    for row in rows:
        status, verdict = row["status"], row["verdict"]
        nodes: tuple[str, ...] = ("items", "samples" if status == "ok" else status.replace("_", " "))
        if status == "ok":
            said = row["rule_verdict"] or verdict
            nodes += (SPOKEN[said], *([SPOKEN[verdict]] if has_people else []), "exported" if row["is_exported"] else "not exported")
        key = nodes, verdict if status == "ok" else "unusable"
        routes[key] += row["items"]
        rank[key] = (
            statuses.index(status),
            verdicts.index(row["rule_verdict"] or verdict),
            verdicts.index(verdict),
            not row["is_exported"],
        )
    columns = ["Crawl", "Read", "The rule says", *(["People say"] if has_people else []), "Clean shards"]
    ordered = [Route(nodes, kind, routes[nodes, kind]) for nodes, kind in sorted(routes, key=lambda key: rank[key])]
    told = "; ".join(f"{' to '.join(route.nodes)}: {route.items:,}" for route in ordered)
    return _svg(flow_svg(ordered, columns, name="flow", description=f"Where every item went. {told}"))


def _crosstab(db: duckdb.DuckDBPyConnection) -> list[tuple[str, dict[str, int]]]:
    """(status, items by verdict), in the order of `tables.STATUSES`; every item of the crawl is counted in exactly one cell."""
    cells: dict[str, dict[str, int]] = {}
    for row in _rows(db, "SELECT status, verdict, count(*) AS items FROM manifest GROUP BY ALL"):
        cells.setdefault(row["status"], dict.fromkeys(tables.VERDICTS, 0))[row["verdict"]] = row["items"]
    order = list(tables.STATUSES)
    return sorted(cells.items(), key=lambda cell: order.index(cell[0]) if cell[0] in order else len(order))


def _rounds(db: duckdb.DuckDBPyConnection, judges: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Per round: its number, what its judge estimated, its angles as a chart and as rows."""
    if not judges:
        return []
    bins = 180 // BIN_DEG
    counts: dict[int, dict[bool, list[int]]] = defaultdict(lambda: {True: [0] * bins, False: [0] * bins})
    for row in _rows(db, _ANGLES_SQL, bin=BIN_DEG, bins=bins):
        counts[row["round"]][row["is_dominant"]][row["bin"]] = row["samples"]
    rounds = []
    for number, judge in judges.items():
        if number not in counts:
            continue
        dominant, other = counts[number][True], counts[number][False]
        series = [Series("nearest to the dominant sub-center", dominant), Series("nearest to another sub-center", other)]
        series = series if any(other) else [Series("all samples (one center)", dominant)]
        total = sum(dominant) + sum(other)
        described = (
            f"Round {number}: {total} samples by angle to the dominant sub-center, {sum(other)} of them nearest to another sub-center"
        )
        svg = histogram_svg(series, bin_deg=BIN_DEG, cuts=_cuts(judge), name=f"round-{number}", description=described)
        table = [(place * BIN_DEG, own, off) for place, (own, off) in enumerate(zip(dominant, other, strict=True)) if own or off]
        rounds.append({"number": number, "judge": judge, "series": series, "svg": _svg(svg), "table": table})
    return rounds


def _cuts(judge: dict[str, Any]) -> list[tuple[float, str]]:
    """Where the rule cuts, or where the calibration finds even odds; and the paper's cut beside it."""
    if (cut := judge.get("max_angle_deg")) is not None:
        return [(cut, f"cut at {cut:.1f}°"), *([] if cut == PAPER_DEG else [(PAPER_DEG, "paper 75°")])]
    if even := _even_odds_deg(judge):
        return [(even, f"even odds {even:.1f}°"), (PAPER_DEG, "paper 75°")]
    return []


def _even_odds_deg(judge: dict[str, Any]) -> float | None:
    """The angle to an identity's consensus up to which a sample is more probably right than not, as this round's calibration has it."""
    probability = (judge.get("calibration") or {}).get("probability") or []
    below = sum(one <= 0.5 for one in probability)
    return (below - 0.5) * 180 / len(probability) if below else None


def _judge(path: Path) -> dict[str, Any]:
    """What the judge of a round estimated, without the numbers that it could not; empty when it left nothing."""
    facts = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: value for name, value in facts.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _sweep(db: duckdb.DuckDBPyConnection, judge: dict[str, Any]) -> dict[str, Any] | None:
    """What a cut by angle alone would keep, and what of it would be noise, by the probabilities of the last round; None when there are none."""
    found = {row["degree"]: (row["samples"], row["noise"]) for row in _rows(db, _SWEEP_SQL)}
    total, noise = (sum(row[place] for row in found.values()) for place in (0, 1))
    if not total or total == noise:
        return None
    rows = []
    for cut in range(40, 111):
        kept = [row for degree, row in found.items() if degree <= cut]
        samples, wrong = sum(row[0] for row in kept), sum(row[1] for row in kept)
        if samples:
            lost = 1 - (samples - wrong) / (total - noise)
            rows.append({"cut": cut, "kept": samples / total, "noise": wrong / samples, "lost": lost})
    names = {"kept": "samples kept", "noise": "noise among the kept", "lost": "clean samples lost"}
    curves = [Curve(label, [(row["cut"], 100 * row[name]) for row in rows]) for name, label in names.items()]
    described = (
        "Samples kept, noise among them and clean samples lost, for every cut from 40 to 110 degrees; the table below has the figures"
    )
    svg = curves_svg(
        curves,
        name="sweep",
        description=described,
        x_label="cut in degrees",
        top=100.0,
        unit=" %",
        marks=_cuts(judge)[:1] or [(PAPER_DEG, "paper 75°")],
    )
    return {"svg": _svg(svg), "curves": curves, "rows": [row for row in rows if row["cut"] % 5 == 0]}


def _changes(run: RunLayout, numbers: Sequence[int]) -> dict[str, Any] | None:
    """Verdicts of the first round by those of the last, as the rule gave them; None with one round. Shard by shard, so memory holds one."""
    if len(numbers) < 2:
        return None
    first, last = run.round(numbers[0]).noise, run.round(numbers[-1]).noise
    cells = {before: dict.fromkeys(tables.VERDICTS, 0) for before in tables.VERDICTS}
    with duckdb.connect() as db:
        for stem in shard_stems(first):
            given = {"first": literal(first / f"{stem}.parquet"), "last": literal(last / f"{stem}.parquet")}
            for row in fetch(db, _CHANGES_SQL, given).to_pylist():
                cells[row["before"]][row["after"]] += row["samples"]
    return {"first": numbers[0], "last": numbers[-1], "cells": cells}


def _sources(db: duckdb.DuckDBPyConnection, run: Path) -> list[dict[str, Any]]:
    """Noise by source, the noisiest twelve; none when the sources are the identities, as in a crawl of a folder per name."""
    rows = report(run, "sources").to_pylist()
    names = {
        row["identity"]
        for row in _rows(
            db, "SELECT DISTINCT identity FROM manifest WHERE list_contains($names, identity)", names=[row["source"] for row in rows]
        )
    }
    return [] if names else rows[:12]


def _groups(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Shares of samples removed, by kind of group."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in report(run, "groups").to_pylist():
        kinds[row["kind"]].append(row)
    return dict(kinds)


def _training(db: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    if not _has(db, "training"):
        return None
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in _rows(db, _TRAINING_SQL, points=_POINTS):
        points[row["round"]].append((row["step"], row["loss"]))
    curves = [Curve(f"round {number}", some) for number, some in points.items()]
    told = "; ".join(f"{one.name} from {one.points[0][1]:.2f} to {one.points[-1][1]:.2f}" for one in curves)
    svg = curves_svg(curves, name="training", description=f"Training loss over steps: {told}", x_label="step")
    return {"svg": _svg(svg), "curves": curves, "told": told}


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


def _roc(path: Path) -> list[dict[str, Any]]:
    """Per dataset, its chart and the curve of every backbone."""
    if not path.exists():
        return []
    points: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in (
        pq.read_table(path)
        .sort_by([("dataset", "ascending"), ("backbone", "ascending"), ("far", "ascending"), ("tar", "ascending")])
        .to_pylist()
    ):
        points[row["dataset"]][row["backbone"]].append((row["far"], row["tar"]))
    charts = []
    for number, (dataset, backbones) in enumerate(points.items()):
        curves = [Curve(name, _thinned(some)) for name, some in backbones.items()]
        described = f"True accept rate over false accept rate on {dataset}, for {', '.join(backbones)}"
        svg = curves_svg(curves, name=f"roc-{number}", description=described, x_label="false accept rate", top=1.0, is_log=True)
        charts.append({"dataset": dataset, "svg": _svg(svg), "curves": curves})
    return charts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The last of the points in each fortieth of a power of ten of x, since x is drawn by its logarithm."""
    last = {round(40 * math.log10(x)): (x, y) for x, y in points if x > 0}
    return list(last.values())
