"""Proposals about identities, never carried out by themselves: two names for one person, and one name for two people.

Two names are compared by what their own clean samples say: which share of them would the other identity accept about as well? Look-alikes accept
each other's too where an embedder is unsure, so the two angles of a sample are compared. Nothing is chained: that A may be B and B may be C are
two rows, and nobody concludes that A is C.
"""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from arcface_core.angles import angle_deg, rowwise_cosine
from arcface_core.noise.rivals import RivalSearch
from pipeline import tables
from pipeline.duck import every, fetch
from pipeline.gathered import LEAST_SECOND, SPLIT_SHARE, Identities
from pipeline.names import Names
from pipeline.receipts import atomic

MERGE_SHARE, REVIEW_SHARE = 0.9, 0.4
"""Both shares of samples accepted by the other name must reach this: a merge is proposed, or a person is asked."""
_GAP_DEG = 15.0
"""By so much a sample of one person may lie nearer to one of two names than to the other; by more, it is of one of them only. Measured, DECISIONS.md."""


def write_proposals(evidence: Path, out: Path, known: Identities, rivals: RivalSearch, clean_deg: float) -> pa.Table:
    """The proposals of a round, also written to `out`. `clean_deg`: the angle up to which a sample is more probably clean than not; 0: no such angle."""
    rows = _overlaps(evidence, known, clean_deg) + _splits(known, rivals, clean_deg) if clean_deg > 0 else []
    table = pa.Table.from_pylist(rows, schema=tables.PROPOSALS)
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    return table


def overlapping(proposals: pa.Table, names: Names) -> NDArray[np.int64]:
    """Both orders of every pair of names that may be one person, as `pair_code`, rising."""
    pairs = proposals.filter(pc.not_equal(proposals["kind"], "split"))
    one_M, other_M = names.classes(pairs["identity"]), names.classes(pairs["other_identity"])
    count = len(names.array())
    return np.sort(np.concatenate([pair_code(one_M, other_M, count), pair_code(other_M, one_M, count)]))


def pair_code(one_N: NDArray[np.int64], other_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """A number for each pair of two of `count` classes."""
    return one_N * count + other_N


def _overlaps(evidence: Path, known: Identities, clean_deg: float) -> list[dict[str, Any]]:
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(evidence / ".spill")])
        pairs = fetch(
            db,
            """WITH clean AS (SELECT class, other_class, other_angle_deg <= $clean AS is_within, other_angle_deg - consensus_angle_deg AS further
                              FROM read_parquet($evidence) WHERE consensus_angle_deg <= $clean),
                    own AS (FROM clean WHERE NOT (is_within AND further <= -$gap)),
                    sizes AS (SELECT class, count(*) AS samples FROM own GROUP BY class),
                    near AS (SELECT class, other_class, count(*) AS near FROM own WHERE is_within AND further <= $gap GROUP BY ALL)
               SELECT a.class AS one, a.other_class AS other, a.near / s.samples AS share_near, b.near / t.samples AS other_share_near
               FROM near a JOIN near b ON b.class = a.other_class AND b.other_class = a.class AND a.class < b.class
               JOIN sizes s ON s.class = a.class JOIN sizes t ON t.class = b.class
               WHERE least(share_near, other_share_near) >= $least ORDER BY ALL""",
            {"evidence": every(evidence, "raw-*.parquet"), "clean": clean_deg, "gap": _GAP_DEG, "least": REVIEW_SHARE},
        ).to_pylist()
    rows = []
    for pair in pairs:
        one, other = pair["one"], pair["other"]
        masses = float(known.mass_C[one]), float(known.mass_C[other])
        if min(masses) < LEAST_SECOND:
            continue
        is_merge = min(pair["share_near"], pair["other_share_near"]) >= MERGE_SHARE
        rows.append(
            {
                "kind": "merge" if is_merge else "review",
                "identity": known.names.one(one),
                "other_identity": known.names.one(other),
                "share_near": pair["share_near"],
                "other_share_near": pair["other_share_near"],
                "samples": round(masses[0]),
                "other_samples": round(masses[1]),
                "center_angle_deg": float(angle_deg(rowwise_cosine(known.consensus_CD[[one]], known.consensus_CD[[other]]))),
            }
        )
    return rows


def _splits(known: Identities, rivals: RivalSearch, clean_deg: float) -> list[dict[str, Any]]:
    is_split_C = (known.second_mass_C >= LEAST_SECOND) & (known.second_mass_C >= SPLIT_SHARE * known.mass_C)
    chosen = is_split_C.nonzero()[:, 0]
    if len(chosen) == 0:
        return []
    device = rivals.centers_CD.device
    nearest, away = (found.cpu() for found in rivals.nearest(known.second_CD[chosen].to(device), chosen.to(device), 1))
    apart = angle_deg(rowwise_cosine(known.consensus_CD[chosen], known.second_CD[chosen]))
    second = torch.where(away <= clean_deg, nearest, torch.full_like(nearest, -1))[:, 0]
    return [
        {
            "kind": "split",
            "identity": known.names.one(one),
            "other_identity": known.names.one(other) if other >= 0 else None,
            "samples": round(float(known.mass_C[one])),
            "other_samples": round(float(known.second_mass_C[one])),
            "share_near": None,
            "other_share_near": None,
            "center_angle_deg": angle,
        }
        for one, other, angle in zip(chosen.tolist(), second.tolist(), apart.tolist(), strict=True)
    ]
