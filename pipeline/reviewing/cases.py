"""Which cases a person is asked about, the most informative first.

Three kinds of sample, and one of identity, take turns: samples nearest to the cut, samples on which two judges differ most, proposed relabels, and
two names that may be one person. Nothing is asked about twice: what a person decided is left out.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.layout import RunLayout

MOST = 2_000
"""Cases of a kind at a time; when they are answered, the next are looked for."""
PAPER_DEG = 75.0


@dataclass(frozen=True)
class Case:
    """A question. `key` names it in addresses; `sample_id` is the sample in question, or of a merge the surest face of `identity`."""

    key: str
    kind: str
    """`cut`, `judges`, `relabel`, `merge`, or `again`."""
    sample_id: str
    identity: str
    other_identity: str | None
    why: str


def find_cases(run: Path, decided: Set[str], *, most: int = MOST) -> list[Case]:
    """The cases of a run, most informative first, without samples of `decided`. Raises BadInput when the run has no manifest."""
    layout = RunLayout(run)
    if not any(layout.manifest.glob("part-*.parquet")):
        raise BadInput(f"{run} has no manifest yet, so there is nothing to review. Run `purify run CRAWL {run}` first.")
    numbers = RunLayout(run).round_numbers
    judge = _judge(layout, numbers)
    given = {"manifest": every(layout.manifest, "part-*.parquet"), "most": most}
    near = {"near": float(judge.get("relabel_angle_deg") or 0.0)}
    with duckdb.connect() as db:
        db.register("decided", pa.table({"sample_id": pa.array(sorted(decided), pa.string())}))
        kinds = {
            "cut": fetch(
                db, _CUT_SQL, given | near | {"cut": float(judge.get("max_noise_probability") or 0.5), "rule": _rule_in_words(judge)}
            ),
            "judges": fetch(db, _JUDGES_SQL, given | near | {"paper": PAPER_DEG}),
            "relabel": fetch(db, _RELABEL_SQL, given),
        }
        proposals = layout.round(numbers[-1]).noise / "proposals.parquet" if numbers else None
        if proposals and proposals.exists():
            kinds["merge"] = fetch(db, _MERGE_SQL, given | {"proposals": str(proposals)})
    found = [[_case(kind, row) for row in rows.to_pylist()] for kind, rows in kinds.items()]
    once: dict[str, Case] = {}
    for case in chain.from_iterable(zip_longest(*found)):
        if case is not None:
            once.setdefault(case.key, case)
    return list(once.values())


def asked_again(sample_id: str, identity: str, other_identity: str | None) -> Case:
    """The case of a sample whose answer was taken back."""
    return Case(_key("s", sample_id), "again", sample_id, identity, other_identity, "An answer to it was taken back.")


def state_of(run: RunLayout) -> tuple[int, ...]:
    """Changes when a stage, or `purify forget`, has replaced what a review has read of a run."""
    return tuple(folder.stat().st_mtime_ns for folder in (run.raw, run.manifest) if folder.exists())


def _case(kind: str, row: dict[str, str]) -> Case:
    key = _key("m", json.dumps([row["identity"], row["other_identity"]])) if kind == "merge" else _key("s", row["sample_id"])
    return Case(key, kind, row["sample_id"], row["identity"], row["other_identity"], row["why"])


def _key(kind: str, name: str) -> str:
    return kind + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _judge(layout: RunLayout, numbers: list[int]) -> dict[str, Any]:
    judge = layout.round(numbers[-1]).noise / "judge.json" if numbers else None
    return json.loads(judge.read_text("utf-8")) if judge and judge.exists() else {}


def _rule_in_words(judge: Mapping[str, Any]) -> str:
    """Where the rule cuts, as the rest of a sentence about one sample; empty for a rule that does not cut by one number."""
    if judge.get("rule") == "calibrated":
        return f"; the rule cuts at {judge['max_noise_probability']:.2f}"
    return f"; the rule cuts by angle, at {judge['max_angle_deg']:.1f} degrees" if judge.get("rule") == "angle" else ""


_JUDGED_SQL = """
    WITH judged AS (
        FROM read_parquet($manifest)
        WHERE status = 'ok' AND starts_with(decided_by, 'rule:') AND sample_id NOT IN (SELECT sample_id FROM decided)
            AND reason NOT IN ('near_duplicate', 'same_bytes_elsewhere', 'same_photo_elsewhere', 'too_few_samples'))
"""
# The nearest other identity is worth an offer where the rule itself would take the sample for it.
_OFFERED = "CASE WHEN verdict = 'relabel' OR other_angle_deg <= $near THEN other_identity END AS other_identity"
_CUT_SQL = (
    _JUDGED_SQL
    + f"""
    SELECT sample_id, identity, {_OFFERED}, printf('The probability that it is noise is %.2f%s.', noise_probability, $rule) AS why
    FROM judged WHERE noise_probability IS NOT NULL AND NOT isnan(noise_probability)
    ORDER BY abs(noise_probability - $cut), source_uri LIMIT $most
"""
)
_JUDGES_SQL = (
    _JUDGED_SQL
    + f"""
    SELECT sample_id, identity, {_OFFERED},
        printf('The rule says %s, the paper''s cut at %.0f degrees says %s: it lies at %.1f.', verdict, $paper,
            CASE WHEN verdict = 'keep' THEN 'drop' ELSE 'keep' END, angle_deg) AS why
    FROM judged
    WHERE verdict IN ('keep', 'drop', 'relabel') AND angle_deg IS NOT NULL AND NOT isnan(angle_deg) AND (verdict = 'keep') <> (angle_deg <= $paper)
    ORDER BY abs(angle_deg - $paper) DESC, source_uri LIMIT $most
"""
)
_RELABEL_SQL = (
    _JUDGED_SQL
    + """
    SELECT sample_id, identity, other_identity, printf('It is proposed for another identity, %.1f degrees from it.', other_angle_deg) AS why
    FROM judged WHERE verdict = 'relabel' AND other_identity IS NOT NULL
    ORDER BY other_angle_deg DESC, source_uri LIMIT $most
"""
)
# The smaller name would go into the larger. Of each the surest face speaks.
_MERGE_SQL = """
    WITH pairs AS (
        SELECT CASE WHEN samples <= other_samples THEN identity ELSE other_identity END AS one,
            CASE WHEN samples <= other_samples THEN other_identity ELSE identity END AS other, kind, center_angle_deg, samples + other_samples AS size
        FROM read_parquet($proposals) WHERE kind IN ('merge', 'review') AND other_identity IS NOT NULL),
    faces AS (
        SELECT identity, sample_id FROM read_parquet($manifest)
        WHERE status = 'ok' AND clean_identity = identity AND identity IN (SELECT one FROM pairs)
        QUALIFY row_number() OVER (PARTITION BY identity ORDER BY coalesce(nullif(angle_deg, 'NaN'), 180), source_uri) = 1)
    SELECT f.sample_id, p.one AS identity, p.other AS other_identity,
        printf('Two names, %s one person: their centers are %.1f degrees apart.', CASE kind WHEN 'merge' THEN 'probably' ELSE 'perhaps' END, center_angle_deg) AS why
    FROM pairs p JOIN faces f ON f.identity = p.one
    ORDER BY kind DESC, size DESC, p.one, p.other LIMIT $most
"""
