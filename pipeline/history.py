"""What each finished run of a crawl, and each `purify export` of decisions, came to, in `RUN/history/`: one small file each, never
rewritten. And the limits that mark a run.

No names stand in it: sources are hosts of URLs and names of tars.
"""

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from pipeline.config import LimitsConfig
from pipeline.duck import every
from pipeline.errors import BadInput
from pipeline.forgotten import read as read_forgotten
from pipeline.layout import RunLayout
from pipeline.receipts import mark_of, write_json

LEAST_ANGLES = 200
"""Angles on both sides from which a drift counts: below, two halves of one crawl differ by 0.1 and more."""
_SOURCES = """
    SELECT source, count(*) AS samples, round(count(*) FILTER (WHERE verdict IN ('drop', 'relabel')) / count(*), 4) AS noise
    FROM (SELECT CASE WHEN contains(source_uri, '://') THEN split_part(split_part(source_uri, '://', 2), '/', 1)
                      ELSE split_part(source_uri, '/', 1) END AS source, verdict, identity, source_uri
          FROM read_parquet($files) WHERE status = 'ok')
    WHERE contains(source_uri, '://') OR source LIKE '%.tar'
    GROUP BY source ORDER BY samples DESC, source LIMIT 50"""


def run_id(run: RunLayout) -> str:
    """16 hex digits that two runs share only when their manifests are made of the same crawl, settings and decisions, and nobody was forgotten."""
    mark, forgotten = mark_of(run.manifest), sorted(read_forgotten(run.root).marks)
    return (hashlib.sha256("".join([mark, *forgotten]).encode()).hexdigest() if forgotten else mark)[:16]


def remember(run: RunLayout, last_round: int) -> dict[str, Any]:
    """The entry of the manifest that stands, written unless it is the last one already.

    Where the last entry has the same angles nothing was judged since (only decisions or settings of the export changed): its drift stands.
    """
    entries = read_history(run.root)
    identifier = run_id(run)
    if entries and entries[-1]["run_id"] == identifier:
        return entries[-1]
    judged = json.loads((run.round(last_round).noise / "judge.json").read_text("utf-8"))
    with duckdb.connect() as db:
        files = {"files": every(run.manifest, "part-*.parquet")}
        items, gone, samples, *verdicts = db.execute(
            """SELECT count(*), count(*) FILTER (WHERE is_gone), count(*) FILTER (WHERE status = 'ok'), count(*) FILTER (WHERE status = 'ok' AND verdict = 'keep'),
                      count(*) FILTER (WHERE status = 'ok' AND verdict = 'drop'), count(*) FILTER (WHERE status = 'ok' AND verdict = 'relabel'),
                      count(*) FILTER (WHERE status = 'ok' AND verdict = 'review'), count(DISTINCT clean_identity), count(clean_shard)
               FROM read_parquet($files)""",
            files,
        ).fetchall()[0]
        counted = db.execute(
            """SELECT least(floor(angle_deg)::INT, 179), count(*) FROM read_parquet($files)
               WHERE angle_deg IS NOT NULL AND NOT isnan(angle_deg) GROUP BY ALL""",
            files,
        ).fetchall()
        sources = db.execute(_SOURCES, files).fetchall()
    angles = [0] * 180
    for degrees, count in counted:
        angles[degrees] = count
    moved = None
    if entries:
        moved = entries[-1]["drift"] if entries[-1]["angles"] == angles else drift(entries[-1]["angles"], angles)
    entry: dict[str, Any] = {
        "run_id": identifier,
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "items": items,
        "gone": gone,
        "samples": samples,
        **dict(zip(("keep", "drop", "relabel", "review", "clean_identities", "exported"), verdicts, strict=True)),
        "kept_share": round(verdicts[-1] / max(1, samples), 4),
        "noise_rate": round(judged["noise_rate"], 4),
        "noise_rate_low": round(judged["noise_rate_low"], 4),
        "noise_rate_high": round(judged["noise_rate_high"], 4),
        "drift": moved,
        "angles": angles,
        "sources": [{"source": source, "samples": count, "noise": noise} for source, count, noise in sources],
    }
    run.history.mkdir(exist_ok=True)
    write_json(run.history / f"{len(entries) + 1:06d}-{identifier}.json", entry)
    return entry


def read_history(run: Path) -> list[dict[str, Any]]:
    """The entries of a run folder, oldest first. Raises BadInput when one cannot be read."""
    found = []
    for path in sorted(RunLayout(run).history.glob("*.json")):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise BadInput(f"{path} is damaged ({error}). Remove it: nothing else depends on it.") from error
    return found


def drift(before: list[int], now: list[int]) -> float | None:
    """Kolmogorov-Smirnov distance of two histograms of `angle_deg`, 0..1, higher = more different; None where either has too few angles."""
    before_B, now_B = np.asarray(before, np.float64), np.asarray(now, np.float64)
    if min(before_B.sum(), now_B.sum()) < LEAST_ANGLES:
        return None
    return round(float(np.abs(before_B.cumsum() / before_B.sum() - now_B.cumsum() / now_B.sum()).max()), 4)


def exceeded(entry: dict[str, Any], limits: LimitsConfig) -> list[str]:
    """Which limits a run is beyond, in words; exactly at a limit is within it."""
    found = []
    if limits.noise_rate is not None and entry["noise_rate"] > limits.noise_rate:
        found.append(f"noise rate {entry['noise_rate']:.3f} is above limits.noise_rate {limits.noise_rate:g}")
    if limits.kept_share is not None and entry["kept_share"] < limits.kept_share:
        found.append(f"{entry['kept_share']:.3f} of the samples are exported, below limits.kept_share {limits.kept_share:g}")
    if limits.drift is not None and entry["drift"] is not None and entry["drift"] > limits.drift:
        found.append(f"the angles are {entry['drift']:.3f} from those of the run before, above limits.drift {limits.drift:g}")
    return found
