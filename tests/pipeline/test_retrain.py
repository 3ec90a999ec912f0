"""When a crawl has outgrown its training: each limit by itself, at the limit and beyond, and what is too little to count."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.config import Config, RetrainConfig, TrainConfig, load
from pipeline.errors import BadConfig
from pipeline.layout import RunLayout
from pipeline.receipts import NAME, write_json
from pipeline.retrain import Grown, decide, measure
from pipeline.shards import write_twin
from pipeline.train import is_held_out
from pipeline.trained import VERSION, kept, settings_of, unseen

LIMITS = RetrainConfig(new_share=0.25, new_identities=0.125, drift=0.1)
AT_ALL_LIMITS = Grown(samples=1000, new_samples=250, samples_without_center=125, drift=0.1)


def test_exactly_at_the_limits_is_within_them() -> None:
    decision = decide(AT_ALL_LIMITS, LIMITS)
    assert not decision.train_anew and decision.why.startswith("training kept: new samples 0.250 (retrain.new_share 0.25); ")


@pytest.mark.parametrize(
    ("beyond", "why"),
    [
        ({"new_samples": 251}, "trained anew: new samples 0.251 above retrain.new_share 0.25"),
        ({"samples_without_center": 126}, "trained anew: samples of identities without a center 0.126 above retrain.new_identities 0.125"),
        ({"drift": 0.101}, "trained anew: drift of the angles 0.101 above retrain.drift 0.1"),
    ],
)
def test_beyond_one_limit_is_enough_and_the_reason_says_which(beyond: dict[str, float], why: str) -> None:
    decision = decide(replace(AT_ALL_LIMITS, **beyond), LIMITS)
    assert decision.train_anew and decision.why == why


def test_all_reasons_are_told() -> None:
    assert decide(Grown(samples=10, new_samples=9, samples_without_center=8, drift=0.9), LIMITS).why.count("above") == 3


def test_too_few_angles_are_no_drift_and_an_empty_crawl_is_no_reason() -> None:
    decision = decide(Grown(samples=0, new_samples=0, samples_without_center=0, drift=None), LIMITS)
    assert not decision.train_anew and "drift of the angles not counted, too few" in decision.why


def _name(number: int, *, held_out: bool) -> str:
    """An identity that is held out, or is not."""
    return next(name for n in range(1000) if is_held_out(name := f"P{number}-{n}", share=0.3, seed=0) == held_out)


def _judged(run: RunLayout, stem: str, identities: list[str], angle_deg: list[float | None], digest: str) -> None:
    """A raw shard's twin and its noise table, of what `measure` reads."""
    count = len(identities)
    columns = {"identity": pa.array(identities), "status": pa.array(["ok"] * count)}
    write_twin(run.raw / f"{stem}.parquet", pa.table(columns), {"num_samples": str(count), "tar_bytes": "1", "tar_sha256": digest})
    noise = pa.table({"identity": pa.array(identities), "angle_deg": pa.array(angle_deg, pa.float32())})
    pq.write_table(noise, run.round(1).noise / f"{stem}.parquet")


def test_what_is_measured(tmp_path: Path) -> None:
    run, config = RunLayout(tmp_path), load(overrides=["rounds=1", "evaluate.holdout=0.3", "train.min_samples=3"])
    known, new, rare, hidden = (_name(n, held_out=n == 3) for n in range(4))
    for folder in (run.raw, run.round(1).train, run.round(1).noise):
        folder.mkdir(parents=True)
    _judged(run, "raw-000000", [known] * 100 + [hidden] * 300, [5.0] * 100 + [30.0] * 300, "a")
    new_identities = [known] * 200 + [new] * 3 + [rare] * 2 + [hidden] * 210
    _judged(run, "raw-000001", new_identities, [90.0] * 205 + [30.0] * 100 + [60.0] * 100 + [None] * 10, "b")
    names = pa.table({"identity": pa.array([known, new, rare, hidden])})
    pq.write_table(names, run.raw / "identities.parquet")
    classes = pa.table({"class_index": [0], "identity": [known], "samples": [300]}).cast(tables.CLASSES)
    pq.write_table(classes, run.round(1).train / "classes.parquet")
    told = {"version": VERSION, "settings": settings_of(config), "before": None, "shards": {"raw-000000": "a"}}
    write_json(run.round(1).train / "model.json", {"trained": told})
    write_json(run.round(1).train / NAME, {"stage": "train", "fingerprint": "m", "counts": {}, "seconds": 1.0})
    assert measure(run, config) == Grown(samples=815, new_samples=415, samples_without_center=3, drift=0.5), (
        "the drift is of held-out identities"
    )
    assert unseen({"raw-000000": "a", "raw-000001": "b"}, run.raw) == set()
    assert unseen({"raw-000000": "before forget", "raw-000001": "b"}, run.raw) == {"raw-000000"}


def test_what_changes_no_result_is_no_other_setting() -> None:
    assert settings_of(Config()) == settings_of(Config(mode="judge", train=TrainConfig(processes=2, compile=True)))
    assert settings_of(Config()) != settings_of(Config(train=TrainConfig(epochs=3)))


def _training(folder: Path, config: Config, mark: str, before: str | None, *, version: int = VERSION) -> Path:
    folder.mkdir()
    told = {"version": version, "settings": settings_of(config), "before": before, "shards": {"raw-000000": "a"}}
    write_json(folder / "model.json", {"trained": told})
    write_json(folder / NAME, {"stage": "train", "fingerprint": mark, "counts": {"samples": 7}, "seconds": 1.0})
    return folder


def test_what_training_is_kept(tmp_path: Path) -> None:
    config, raw = Config(), tmp_path / "raw"
    raw.mkdir()
    for stem, digest in (("raw-000000", "a"), ("raw-000001", "b")):
        write_twin(raw / f"{stem}.parquet", pa.table({"x": [1]}), {"num_samples": "1", "tar_bytes": "1", "tar_sha256": digest})
    first = _training(tmp_path / "1", config, "m1", None)
    second = _training(tmp_path / "2", config, "m2", "m1")
    of_another = _training(tmp_path / "3", config, "m3", "what round 1 was before it was trained anew")
    by_earlier_version = _training(tmp_path / "4", config, "m4", None, version=VERSION - 1)
    receipt = kept(second, raw, config, before=first)
    assert receipt is not None and receipt.reused and receipt.fingerprint == "m2"
    assert receipt.counts == {"samples": 7, "kept_training": True, "shards": 1, "new_shards": 1}
    assert kept(of_another, raw, config, before=first) is None, "round 1 was trained anew and round 2 not yet"
    assert kept(by_earlier_version, raw, config, before=None) is None
    assert kept(tmp_path / "not there", raw, config, before=None) is None
    with pytest.raises(BadConfig, match=r"seed was 0 and is 1\. --mode judge trains nothing.*--mode full"):
        kept(first, raw, Config(seed=1), before=None)
