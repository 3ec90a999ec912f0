"""One page on which a person sees what was kept, what was removed and why, beside the face that the network imagines for an identity.

The page is plain HTML and JPEG files: no script, no network, opened from `file://`. Identity names are foreign text and are escaped;
direction overrides in them, which could disguise one name as another, are spelled out.
"""

import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import tables
from pipeline.charts import Series, histogram_svg
from pipeline.config import Config, as_dict
from pipeline.errors import BadShard
from pipeline.imagine import imagine
from pipeline.layout import RunLayout
from pipeline.receipts import Counts, Progress, Receipt, fingerprint, mark_of, run_stage
from pipeline.report import open_run, round_numbers
from pipeline.shards import CropReader

VERSION = 1
BIN_DEG = 3
_KEY = re.compile(r"[0-9a-f]{8,64}")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SPOKEN = {"keep": "kept", "drop": "dropped", "relabel": "relabel proposed", "review": "to review"}
_REASONS = {
    "accepted": "accepted",
    "angle": "too far from the center",
    "nondominant": "nearest to a minority sub-center",
    "angle_and_nondominant": "too far, and nearest to a minority sub-center",
    "noise_probability": "more probably noise than not",
    "too_few_samples": "the only sample: nothing to compare with",
    "no_evidence": "no angle could be measured",
    "head_not_learned": "the model could not tell identities apart",
}
_DIRECTION_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class AuditCounts:
    """What the page shows."""

    identities: int
    faces: int
    inversions: int


@dataclass(frozen=True)
class Face:
    """A tile: a crop, and what was found about it."""

    file: str
    verdict: str
    reason: str
    angle_deg: float | None
    other_identity: str | None
    other_angle_deg: float | None

    @property
    def alt(self) -> str:
        """What the picture's verdict says, in words: `kept, 31.2 degrees`."""
        angle = "angle unknown" if self.angle_deg is None else f"{self.angle_deg:.1f} degrees"
        return f"{_SPOKEN.get(self.verdict, self.verdict)}, {angle}"


@dataclass(frozen=True)
class Inversion:
    """The face imagined for an identity, and its angle to the center that it was drawn from."""

    file: str
    angle_deg: float


@dataclass(frozen=True)
class Portrait:
    """One identity: its counts over all its samples, and some of their faces."""

    name: str
    samples: int
    verdicts: Mapping[str, int]
    kept: Sequence[Face]
    removed: Sequence[Face]
    inversion: Inversion | None


def audit(run: RunLayout, out: Path, config: Config, *, title: str, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: the page of a run that has a manifest and an evaluation, with inversions by the last round's backbone."""
    rounds = [run.round(number) for number in range(1, config.rounds + 1)]
    inputs = {f"round{one.number}": mark_of(one.noise) for one in rounds}
    inputs |= {"manifest": mark_of(run.manifest), "evaluation": mark_of(run.evaluation)}
    mark = fingerprint("audit", VERSION, as_dict(config.audit) | {"title": title, "seed": config.seed}, **inputs)

    def work(folder: Path) -> Counts:
        names = noisiest(run.root, config.audit.identities)
        imagined = imagine(run.raw, rounds[-1], names, config, progress=progress)
        counts = write_audit(
            run.root, folder, title=title, identities=config.audit.identities, faces=config.audit.faces, inversions=imagined
        )
        return {"identities": counts.identities, "faces": counts.faces, "inversions": counts.inversions}

    return run_stage(out, stage="audit", mark=mark, work=work)


def noisiest(run: Path, identities: int) -> list[str]:
    """The identities that the page will show: most samples dropped or to relabel first, then most to review, most samples, and by name."""
    with open_run(run) as db:
        return [row["identity"] for row in _noisiest(db, identities)]


def write_audit(
    run: Path,
    out: Path,
    *,
    title: str,
    identities: int,
    faces: int,
    inversions: Mapping[str, tuple[bytes, float]],
    on_progress: Callable[[int], None] | None = None,
) -> AuditCounts:
    """Counts of what stands in `out` afterwards: index.html and images/.

    Shows the `identities` of `noisiest`, each with up to `faces` kept and `faces` removed samples, spread evenly from the smallest angle
    to the largest. `inversions`: identity -> (PNG, its angle in degrees to the dominant sub-center); `on_progress`: identities done.
    Memory holds the chosen rows only. Raises BadInput without a manifest, BadShard for a crop that is not where its row says.
    """
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    with open_run(run) as db:
        chosen = _noisiest(db, identities)
        shown = _shown_faces(db, [row["identity"] for row in chosen], faces)
        facts = {
            "title": title,
            "statuses": _crosstab(db),
            "reasons": _rows(db, _REASONS_SQL),
            "by_people": _rows(db, _PEOPLE_SQL)[0]["items"],
            "rounds": _rounds(db, run),
            "evaluation": _evaluation(db),
        }
    place = _locate(run, shown)
    portraits = []
    for number, row in enumerate(chosen):
        name = row["identity"]
        mine = [face for face in shown if face["identity"] == name]
        _copy_crops(run, mine, place, images)
        portraits.append(_portrait(row, mine, _write_inversion(inversions.get(name), number, images)))
        if on_progress:
            on_progress(number + 1)
    page = _environment().get_template("audit.html.jinja").render(**facts, portraits=portraits, verdicts=list(tables.VERDICTS))
    (out / "index.html").write_text(page, "utf-8")
    drawn = sum(portrait.inversion is not None for portrait in portraits)
    return AuditCounts(identities=len(portraits), faces=len(shown), inversions=drawn)


_REASONS_SQL = "SELECT verdict, reason, count(*) AS items FROM manifest GROUP BY ALL ORDER BY items DESC, verdict, reason"
_PEOPLE_SQL = "SELECT count(*) AS items FROM manifest WHERE decided_by <> 'ingest' AND NOT starts_with(decided_by, 'rule:')"
_NOISIEST_SQL = """
    SELECT identity, count(*) AS samples, count(*) FILTER (verdict = 'keep') AS keep, count(*) FILTER (verdict = 'drop') AS "drop",
        count(*) FILTER (verdict = 'relabel') AS relabel, count(*) FILTER (verdict = 'review') AS review
    FROM manifest WHERE status = 'ok'
    GROUP BY identity ORDER BY "drop" + relabel DESC, review DESC, samples DESC, identity LIMIT $limit
"""
# Of n samples in order of angle, the first of each of `faces` even steps: the nearest and the farthest are always among them.
_FACES_SQL = """
    WITH ranked AS (
        SELECT sample_id, identity, source_uri, shard, verdict, reason, other_identity,
            nullif(angle_deg, 'NaN') AS angle_deg, nullif(other_angle_deg, 'NaN') AS other_angle_deg,
            row_number() OVER line - 1 AS place, count(*) OVER (PARTITION BY identity, verdict = 'keep') AS n
        FROM manifest WHERE status = 'ok' AND identity IN (SELECT unnest($names))
        WINDOW line AS (PARTITION BY identity, verdict = 'keep' ORDER BY angle_deg NULLS LAST, source_uri)
    )
    SELECT * EXCLUDE (place, n) FROM ranked
    WHERE n <= $faces OR place = 0 OR place * ($faces - 1) // (n - 1) > (place - 1) * ($faces - 1) // (n - 1)
    ORDER BY identity, angle_deg NULLS LAST, source_uri
"""
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


def _noisiest(db: duckdb.DuckDBPyConnection, limit: int) -> list[dict[str, Any]]:
    return _rows(db, _NOISIEST_SQL, limit=limit)


def _shown_faces(db: duckdb.DuckDBPyConnection, names: list[str], faces: int) -> list[dict[str, Any]]:
    return _rows(db, _FACES_SQL, names=names, faces=faces) if names else []


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


def _locate(run: Path, shown: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """source_uri -> (offset, size) of its crop in its raw tar, from the twins of the shards in question."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for row in shown:
        wanted[row["shard"]].append(row["source_uri"])
    place = {}
    for shard, uris in sorted(wanted.items()):
        twin = RunLayout(run).raw / f"{shard}.parquet"
        columns = ["source_uri", "crop_offset", "crop_size"]
        for row in pq.read_table(twin, columns=columns, filters=[("source_uri", "in", uris), ("crop_offset", ">=", 0)]).to_pylist():
            place[row["source_uri"]] = (row["crop_offset"], row["crop_size"])
    return place


def _copy_crops(run: Path, rows: list[dict[str, Any]], place: dict[str, tuple[int, int]], images: Path) -> None:
    for shard in sorted({row["shard"] for row in rows}):
        tar = RunLayout(run).raw / f"{shard}.tar"
        with CropReader(tar) as crops:
            for row in rows:
                if row["shard"] != shard:
                    continue
                if row["source_uri"] not in place or not _KEY.fullmatch(row["sample_id"] or ""):
                    raise BadShard(f"{tar} holds no crop for {row['source_uri']}. Remove {tar.parent} and run again: it will be made anew.")
                content = crops.read(*place[row["source_uri"]])
                if not content.startswith(_JPEG):
                    raise BadShard(f"{tar} has no JPEG at the offset of {row['source_uri']}. Remove {tar.parent} and run again.")
                (images / f"{row['sample_id']}.jpg").write_bytes(content)


def _write_inversion(drawn: tuple[bytes, float] | None, number: int, images: Path) -> Inversion | None:
    if drawn is None:
        return None
    content, angle_deg = drawn
    if not content.startswith(_PNG):
        raise ValueError(f"An inversion is given as PNG bytes; got bytes that begin {content[:8]!r}.")
    name = f"inversion-{number:04d}.png"
    (images / name).write_bytes(content)
    return Inversion(f"images/{name}", angle_deg)


def _portrait(row: dict[str, Any], shown: list[dict[str, Any]], inversion: Inversion | None) -> Portrait:
    tiles = [
        Face(
            file=f"images/{face['sample_id']}.jpg",
            verdict=face["verdict"],
            reason=_REASONS.get(face["reason"], face["reason"]),
            angle_deg=face["angle_deg"],
            other_identity=face["other_identity"] if face["verdict"] == "relabel" else None,
            other_angle_deg=face["other_angle_deg"],
        )
        for face in shown
    ]
    return Portrait(
        name=row["identity"],
        samples=row["samples"],
        verdicts={verdict: row[verdict] for verdict in tables.VERDICTS},
        kept=[face for face in tiles if face.verdict == "keep"],
        removed=[face for face in tiles if face.verdict != "keep"],
        inversion=inversion,
    )


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": visible,
        "count": lambda number: f"{number:,}",
        "spoken": lambda verdict: _SPOKEN.get(verdict, verdict),
    }
    environment.filters |= {"reason": lambda reason: _REASONS.get(reason, reason), "percent": lambda share: f"{100 * share:.1f} %"}
    return environment


def visible(name: str) -> str:
    """`name` with its direction overrides and control characters spelled out, as in `⟨U+202E⟩`; all else verbatim."""
    return "".join(f"⟨U+{ord(sign):04X}⟩" if sign in _DIRECTION_CONTROLS or unicodedata.category(sign) == "Cc" else sign for sign in name)
