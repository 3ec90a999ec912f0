"""Who is noise: evidence for every sample, calibrated on the crawl itself, and a verdict with its reason.

`evidence.py` gathers, this file judges: histograms of all evidence (one pass), the judge fitted on them, proposals to merge or split
identities, and a noise table per raw shard. All identities are judged, also those that the head was not trained on.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram, angle_of_probability, degenerate_head, fit_calibration, no_better_than_chance
from arcface_core.noise.fusion import FusedJudge, JointHistogram, OwnAngles, fit_fusion
from arcface_core.noise.rivals import belongs_elsewhere
from arcface_core.noise.rules import REASONS, VERDICTS, Evidence, judge, sweep
from pipeline import shards, tables
from pipeline.centers import is_given
from pipeline.config import Config, IsolateConfig, as_dict
from pipeline.copies import Copies, find_copies
from pipeline.duck import every, fetch
from pipeline.errors import HeadNotLearned
from pipeline.evidence import EVIDENCE_ONLY, SURELY_CLEAN, Gathered, gather, write_evidence
from pipeline.models import pick_device, save_tensors
from pipeline.proposals import overlapping, write_proposals
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage, write_json

VERSION = 4
SWEEP_DEG = range(60, 91)
LEAST_HELD_OUT = 200
"""Samples of held-out identities from which their noise rate counts."""
_ADVICE = {
    False: "Do not use these verdicts: start from trained weights (--init), or train longer (train.epochs).",
    True: "Do not use these verdicts: take another --embedder, or see whether its channels, mean and std are right (docs/models.md).",
}
"""What to do about a head that was trained (False), and about a model that was given (True), when it tells no identities apart."""
_TEMPORARY = (".evidence", ".gathered", ".copies")


def isolate(
    raw: Path, train: Path, embeddings: Path, out: Path, config: Config, *, previous: Path | None = None, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`: a noise table per raw shard, proposals.parquet, judge.json, and the dominant and consensus centers.

    `previous` is the noise folder of the round before: what it did not keep and this round does has the reason `recovered`.
    A head that has not learned to tell identities apart judges nothing: every verdict is `review`, the receipt's count `head_learned` is
    False, and `require_learned` turns that into an error.
    """
    inputs = {"train": mark_of(train), "embeddings": mark_of(embeddings), "previous": mark_of(previous) if previous else "none"}
    mark = fingerprint("isolate", VERSION, as_dict(config.isolate), **inputs)

    def work(folder: Path) -> Counts:
        return _isolate(raw, train, embeddings, previous, folder, config, progress)

    return run_stage(out, stage="isolate", mark=mark, work=work)


def require_learned(noise: Path) -> None:
    """Raise HeadNotLearned, with what was seen and what to do, when the head of this round told no identities apart."""
    facts = json.loads((noise / "judge.json").read_text("utf-8"))
    if facts["warning"] and not facts["judged_anyway"]:
        raise HeadNotLearned(
            f"{facts['warning']} Nothing was judged: the raw angles stand in {noise}, every verdict is `review`. "
            "To judge all the same: --set isolate.judge_anyway=true."
        )


def _isolate(
    raw: Path, train: Path, embeddings: Path, previous: Path | None, folder: Path, config: Config, progress: Progress | None
) -> Counts:
    stems = shards.shard_stems(embeddings)
    settings = config.isolate
    gathered = gather(raw, train, embeddings, stems, folder / ".gathered", pick_device(config.device), config)
    evidence = folder / ".evidence"
    evidence.mkdir(exist_ok=True)
    for number, stem in enumerate(stems):
        if not (evidence / f"{stem}.parquet").exists():
            write_evidence(embeddings / f"{stem}.parquet", evidence / f"{stem}.parquet", stem, gathered)
        if progress:
            progress(number + 1, 2 * len(stems))
    seen = _histograms(evidence, stems, gathered)
    given = is_given(train)
    finding = (
        no_better_than_chance(gathered.pair_same, gathered.pair_other) if given else degenerate_head(gathered.head_own, gathered.head_null)
    )
    finding = finding or degenerate_head(seen.own, seen.null)
    warning = f"{finding[0].upper()}{finding[1:]}. {_ADVICE[given]}" if finding else None
    calibration = fit_calibration(seen.own, seen.null)
    known = gathered.identities
    may_judge = warning is None or settings.judge_anyway
    clean_deg = angle_of_probability(calibration, 0.5) if may_judge else 0.0
    proposals = write_proposals(evidence, folder / "proposals.parquet", known, gathered.rivals, clean_deg)
    overlap = overlapping(proposals)
    joint, rest = _joint(evidence, stems, overlap, clean_deg)
    own_angles = OwnAngles(
        everyone=calibration,
        rest=fit_calibration(rest, seen.null) if rest.total else calibration,
        elsewhere_share=1 - rest.total / max(1, seen.own.total),
    )
    fused = fit_fusion(own_angles, joint, held_out_rate=_held_out_rate(seen))
    judged = _Judge(
        fused=fused,
        settings=settings,
        max_noise_probability=_max_noise_probability(fused, joint, settings),
        relabel_angle_deg=angle_of_probability(calibration, SURELY_CLEAN)
        if settings.relabel_angle_deg is None
        else settings.relabel_angle_deg,
        may_judge=may_judge,
        overlap=overlap,
    )
    second_names = _same_bytes_elsewhere(raw, evidence, judged)
    copies = find_copies(
        embeddings,
        evidence,
        stems,
        gathered,
        folder / ".copies",
        near_deg=clean_deg if warning is None else 0.0,  # where identities are not told apart, neither are photographs
        duplicate_angle_deg=min(settings.duplicate_angle_deg, angle_of_probability(calibration, SURELY_CLEAN) / 4),
    )
    for stem in stems:
        noise_N = _noise_probability(pq.read_table(evidence / f"{stem}.parquet"), judged)
        copies.noise_N[gathered.rows_of(stem, len(noise_N))] = noise_N.nan_to_num(nan=1.0).numpy()
    verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    reasons: Counter[str] = Counter()
    for number, stem in enumerate(stems):
        before = previous / f"{stem}.parquet" if previous else None
        found = _write_verdicts(evidence / f"{stem}.parquet", folder / f"{stem}.parquet", before, judged, gathered, second_names, copies)
        verdicts.update(found["verdict"].to_pylist())
        reasons.update(found["reason"].to_pylist())
        if progress:
            progress(len(stems) + number + 1, 2 * len(stems))
    rates = (*own_angles.noise_rate_interval, fused.noise_rate)
    facts: dict[str, Any] = {
        "rule": settings.rule,
        "max_angle_deg": None if settings.rule in ("nondominant", "calibrated") else settings.max_angle_deg,
        "max_noise_probability": judged.max_noise_probability,
        "relabel_angle_deg": judged.relabel_angle_deg,
        "noise_rate": fused.noise_rate,
        "noise_rate_low": min(rates),
        "noise_rate_high": max(rates),
        "held_out_noise_rate": _held_out_rate(seen),
        "kept_by_max_angle_deg": dict(zip(map(str, SWEEP_DEG), seen.kept_at.tolist(), strict=True)),
        "subcenters": int(known.centers_CKD.shape[1]),
        "rival_search_recall": gathered.rivals.recall,
        "reasons": dict(sorted(reasons.items())),
        "warning": warning,
        "judged_anyway": settings.judge_anyway,
        "calibration": calibration.to_dict(),
        "calibration_of_the_rest": own_angles.rest.to_dict(),
        "elsewhere_share": own_angles.elsewhere_share,
        "rival_llr": fused.rival_llr,
        "density_llr": fused.density_llr,
        "log_odds_shift": fused.log_odds_shift,
    }
    write_json(folder / "judge.json", facts)
    save_tensors(folder / "centers.safetensors", {"dominant": known.dominant_CD, "consensus": known.consensus_CD})
    del gathered, known, copies
    for name in _TEMPORARY:
        shutil.rmtree(folder / name)
    kinds = Counter(proposals["kind"].to_pylist())
    return {
        **verdicts,
        "noise_rate": round(fused.noise_rate, 4),
        "near_duplicates": reasons["near_duplicate"],
        "merge_proposals": kinds["merge"],
        "split_proposals": kinds["split"],
        "head_learned": warning is None,
    }


@dataclass
class _Histograms:
    own: AngleHistogram = field(default_factory=AngleHistogram)
    null: AngleHistogram = field(default_factory=AngleHistogram)
    held_out_own: AngleHistogram = field(default_factory=AngleHistogram)
    held_out_null: AngleHistogram = field(default_factory=AngleHistogram)
    kept_at: Tensor = field(default_factory=lambda: torch.zeros(len(SWEEP_DEG), dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class _Judge:
    fused: FusedJudge
    settings: IsolateConfig
    max_noise_probability: float
    relabel_angle_deg: float
    may_judge: bool
    overlap: set[tuple[str, str]]


def _numbers(table: pa.Table, name: str) -> Tensor:
    return torch.from_numpy(table[name].to_numpy().copy())


def _histograms(evidence: Path, stems: list[str], gathered: Gathered) -> _Histograms:
    seen = _Histograms()
    known = gathered.identities
    columns = ["identity", "angle_deg", "consensus_angle_deg", "null_angle_deg"]
    for stem in stems:
        table = pq.read_table(evidence / f"{stem}.parquet", columns=columns)
        own_N, null_N = _numbers(table, "consensus_angle_deg"), _numbers(table, "null_angle_deg")
        seen.own.add(own_N)
        seen.null.add(null_N)
        out_N = known.is_held_out_C[known.class_of(table["identity"].to_pylist())].cpu()
        seen.held_out_own.add(own_N[out_N])
        seen.held_out_null.add(null_N[out_N])
        seen.kept_at += sweep(_numbers(table, "angle_deg"), SWEEP_DEG)
    return seen


def _held_out_rate(seen: _Histograms) -> float | None:
    """Noise rate of identities that trained nothing, or None when they are too few."""
    if seen.held_out_own.total < LEAST_HELD_OUT:
        return None
    return fit_calibration(seen.held_out_own, seen.held_out_null).noise_rate


def _rival_deg(table: pa.Table, overlap: set[tuple[str, str]]) -> Tensor:
    """Angle to the nearest other identity that is another person: a second name for the same one is no rival."""
    rival_N = _numbers(table, "other_angle_deg")
    if not overlap:
        return rival_N
    pairs = zip(table["identity"].to_pylist(), table["other_identity"].to_pylist(), strict=True)
    is_same_N = torch.tensor([pair in overlap for pair in pairs], dtype=torch.bool)
    return torch.where(is_same_N, _numbers(table, "next_other_angle_deg"), rival_N)


def _joint(evidence: Path, stems: list[str], overlap: set[tuple[str, str]], clean_deg: float) -> tuple[JointHistogram, AngleHistogram]:
    """All evidence of all samples, and the own angles of those that do not belong elsewhere."""
    joint, rest = JointHistogram(), AngleHistogram()
    columns = ["identity", "other_identity", "consensus_angle_deg", "other_angle_deg", "next_other_angle_deg", "density_angle_deg"]
    for stem in stems:
        table = pq.read_table(evidence / f"{stem}.parquet", columns=columns)
        own_N, rival_N = _numbers(table, "consensus_angle_deg"), _rival_deg(table, overlap)
        joint.add(own_N, rival_N, _numbers(table, "density_angle_deg"))
        rest.add(own_N[~belongs_elsewhere(own_N, rival_N, clean_deg)])
    return joint, rest


def _max_noise_probability(fused: FusedJudge, joint: JointHistogram, settings: IsolateConfig) -> float:
    if settings.max_noise is not None:
        return fused.threshold_for_noise(joint, settings.max_noise)
    if settings.min_retention is not None:
        return fused.threshold_for_retention(joint, settings.min_retention)
    return settings.max_noise_probability


def _noise_probability(table: pa.Table, judged: _Judge) -> Tensor:
    return judged.fused.noise_probability(
        _numbers(table, "consensus_angle_deg"), _rival_deg(table, judged.overlap), _numbers(table, "density_angle_deg")
    )


def _same_bytes_elsewhere(raw: Path, evidence: Path, judged: _Judge) -> set[str]:
    """source_uri of every sample whose bytes stand under another identity with better evidence. One image is of one person."""
    with duckdb.connect() as db:
        table = fetch(
            db,
            """SELECT e.*, i.duplicate_set FROM read_parquet($evidence) e JOIN read_parquet($raw) i ON i.source_uri = e.source_uri
               WHERE i.duplicate_set IN (SELECT duplicate_set FROM read_parquet($raw) WHERE duplicate_set IS NOT NULL
                                         GROUP BY duplicate_set HAVING count(DISTINCT identity) > 1)
               ORDER BY e.source_uri""",
            {"evidence": every(evidence, "raw-*.parquet"), "raw": every(raw, "raw-*.parquet")},
        )
    if table.num_rows == 0:
        return set()
    noise = _noise_probability(table, judged).nan_to_num(nan=1.0).tolist()
    best: dict[str, tuple[float, str]] = {}
    rows = list(zip(table["duplicate_set"].to_pylist(), noise, table["source_uri"].to_pylist(), strict=True))
    for group, probability, uri in rows:
        best[group] = min(best.get(group, (2.0, "")), (probability, uri))
    return {uri for group, _, uri in rows if best[group][1] != uri}


def _write_verdicts(
    evidence: Path, out: Path, before: Path | None, judged: _Judge, gathered: Gathered, second_names: set[str], copies: Copies
) -> pa.Table:
    table = pq.read_table(evidence)
    rows = gathered.rows_of(evidence.stem, table.num_rows)
    copy_N = np.array(copies.copy_N[rows])
    known = gathered.identities
    class_N = known.class_of(table["identity"].to_pylist())
    noise_N = _noise_probability(table, judged)
    names = ("angle_deg", "nearest_angle_deg", "consensus_angle_deg", "other_angle_deg", "next_other_angle_deg")
    found = judge(
        Evidence(
            **{name: _numbers(table, name) for name in names},
            is_dominant=torch.from_numpy(table["nearest_subcenter"].to_numpy() == table["dominant_subcenter"].to_numpy()),
            noise_probability=noise_N,
            identity_size=known.size_C[class_N.cpu()],
            mass=known.mass_C[class_N].cpu(),
            second_mass=known.second_mass_C.masked_fill(known.gave_up_C, 0.0)[class_N].cpu(),  # that question is settled
            is_near_duplicate=torch.tensor(table["near_duplicate_of"].is_valid().to_pylist(), dtype=torch.bool),
        ),
        rule=judged.settings.rule,
        max_angle_deg=judged.settings.max_angle_deg,
        max_noise_probability=judged.max_noise_probability,
        relabel_angle_deg=judged.relabel_angle_deg,
        relabel_gap_deg=judged.settings.relabel_gap_deg,
        keep_near_duplicates=not judged.settings.drop_near_duplicates,
    )
    verdicts = [VERDICTS[code] for code in found.verdict_N.tolist()]
    reasons = [REASONS[code] for code in found.reason_N.tolist()]
    _say_copies(verdicts, reasons, copy_N, copies.is_better_elsewhere(rows))
    _amend(table["source_uri"].to_pylist(), verdicts, reasons, second_names, before)
    if not judged.may_judge:
        verdicts, reasons = ["review"] * table.num_rows, ["head_not_learned"] * table.num_rows
    columns = {name: table[name] for name in table.column_names if name not in EVIDENCE_ONLY}
    columns["copy_of"] = pa.array([gathered.within.key_N[copy].decode() if copy >= 0 else None for copy in copy_N.tolist()], pa.string())
    columns |= {"noise_probability": pa.array(noise_N.numpy(), pa.float32()), "verdict": pa.array(verdicts), "reason": pa.array(reasons)}
    # An angle that is not there is null on disk: SQL takes NaN for larger than all numbers.
    known_columns = [pc.if_else(pc.is_nan(columns[f.name]), None, columns[f.name]) if pa.types.is_floating(f.type) else columns[f.name]
                     for f in tables.NOISE]  # fmt: skip
    judgements = pa.Table.from_arrays(known_columns, schema=tables.NOISE)
    with atomic(out) as temporary:
        pq.write_table(judgements, temporary, compression="zstd")
    return judgements.select(["verdict", "reason"])


def _say_copies(verdicts: list[str], reasons: list[str], copy_N: NDArray[np.int64], better_elsewhere_N: NDArray[np.bool_]) -> None:
    """One photograph is of one person: it is kept under one name, and not proposed for an identity that has it already."""
    for row in (copy_N >= 0).nonzero()[0].tolist():
        if verdicts[row] == "relabel" or (verdicts[row] == "keep" and better_elsewhere_N[row]):
            verdicts[row], reasons[row] = "drop", "same_photo_elsewhere"


def _amend(uris: list[str], verdicts: list[str], reasons: list[str], second_names: set[str], before: Path | None) -> None:
    """Of the kept: those whose bytes stand better elsewhere are dropped; those that the round before did not keep are `recovered`."""
    kept_before = None
    if before is not None:
        earlier = pq.read_table(before, columns=["source_uri", "verdict"])
        kept_before = {uri for uri, verdict in zip(*earlier.to_pydict().values(), strict=True) if verdict == "keep"}
    for row, uri in enumerate(uris):
        if verdicts[row] != "keep":
            continue
        if uri in second_names:
            verdicts[row], reasons[row] = "drop", "same_bytes_elsewhere"
        elif kept_before is not None and uri not in kept_before:
            reasons[row] = "recovered"
