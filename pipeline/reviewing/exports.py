"""What people decided, for other programs: CSV, Parquet, and tasks for Label Studio."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.decisions import read_standing
from pipeline.duck import every, fetch
from pipeline.layout import RunLayout
from pipeline.run_folder import require_whole
from pipeline.shards import CropReader
from pipeline.visible import json_text


def decided(run: Path) -> pa.Table:
    """The decisions that stand, a row each, with the identity and place that the crawl gave the sample and what the rule had said."""
    require_whole(RunLayout(run))
    standing = read_standing(run)
    if standing.num_rows == 0:
        return _EMPTY.empty_table()
    with duckdb.connect() as db:
        db.register("standing", standing)
        return fetch(db, _DECIDED_SQL, {"manifest": every(RunLayout(run).manifest, "part-*.parquet")}).cast(_EMPTY)


def as_csv(run: Path) -> bytes:
    """The decisions as CSV, texts verbatim: `purify decide --import` takes them back."""
    buffer = io.BytesIO()
    pacsv.write_csv(decided(run), buffer)
    return buffer.getvalue()


def as_parquet(run: Path) -> bytes:
    """The decisions as Parquet, texts verbatim."""
    buffer = io.BytesIO()
    pq.write_table(decided(run), buffer)
    return buffer.getvalue()


def as_label_studio(run: Path, most: int = 1000) -> bytes:
    """Tasks for Label Studio's JSON import: what people decided, and the samples nearest to the cut, up to `most`; crops as data URIs.

    A task has the crop as `image`, the claimed identity, the angle; the rule's verdict as prediction, and a person's as annotation. It fits a
    labelling configuration of `<Image name="image" value="$image"/>` and `<Choices name="verdict" toName="image">` of keep, drop, relabel.
    """
    layout = RunLayout(run)
    require_whole(layout)
    given = {"manifest": every(layout.manifest, "part-*.parquet"), "raw": every(layout.raw, "raw-*.parquet"), "most": most}
    with duckdb.connect() as db:
        db.register("standing", read_standing(run))
        rows = fetch(db, _TASKS_SQL, given).to_pylist()
    tasks = []
    for shard in sorted({row["shard"] for row in rows}):
        with CropReader(layout.raw / f"{shard}.tar") as crops:
            tasks += [_task(row, crops.read(row["crop_offset"], row["crop_size"])) for row in rows if row["shard"] == shard]
    return json_text(tasks, indent=1).encode("utf-8")


EXPORTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "csv": (as_csv, "text/csv; charset=utf-8"),
    "parquet": (as_parquet, "application/vnd.apache.parquet"),
    "label-studio": (as_label_studio, "application/json"),
}
"""name -> (what makes the bytes, their media type)."""


def _task(row: dict[str, Any], crop: bytes) -> dict[str, Any]:
    def choice(verdict: str) -> list[dict[str, Any]]:
        return [{"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": [verdict]}}]

    said_by_rule, noise = row["rule_verdict"] or row["verdict"], row["noise_probability"]
    sure = None if noise is None else 1 - noise if said_by_rule == "keep" else noise
    task: dict[str, Any] = {
        "data": {
            "image": "data:image/jpeg;base64," + base64.b64encode(crop).decode(),
            **{name: row[name] for name in ("sample_id", "identity", "angle_deg", "noise_probability", "other_identity")},
        },
        "predictions": [{"model_version": "purify", "score": sure, "result": choice(said_by_rule)}],
    }
    if row["said"] is not None:
        task["data"]["decided_by"] = row["said_by"]
        task["annotations"] = [{"result": choice(row["said"])}]
    return task


_EMPTY = pa.schema(
    [
        *(tables.DECISIONS.field(name) for name in ("sample_id", "verdict", "clean_identity", "note", "decided_by", "decided_at")),
        *(
            tables.MANIFEST.field(name)
            for name in ("identity", "source_uri", "rule_verdict", "rule_reason", "angle_deg", "noise_probability")
        ),
    ]
)
_DECIDED_SQL = """
    SELECT s.sample_id, s.verdict, s.clean_identity, s.note, s.decided_by, s.decided_at, m.identity, m.source_uri, m.rule_verdict, m.rule_reason,
        m.angle_deg, m.noise_probability
    FROM standing s JOIN read_parquet($manifest) m ON m.sample_id = s.sample_id AND m.status = 'ok' ORDER BY s.decided_at, s.decision_id
"""
_TASKS_SQL = """
    SELECT m.sample_id, m.identity, m.verdict, m.rule_verdict, nullif(m.angle_deg, 'NaN') AS angle_deg, nullif(m.noise_probability, 'NaN') AS noise_probability,
        m.other_identity, m.shard, r.crop_offset, r.crop_size, s.verdict AS said, s.decided_by AS said_by
    FROM read_parquet($manifest) m JOIN read_parquet($raw) r ON r.identity = m.identity AND r.source_uri = m.source_uri
    LEFT JOIN standing s ON s.sample_id = m.sample_id
    WHERE m.status = 'ok'
    ORDER BY s.verdict IS NULL, abs(coalesce(nullif(m.noise_probability, 'NaN'), 1) - 0.5), m.source_uri LIMIT $most
"""
