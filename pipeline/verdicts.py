"""Judging a raw shard, when the judge is fitted: noise probabilities, verdicts, reasons. Each function is a part that any worker does."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram
from arcface_core.noise.fusion import FusedJudge, JointHistogram
from arcface_core.noise.rivals import belongs_elsewhere
from arcface_core.noise.rules import REASONS, VERDICTS, Evidence, Judgement, judge
from pipeline import tables
from pipeline.config import IsolateConfig
from pipeline.copies import Copies
from pipeline.evidence import EVIDENCE_ONLY, keys_where, numbers
from pipeline.files import mapped, save_array
from pipeline.gathered import RoundFiles, loaded
from pipeline.proposals import pair_code
from pipeline.receipts import atomic
from pipeline.threads import one_thread

_REASONS = (*REASONS, "same_photo_elsewhere", "same_bytes_elsewhere", "recovered", "head_not_learned")
_KEEP, _DROP, _RELABEL, _REVIEW = range(len(VERDICTS))
_ANGLES = ("angle_deg", "nearest_angle_deg", "consensus_angle_deg", "other_angle_deg", "next_other_angle_deg")


@dataclass(frozen=True)
class ShardPart:
    """The evidence of a raw shard. `overlap`: file of the pairs of names that may be one person; `classes`: how many identities there are."""

    evidence: Path
    overlap: Path
    classes: int


@dataclass(frozen=True)
class JointPart(ShardPart):
    """`clean_deg`: the angle up to which a sample is more probably clean than not."""

    clean_deg: float


@dataclass(frozen=True)
class Joint:
    """Counts of one shard: of a JointHistogram the filled places and how many are there; of the own angles of those that do not belong elsewhere."""

    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    rest: NDArray[np.int64]


@one_thread()
def count_evidence(part: JointPart) -> Joint:
    """All evidence of one shard, counted."""
    table = pq.read_table(part.evidence, columns=[*_RIVAL, "consensus_angle_deg", "density_angle_deg"])
    own_N, rival_N = numbers(table, "consensus_angle_deg"), _rival_deg(table, part)
    joint, rest = JointHistogram(), AngleHistogram()
    joint.add(own_N, rival_N, numbers(table, "density_angle_deg"))
    rest.add(own_N[~belongs_elsewhere(own_N, rival_N, part.clean_deg)])
    flat = joint.counts.flatten().numpy()
    places = flat.nonzero()[0]
    return Joint(places, flat[places], rest.counts.numpy())


_RIVAL = ["class", "other_class", "other_angle_deg", "next_other_angle_deg"]


def _rival_deg(table: pa.Table, part: ShardPart) -> Tensor:
    """Angle to the nearest other identity that is another person: a second name for the same one is no rival."""
    rival_N, overlap_M = numbers(table, "other_angle_deg"), mapped(part.overlap)
    if not len(overlap_M):
        return rival_N
    is_same_N = np.isin(pair_code(table["class"].to_numpy(), table["other_class"].to_numpy(), part.classes), overlap_M)
    return torch.where(torch.from_numpy(is_same_N), numbers(table, "next_other_angle_deg"), rival_N)


@dataclass(frozen=True)
class NoisePart(ShardPart):
    fused: FusedJudge
    out: Path


@one_thread()
def write_noise(part: NoisePart) -> None:
    """Write the noise probability of each sample of a shard, NaN where nothing can be said."""
    table = pq.read_table(part.evidence, columns=[*_RIVAL, "consensus_angle_deg", "density_angle_deg"])
    angles = numbers(table, "consensus_angle_deg"), _rival_deg(table, part), numbers(table, "density_angle_deg")
    save_array(part.out, part.fused.noise_probability(*angles).numpy())


@dataclass(frozen=True, kw_only=True)
class VerdictPart:
    """A raw shard to be judged.

    noise            file of the noise probabilities
    rows             numbers of its samples in the round
    before           its noise table of the round before
    bytes_elsewhere  file of the numbers, rising, of samples whose bytes stand under another identity with better evidence
    folder           of `size.npy`, `mass.npy` and `second_mass.npy`, of each identity
    """

    files: RoundFiles
    evidence: Path
    noise: Path
    out: Path
    rows: slice
    before: Path | None
    copies: Copies
    bytes_elsewhere: Path
    folder: Path
    settings: IsolateConfig
    max_noise_probability: float
    relabel_angle_deg: float
    may_judge: bool


@one_thread()
def write_verdicts(part: VerdictPart) -> dict[str, dict[str, int]]:
    """Write the noise table of one shard. How many samples have each verdict and each reason."""
    table = pq.read_table(part.evidence)
    noise_N = torch.from_numpy(mapped(part.noise))
    found = _judged(part, table, noise_N)
    verdict_N, reason_N = found.verdict_N.numpy(), found.reason_N.numpy()
    copy_N = part.copies.copy_of(part.rows)
    _say_copies(verdict_N, reason_N, copy_N, part.copies.is_better_elsewhere(part.rows))
    _amend(part, table["source_uri"], verdict_N, reason_N)
    if not part.may_judge:
        verdict_N[:], reason_N[:] = _REVIEW, _REASONS.index("head_not_learned")
    columns = {name: table[name] for name in table.column_names if name not in EVIDENCE_ONLY}
    columns["copy_of"] = keys_where(part.files, copy_N, copy_N >= 0)
    columns["noise_probability"] = pa.array(noise_N.numpy(), pa.float32())
    columns["verdict"], columns["reason"] = pa.array(VERDICTS).take(pa.array(verdict_N)), pa.array(_REASONS).take(pa.array(reason_N))
    # An angle that is not there is null on disk: SQL takes NaN for larger than all numbers.
    known_columns = [pc.if_else(pc.is_nan(columns[f.name]), None, columns[f.name]) if pa.types.is_floating(f.type) else columns[f.name]
                     for f in tables.NOISE]  # fmt: skip
    with atomic(part.out) as temporary:
        pq.write_table(pa.Table.from_arrays(known_columns, schema=tables.NOISE), temporary, compression="zstd")
    return {"verdict": dict(Counter(columns["verdict"].to_pylist())), "reason": dict(Counter(columns["reason"].to_pylist()))}


def _judged(part: VerdictPart, table: pa.Table, noise_N: Tensor) -> Judgement:
    class_N = numbers(table, "class")
    return judge(
        Evidence(
            **{name: numbers(table, name) for name in _ANGLES},
            is_dominant=torch.from_numpy(table["nearest_subcenter"].to_numpy() == table["dominant_subcenter"].to_numpy()),
            noise_probability=noise_N,
            identity_size=loaded(part.folder / "size.npy")[class_N],
            mass=loaded(part.folder / "mass.npy")[class_N],
            second_mass=loaded(part.folder / "second_mass.npy")[class_N],
            is_near_duplicate=torch.from_numpy(table["near_duplicate_of"].is_valid().to_numpy().copy()),
        ),
        rule=part.settings.rule,
        max_angle_deg=part.settings.max_angle_deg,
        max_noise_probability=part.max_noise_probability,
        relabel_angle_deg=part.relabel_angle_deg,
        relabel_gap_deg=part.settings.relabel_gap_deg,
        keep_near_duplicates=not part.settings.drop_near_duplicates,
    )


def _say_copies(
    verdict_N: NDArray[np.int8], reason_N: NDArray[np.int8], copy_N: NDArray[np.int64], better_elsewhere_N: NDArray[np.bool_]
) -> None:
    """One photograph is of one person: it is kept under one name, and not proposed for an identity that has it already."""
    goes_N = (copy_N >= 0) & ((verdict_N == _RELABEL) | ((verdict_N == _KEEP) & better_elsewhere_N))
    verdict_N[goes_N], reason_N[goes_N] = _DROP, _REASONS.index("same_photo_elsewhere")


def _amend(part: VerdictPart, uris: pa.ChunkedArray, verdict_N: NDArray[np.int8], reason_N: NDArray[np.int8]) -> None:
    """Of the kept: those whose bytes stand better elsewhere are dropped; those that the round before did not keep are `recovered`."""
    elsewhere_M = mapped(part.bytes_elsewhere)
    first, end = np.searchsorted(elsewhere_M, [part.rows.start, part.rows.stop])
    goes_N = np.zeros(len(verdict_N), bool)
    goes_N[elsewhere_M[first:end] - part.rows.start] = True
    goes_N &= verdict_N == _KEEP
    verdict_N[goes_N], reason_N[goes_N] = _DROP, _REASONS.index("same_bytes_elsewhere")
    if part.before is not None:
        earlier = pq.read_table(part.before, columns=["source_uri", "verdict"])
        kept_before = earlier.filter(pc.equal(earlier["verdict"], "keep"))["source_uri"]
        was_kept_N = pc.is_in(uris, value_set=kept_before.combine_chunks()).to_numpy()
        reason_N[(verdict_N == _KEEP) & ~was_kept_N] = _REASONS.index("recovered")
