"""What a person's judgement of a few samples says of all: intervals that cover, on runs whose truth is planted."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import receipts
from pipeline.errors import BadInput
from pipeline.review import NO, YES, draw, estimate
from tests.pipeline.fake_run import Planted, write_run


def finished(run: Path, mark: str = "0" * 64) -> Path:
    """`run`, its manifest's receipt in place: the run id is made of it."""
    receipts.write_json(run / "manifest" / receipts.NAME, {"stage": "manifest", "fingerprint": mark, "counts": {}, "seconds": 0.0})
    return run


def planted_run(root: Path, seed: int) -> tuple[Path, dict[str, bool], float, float]:
    """A run of 400 samples, who is right by source_uri, residual noise, clean loss."""
    rng = np.random.default_rng(seed)
    kept, right = rng.random(400) < 0.6, np.zeros(400, bool)
    right[kept], right[~kept] = rng.random(kept.sum()) < 0.9, rng.random((~kept).sum()) < 0.15
    rows = [
        Planted(
            identity=f"P{place % 9}",
            angle_deg=30.0 if keep else 90.0,
            verdict="keep" if keep else "drop",
            reason="accepted" if keep else "angle",
        )
        for place, keep in enumerate(kept)
    ]
    truth = {f"P{place % 9}/{place:04d}.jpg": bool(is_right) for place, is_right in enumerate(right)}
    return (
        finished(write_run(root / "run", rows, rounds=1)),
        truth,
        float((~right[kept]).mean()),
        float((right & ~kept).sum() / right.sum()),
    )


def judge(run: Path, review: Path, truth: dict[str, bool]) -> None:
    from pipeline.report import query

    uri = {row["sample_id"]: row["source_uri"] for row in query(run, "SELECT sample_id, source_uri FROM manifest").to_pylist()}
    with review.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["is_right"] = "yes" if truth[uri[row["sample_id"]]] else "no"
    with review.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def test_the_intervals_cover_what_was_planted(tmp_path: Path) -> None:
    run, truth, residual, loss = planted_run(tmp_path, 0)
    covered = {"residual": 0, "loss": 0}
    for seed in range(12):
        assert draw(run, tmp_path / str(seed), count=120, seed=seed) == 120
        judge(run, tmp_path / str(seed) / "review.csv", truth)
        found = estimate(run, tmp_path / str(seed) / "review.csv")
        assert found.judged_kept == 60 and found.judged_dropped == 60
        covered["residual"] += found.residual_noise[1] <= residual <= found.residual_noise[2]
        covered["loss"] += found.clean_loss[1] <= loss <= found.clean_loss[2]
        assert found.residual_noise[1] <= found.residual_noise[0] <= found.residual_noise[2] < 0.35
    assert covered["residual"] >= 10 and covered["loss"] >= 10


def test_the_same_seed_draws_the_same_samples_and_tells_no_verdict(tmp_path: Path) -> None:
    run, _, _, _ = planted_run(tmp_path, 1)
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        draw(run, tmp_path / name, count=20, seed=seed)
    texts = {name: (tmp_path / name / "review.csv").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"] and "keep" not in texts["a"] and "drop" not in texts["a"]
    with (tmp_path / "a" / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stratum"] for row in rows].count("a") == 10 and all((tmp_path / "a" / row["image"]).stat().st_size > 100 for row in rows)
    with pytest.raises(BadInput, match="is there already"):
        draw(run, tmp_path / "a", count=20, seed=5)


def test_an_unfinished_or_foreign_review_says_what_is_missing(tmp_path: Path) -> None:
    run, truth, _, _ = planted_run(tmp_path, 2)
    draw(run, tmp_path / "review", count=20, seed=0)
    review = tmp_path / "review" / "review.csv"
    with pytest.raises(BadInput, match="judges 0 kept and 0 other"):
        estimate(run, review)
    judge(run, review, truth)
    text = review.read_text()
    review.write_text(text.replace("yes", "perhaps"))
    with pytest.raises(BadInput, match=r"is_right is 'perhaps'; write yes or no \(or y, true, right, 1; n, false, wrong, 0\)"):
        estimate(run, review)
    review.write_text(text)
    wanted = estimate(run, review)
    for yes, no in zip(YES, NO, strict=True):
        review.write_text(text.replace(",yes", f",{yes.upper()}").replace(",no", f", {no} "))
        assert estimate(run, review) == wanted
    first = text.splitlines()[1]
    review.write_text(f"{text}{first}\n")
    assert estimate(run, review) == wanted, "the same twice counts once"
    turned = first.removesuffix("yes") + "no" if first.endswith("yes") else first.removesuffix("no") + "yes"
    review.write_text(f"{text}{turned}\n")
    with pytest.raises(BadInput, match=rf"lines 2 and {len(text.splitlines()) + 1}: two answers on sample .*Leave one"):
        estimate(run, review)
    other, _, _, _ = planted_run(tmp_path / "other", 3)
    review.write_text(text.replace(text.splitlines()[1].split(",")[1], "f" * 32))
    with pytest.raises(BadInput, match="1 judged samples are not in"):
        estimate(run, review)
    assert other.exists()
    with pytest.raises(BadInput, match="cannot be read"):
        estimate(run, tmp_path / "nowhere.csv")


def test_a_relabel_is_asked_by_its_new_name_and_a_review_of_another_run_is_refused(tmp_path: Path) -> None:
    rows = [
        Planted(identity="A", verdict="keep" if place < 4 else "drop", reason="accepted" if place < 4 else "angle") for place in range(8)
    ]
    run, other = (finished(write_run(tmp_path / mark, rows, rounds=1), mark * 64) for mark in "12")
    part = next((run / "manifest").glob("part-*.parquet"))
    table = pq.read_table(part)
    place = table.column_names.index("clean_identity")
    renamed = pa.array([None if name is None else "B" for name in table["clean_identity"].to_pylist()], table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), renamed), part)
    draw(run, tmp_path / "review", count=8, seed=0)
    review = tmp_path / "review" / "review.csv"
    with review.open(newline="") as file:
        assert {(row["stratum"], row["asked_identity"]) for row in csv.DictReader(file)} == {("a", "B"), ("b", "A")}
    review.write_text(review.read_text().replace(".jpg,", ".jpg,yes"))
    assert estimate(run, review).residual_noise[0] == 0.0
    with pytest.raises(BadInput, match="another run"):
        estimate(other, review)
