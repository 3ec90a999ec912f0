"""A finished run against the truth table of a synthetic crawl. No stage reads a truth: this is called after the run, by people and benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import torch

from arcface_core.protocols.verification import auroc
from pipeline.duck import every, fetch, literal
from pipeline.errors import BadInput
from pipeline.layout import RunLayout


@dataclass(frozen=True)
class Score:
    """How well the verdicts of a run meet a truth. All in 0..1, higher is better, but for `noise_before` and `noise_after`."""

    samples: int
    noise_before: float
    """Share of wrong identities among the samples judged."""
    noise_after: float
    """Share of wrong identities among the samples kept."""
    precision: float
    """Of the samples removed, the share that is noise."""
    recall: float
    """Of the noise, the share that is removed."""
    clean_kept: float
    """Of the clean samples, the share that is kept."""
    auroc_by_round: dict[int, float]
    """Probability that a noisy sample lies at a larger angle to the dominant sub-center than a clean one."""


def score(run: Path, truth: Path) -> Score:
    """The score of a run. Raises BadInput when the truth table is not that of the run's crawl."""
    layout = RunLayout(run)
    joined = "FROM read_parquet($found) f JOIN read_parquet($truth) t ON t.item = f.source_uri"
    with duckdb.connect() as db:
        given = {"found": every(layout.manifest, "part-*.parquet"), "truth": literal(truth)}
        judged: dict[tuple[bool, bool], int] = {}
        for row in fetch(
            db, f"SELECT t.is_noise, f.verdict = 'keep' AS kept, count(*) AS n {joined} WHERE f.status = 'ok' GROUP BY ALL", given
        ).to_pylist():
            judged[row["is_noise"], row["kept"]] = row["n"]
        total = sum(judged.values())
        samples = fetch(db, "SELECT count(*) AS n FROM read_parquet($found) WHERE status = 'ok'", {"found": given["found"]})["n"][0].as_py()
        if total != samples or total == 0:
            raise BadInput(
                f"{truth} knows {total} of the {samples} samples of {run}. Give the truth table that was written with this crawl."
            )
        areas = {number: _auroc(db, layout.round(number).noise, truth, joined) for number in RunLayout(run).round_numbers}
    noise = judged.get((True, True), 0) + judged.get((True, False), 0)
    removed = judged.get((True, False), 0) + judged.get((False, False), 0)
    kept = total - removed
    return Score(
        samples=total,
        noise_before=noise / total,
        noise_after=judged.get((True, True), 0) / kept if kept else 0.0,
        precision=judged.get((True, False), 0) / removed if removed else 1.0,
        recall=judged.get((True, False), 0) / noise if noise else 1.0,
        clean_kept=judged.get((False, True), 0) / (total - noise) if total > noise else 1.0,
        auroc_by_round=areas,
    )


def _auroc(db: duckdb.DuckDBPyConnection, noise: Path, truth: Path, joined: str) -> float:
    given: dict[str, Any] = {"found": every(noise, "raw-*.parquet"), "truth": literal(truth)}
    rows = fetch(db, f"SELECT f.angle_deg, t.is_noise {joined} WHERE NOT isnan(f.angle_deg)", given)
    return float(auroc(torch.from_numpy(rows["angle_deg"].to_numpy().copy()), torch.tensor(rows["is_noise"].to_pylist())))
