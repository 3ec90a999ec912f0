"""How much noise is left, and how much was lost: a person judges a random few of the kept and of the dropped, and intervals say the rest.

`draw` writes a folder to look through: crops, and a table with an empty column. `estimate` reads it back.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from arcface_core.protocols.verification import wilson
from pipeline import shards
from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.history import run_id
from pipeline.layout import RunLayout
from pipeline.receipts import atomic
from pipeline.run_folder import require_whole
from pipeline.sums import prove_twins

COLUMNS = ("run_id", "sample_id", "asked_identity", "stratum", "image", "is_right")
YES, NO = ("yes", "y", "true", "right", "1"), ("no", "n", "false", "wrong", "0")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Shares with 95 % Wilson intervals (value, low, high), and how many samples were judged.

    residual_noise   of the kept samples, the share that is wrong
    dropped_clean    of the samples that are not kept, the share whose identity in the crawl is right
    clean_loss       of all right samples, the share that was not kept; its interval joins the ends of the other two, so it covers more than 95 %
    """

    residual_noise: tuple[float, float, float]
    dropped_clean: tuple[float, float, float]
    clean_loss: tuple[float, float, float]
    judged_kept: int
    judged_dropped: int


def draw(run: Path, out: Path, *, count: int, seed: int) -> int:
    """Write `out`: review.csv and images/, half of the kept and half of the others, without their verdicts; how many were drawn.

    `asked_identity` is the name that a kept sample is exported under, which a relabel changed, and the name in the crawl of one that is not kept.
    The same (run, seed) draws the same samples. Raises BadInput when `out` is there already.
    """
    if out.exists():
        raise BadInput(f"{out} is there already. Give a folder that is not.")
    layout = RunLayout(run)
    require_whole(layout)
    prove_twins(layout.raw, shards.shard_stems(layout.raw))
    if count < 2:
        raise BadInput("A review wants at least two samples: one of the kept, one of the others.")
    if not any(layout.manifest.glob("part-*.parquet")):
        raise BadInput(f"{run} has no manifest yet. Run `purify run` first.")
    with duckdb.connect() as db:
        rows = fetch(
            db,
            """WITH drawn AS (
                   SELECT sample_id, coalesce(clean_identity, identity) AS asked_identity, source_uri, shard,
                          CASE WHEN clean_identity IS NULL THEN 'b' ELSE 'a' END AS stratum,
                          md5(sample_id || $seed) AS lot
                   FROM read_parquet($manifest) WHERE status = 'ok'
                   QUALIFY row_number() OVER (PARTITION BY stratum ORDER BY lot, sample_id) <= $each)
               SELECT d.*, i.crop_offset, i.crop_size FROM drawn d JOIN read_parquet($raw) i ON i.source_uri = d.source_uri ORDER BY lot""",
            {
                "manifest": every(layout.manifest, "part-*.parquet"),
                "raw": every(layout.raw, "raw-*.parquet"),
                "seed": str(seed),
                "each": count // 2,
            },
        ).to_pylist()
    (out / "images").mkdir(parents=True)
    readers: dict[str, shards.CropReader] = {}
    try:
        for row in rows:
            if row["shard"] not in readers:
                readers[row["shard"]] = shards.CropReader(layout.raw / f"{row['shard']}.tar")
            (out / "images" / f"{row['sample_id']}.jpg").write_bytes(readers[row["shard"]].read(row["crop_offset"], row["crop_size"]))
    finally:
        for reader in readers.values():
            reader.close()
    drawn_of = run_id(layout)
    with atomic(out / "review.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            table.writerow([drawn_of, row["sample_id"], row["asked_identity"], row["stratum"], f"images/{row['sample_id']}.jpg", ""])
    return len(rows)


def estimate(run: Path, review: Path) -> Estimate:
    """Residual noise and clean loss of a run from a judged review.csv (is_right: one of `YES` or `NO`, in any case; empty: not judged).

    A sample that is judged twice alike counts once. Raises BadInput for another value, for two answers on a sample, for a review of another run
    or of this one before its export changed, for a sample that is not in the run, and when a stratum has no judged sample.
    """
    layout = RunLayout(run)
    answers = _answers(review, run, run_id(layout))
    with duckdb.connect() as db:
        found = fetch(
            db,
            "SELECT sample_id, clean_identity IS NOT NULL AS kept FROM read_parquet($manifest) WHERE status = 'ok'"
            " AND sample_id IN (SELECT unnest($samples))",
            {"manifest": every(layout.manifest, "part-*.parquet"), "samples": list(answers)},
        ).to_pylist()
        totals = fetch(
            db,
            "SELECT count(*) FILTER (WHERE clean_identity IS NOT NULL) AS kept, count(*) AS samples FROM read_parquet($manifest) WHERE status = 'ok'",
            {"manifest": every(layout.manifest, "part-*.parquet")},
        ).to_pylist()[0]
    if len(found) != len(answers):
        raise BadInput(f"{len(answers) - len(found)} judged samples are not in {run}. Give the review that was drawn from this run.")
    kept = [answers[row["sample_id"]] for row in found if row["kept"]]
    dropped = [answers[row["sample_id"]] for row in found if not row["kept"]]
    if not kept or not dropped:
        raise BadInput(f"{review} judges {len(kept)} kept and {len(dropped)} other samples. Judge some of each: fill in is_right.")
    wrong, right = kept.count(False), dropped.count(True)
    noise, lost = (wrong / len(kept), *wilson(wrong, len(kept))), (right / len(dropped), *wilson(right, len(dropped)))
    others = totals["samples"] - totals["kept"]

    def loss(share_noise: float, share_lost: float) -> float:
        away, here = others * share_lost, totals["kept"] * (1 - share_noise)
        return away / (away + here) if away + here else 0.0

    return Estimate(
        residual_noise=noise,
        dropped_clean=lost,
        clean_loss=(loss(noise[0], lost[0]), loss(noise[1], lost[1]), loss(noise[2], lost[2])),
        judged_kept=len(kept),
        judged_dropped=len(dropped),
    )


def _answers(review: Path, run: Path, identifier: str) -> dict[str, bool]:
    answers: dict[str, bool] = {}
    lines: dict[str, int] = {}
    try:
        with review.open(newline="", encoding="utf-8-sig") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{review} cannot be read: {str(error).rstrip('.')}. Give the review.csv that `purify sample-review` wrote."
        ) from error
    for number, row in enumerate(rows, 2):
        answer = str(row.get("is_right") or "").strip().lower()
        if answer and answer not in YES + NO:
            raise BadInput(
                f"{review}, line {number}: is_right is {answer[:40]!r}; write yes or no (or {', '.join(YES[1:])}; {', '.join(NO[1:])}), or leave it empty."
            )
        if answer and row.get("run_id") != identifier:
            raise BadInput(
                f"{review}, line {number}: not drawn from what {run} exports now (run id {identifier}), but from another run, or from this one before"
                f" it changed. Give the run that it was drawn from, or draw anew: purify sample-review {run} OUT."
            )
        if answer and row.get("sample_id"):
            sample = str(row["sample_id"])
            earlier = lines.setdefault(sample, number)
            if answers.setdefault(sample, answer in YES) != (answer in YES):
                raise BadInput(f"{review}, lines {earlier} and {number}: two answers on sample {sample[:80]!r}. Leave one.")
    return answers
