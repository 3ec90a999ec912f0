"""Who is noise: evidence for every sample, calibrated on the crawl itself, and a verdict with its reason.

`gather.py` gathers, this file judges: a table of evidence per raw shard and histograms of all (`evidence.py`), the judge fitted on them, proposals
to merge or split identities, and a noise table per raw shard (`verdicts.py`). All identities are judged, also those that the head was not trained on.
Buckets and shards are parts that any number of workers do, which changes no byte.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from arcface_core.noise.calibration import AngleHistogram, angle_of_probability, fit_calibration
from arcface_core.noise.degenerate import degenerate_head, no_better_than_chance, too_few_pairs
from arcface_core.noise.fusion import FusedJudge, JointHistogram, OwnAngles, fit_fusion
from arcface_core.noise.rules import VERDICTS
from pipeline import shards
from pipeline.centers import is_given
from pipeline.config import Config, IsolateConfig, as_dict
from pipeline.copies import find_copies, have_different_pictures, same_bytes_elsewhere
from pipeline.evidence import SWEEP_DEG, EvidencePart, Seen, sum_of, write_evidence
from pipeline.fanout import workers_kept
from pipeline.files import save_array
from pipeline.gather import gather
from pipeline.gathered import SURELY_CLEAN, Crew, Gathered, histogram_of
from pipeline.models import pick_device, save_tensors
from pipeline.proposals import overlapping, write_proposals
from pipeline.receipts import Counts, Progress, Receipt, fingerprint, mark_of, run_stage, write_json
from pipeline.rivals import open_rivals
from pipeline.sums import prove_twins
from pipeline.threads import one_thread
from pipeline.verdicts import Joint, JointPart, NoisePart, VerdictPart, count_evidence, write_noise, write_verdicts

VERSION = 9
LEAST_HELD_OUT = 200
"""Samples of held-out identities from which their noise rate counts."""
_ADVICE = {
    False: "Do not use these verdicts: give a face model (--embedder, docs/models.md), start from trained weights (--init), or train longer (train.epochs).",
    True: "Do not use these verdicts: take another --embedder, or see whether its channels, mean and std are right (docs/models.md).",
}
"""What to do about a head that was trained (False), and about a model that was given (True), when it tells no identities apart."""
_OF_FEW = "A larger crawl would show it. If the model is known to be good for faces like these, have it judge all the same."
_OF_ONE_PHOTO = "Give a crawl in which identities have several pictures, and not one photograph several times; no model mends that."
_TEMPORARY = (".evidence", ".gathered", ".judged")


def isolate(
    raw: Path, train: Path, embeddings: Path, out: Path, config: Config, *, previous: Path | None = None, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`: a noise table per raw shard, proposals.parquet, judge.json, and the dominant and consensus centers.

    `previous` is the noise folder of the round before: what it did not keep and this round does has the reason `recovered`.
    A head that has not learned to tell identities apart judges nothing: every verdict is `review`, the receipt's count `head_learned` is
    False and has no noise rate, and `learned.require_learned` turns that into an error.
    """
    inputs = {"train": mark_of(train), "embeddings": mark_of(embeddings), "previous": mark_of(previous) if previous else "none"}
    mark = fingerprint("isolate", VERSION, as_dict(config.isolate), **inputs)

    def work(folder: Path) -> Counts:
        return _isolate(raw, train, embeddings, previous, folder, config, progress)

    return run_stage(out, stage="isolate", mark=mark, work=work)


def _isolate(
    raw: Path, train: Path, embeddings: Path, previous: Path | None, folder: Path, config: Config, progress: Progress | None
) -> Counts:
    stems = shards.shard_stems(embeddings)
    prove_twins(raw, shards.shard_stems(raw))
    device = pick_device(config.device)
    crew = Crew(config.workers, str(device), progress, total=4 * len(stems))
    with workers_kept(config.workers), one_thread():
        gathered = gather(raw, train, embeddings, stems, folder / ".gathered", config, crew)
        counts = _judge(raw, train, previous, folder, gathered, config.isolate, crew)
    open_rivals.cache_clear()
    for name in _TEMPORARY:
        shutil.rmtree(folder / name)
    return counts


def _judge(raw: Path, train: Path, previous: Path | None, folder: Path, gathered: Gathered, settings: IsolateConfig, crew: Crew) -> Counts:
    files, known, split = gathered.files, gathered.identities, gathered.split
    evidence, work = folder / ".evidence", folder / ".judged"
    evidence.mkdir(exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    tables_of = {stem: evidence / f"{stem}.parquet" for stem in split.first_row}
    seen = sum_of(crew.each(write_evidence, [EvidencePart(files, stem, split.first_row[stem], out) for stem, out in tables_of.items()]))
    own, null = histogram_of(seen.own), histogram_of(seen.null)
    held_out_rate = _held_out_rate(seen)
    warning = _warning(raw, gathered, own, null, is_given(train))
    calibration = fit_calibration(own, null) if own.total else fit_calibration(gathered.head_own, gathered.head_null)
    may_judge = warning is None or settings.judge_anyway
    clean_deg = angle_of_probability(calibration, 0.5) if may_judge else 0.0
    proposals = write_proposals(evidence, folder / "proposals.parquet", known, open_rivals(files.rivals, files.device), clean_deg)
    overlap = work / "overlap.npy"
    save_array(overlap, overlapping(proposals, files.names))
    classes = len(known.size_C)
    joint, rest = _joint(crew.each(count_evidence, [JointPart(table, overlap, classes, clean_deg) for table in tables_of.values()]))
    own_angles = OwnAngles(
        everyone=calibration,
        rest=fit_calibration(rest, null) if rest.total else calibration,
        elsewhere_share=1 - rest.total / max(1, own.total),
    )
    fused = fit_fusion(own_angles, joint, held_out_rate=held_out_rate)
    copies = find_copies(
        evidence,
        gathered,
        work,
        crew,
        near_deg=clean_deg if warning is None else 0.0,  # where identities are not told apart, neither are photographs
        duplicate_angle_deg=min(settings.duplicate_angle_deg, angle_of_probability(calibration, SURELY_CLEAN) / 4),
    )
    noise = {stem: work / f"{stem}.npy" for stem in split.first_row}
    parts = [NoisePart(tables_of[stem], overlap, classes, fused, out) for stem, out in noise.items()]
    crew.all(write_noise, parts)
    copies.write_noise(split.samples, ((split.rows_of(stem), np.nan_to_num(np.load(out), nan=1.0)) for stem, out in noise.items()))
    bytes_elsewhere = work / "bytes_elsewhere.npy"
    save_array(bytes_elsewhere, same_bytes_elsewhere(raw, files, split, copies))
    save_array(work / "size.npy", known.size_C.numpy())
    save_array(work / "mass.npy", known.mass_C.numpy())
    save_array(work / "second_mass.npy", known.second_mass_C.masked_fill(known.gave_up_C, 0.0).numpy())  # that question is settled
    max_noise_probability = _max_noise_probability(fused, joint, settings)
    relabel_angle_deg = (
        angle_of_probability(calibration, SURELY_CLEAN) if settings.relabel_angle_deg is None else settings.relabel_angle_deg
    )
    verdicts, reasons = _told(
        crew.each(
            write_verdicts,
            [
                VerdictPart(
                    files=files,
                    evidence=tables_of[stem],
                    noise=noise[stem],
                    out=folder / f"{stem}.parquet",
                    rows=split.rows_of(stem),
                    before=previous / f"{stem}.parquet" if previous else None,
                    copies=copies,
                    bytes_elsewhere=bytes_elsewhere,
                    folder=work,
                    settings=settings,
                    max_noise_probability=max_noise_probability,
                    relabel_angle_deg=relabel_angle_deg,
                    may_judge=may_judge,
                )
                for stem in split.first_row
            ],
        )
    )
    rates = (*own_angles.noise_rate_interval, fused.noise_rate)
    facts: dict[str, Any] = {
        "rule": settings.rule,
        "max_angle_deg": None if settings.rule in ("nondominant", "calibrated") else settings.max_angle_deg,
        "max_noise_probability": max_noise_probability,
        "relabel_angle_deg": relabel_angle_deg,
        "noise_rate": fused.noise_rate,
        "noise_rate_low": min(rates),
        "noise_rate_high": max(rates),
        "held_out_noise_rate": held_out_rate,
        "kept_by_max_angle_deg": dict(zip(map(str, SWEEP_DEG), seen.kept_at.tolist(), strict=True)),
        "subcenters": files.subcenters,
        "rival_search_recall": gathered.recall,
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
    kinds = Counter(proposals["kind"].to_pylist())
    return {
        **verdicts,
        "noise_rate": round(fused.noise_rate, 4) if may_judge else None,
        "near_duplicates": reasons["near_duplicate"],
        "merge_proposals": kinds["merge"],
        "split_proposals": kinds["split"],
        "head_learned": warning is None,
    }


def _warning(raw: Path, gathered: Gathered, own: AngleHistogram, null: AngleHistogram, is_given: bool) -> str | None:
    """What is wrong with a model that tells no identities apart, and what to do about it; None when it does."""
    pairs = gathered.pair_same, gathered.pair_other
    seen_by_model = no_better_than_chance(*pairs) if is_given else degenerate_head(gathered.head_own, gathered.head_null)
    finding, advice = seen_by_model, _ADVICE[is_given]
    if finding is None and own.total == 0:
        finding, advice = _nothing_to_compare(raw, gathered, advice)
    finding = finding or degenerate_head(own, null)
    if finding is None and is_given:
        finding, advice = too_few_pairs(*pairs), _OF_FEW
    return f"{finding[0].upper()}{finding[1:]}. {advice}" if finding else None


def _nothing_to_compare(raw: Path, gathered: Gathered, of_model: str) -> tuple[str, str]:
    """Why no sample has a consensus of others to be compared with, and what to do about it: the crawl has nothing, or the model sees nothing."""
    if not have_different_pictures(raw):
        return "no identity has two samples that differ, so none can be judged by the others", _OF_ONE_PHOTO
    if gathered.pair_same.total == 0:  # near duplicates are not counted there
        return "the model takes all pictures of an identity for one photograph, though there are different ones", of_model
    seen = no_better_than_chance(gathered.pair_same, gathered.pair_other)
    return seen or "the model finds no two different pictures of an identity that agree, so none can be judged by the others", of_model


def _held_out_rate(seen: Seen) -> float | None:
    """Noise rate of identities that trained nothing, or None when they are too few."""
    if seen.held_out_own.sum() < LEAST_HELD_OUT:
        return None
    return fit_calibration(histogram_of(seen.held_out_own), histogram_of(seen.held_out_null)).noise_rate


def _joint(parts: Iterable[Joint]) -> tuple[JointHistogram, AngleHistogram]:
    """All evidence of all samples, and the own angles of those that do not belong elsewhere."""
    joint, rest = JointHistogram(), AngleHistogram()
    flat = joint.counts.view(-1).numpy()
    for part in parts:
        flat[part.places] += part.counts
        rest = rest.merge(histogram_of(part.rest))
    return joint, rest


def _max_noise_probability(fused: FusedJudge, joint: JointHistogram, settings: IsolateConfig) -> float:
    if settings.max_noise is not None:
        return fused.threshold_for_noise(joint, settings.max_noise)
    if settings.min_retention is not None:
        return fused.threshold_for_retention(joint, settings.min_retention)
    return settings.max_noise_probability


def _told(parts: Iterable[dict[str, dict[str, int]]]) -> tuple[Counter[str], Counter[str]]:
    """How many samples have each verdict and each reason."""
    verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    reasons: Counter[str] = Counter()
    for part in parts:
        verdicts.update(part["verdict"])
        reasons.update(part["reason"])
    return verdicts, reasons
