"""Status from files, the trend over runs, the limits that mark one."""

import json
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import LimitsConfig
from pipeline.errors import BadInput
from pipeline.forgotten import Forgotten, append, keep_key, new_key
from pipeline.history import drift, exceeded, read_history, remember, run_id
from pipeline.layout import RunLayout
from pipeline.places import recorded
from pipeline.receipts import Receipt, write_json
from pipeline.run_folder import claimed
from pipeline.status import Story, read_status
from tests.pipeline.fake_run import Planted, write_run


def test_a_run_that_goes_on_tells_how_far_it_is_and_one_that_died_that_nobody_works(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    with pytest.raises(BadInput, match="is no run folder"):
        read_status(run.root)
    with claimed(tmp_path, run):
        story = Story(run.root)
        story.begin("ingest")
        story.end("ingest", Receipt("ingest", "f", {"items": 50}, 2.0))
        story.begin("train")
        story.progress(100, 400)  # done by an earlier attempt
        story._now["counted_from"] = time.time() - 10
        story._told = 0.0
        story.progress(150, 400)
        found = read_status(run.root)
        assert (found.state, found.stage, found.done, found.total) == ("running", "train", 150, 400)
        assert found.per_second == pytest.approx(5, rel=0.05) and found.left_s == pytest.approx(50, rel=0.05)
        assert [(one["stage"], one["per_second"]) for one in found.finished] == [("ingest", 25.0)]
    assert read_status(run.root).state == "stopped"
    story.close()
    write_json(run.run_json, {"crawl": recorded(tmp_path), "finished": True, "stages": [{"stage": "x"}], "warnings": ["w"], "config": {}})
    found = read_status(run.root)
    assert (found.state, found.finished, found.warnings) == ("finished", [{"stage": "x"}], ["w"])
    assert len(found.todo) == 1 and "is not finished" in found.todo[0], "a folder that somebody removed"


def test_an_entry_says_what_the_manifest_says_and_is_written_once(tmp_path: Path) -> None:
    planted = [Planted(identity="Ada", angle_deg=20.5, is_gone=True)] * 2 + [Planted(identity="Ada", angle_deg=20.5)] * 4
    planted += [Planted(identity="Bob", angle_deg=88.0, verdict="drop", reason="angle")] * 3
    planted += [Planted(identity="Bob", angle_deg=None, status="truncated", verdict="drop")]
    run = RunLayout(write_run(tmp_path / "run", planted))
    write_json(run.manifest / "_receipt.json", {"stage": "manifest", "fingerprint": "a" * 64, "counts": {}, "seconds": 1.0})
    part = next(run.manifest.glob("part-*.parquet"))
    table = pq.read_table(part)
    place = table.schema.get_field_index("clean_shard")
    shards = pa.array(["clean-000000"] * 7 + [None] * 3, table.schema.field(place).type)
    pq.write_table(
        table.set_column(place, table.schema.field(place), shards), part
    )  # the six that are kept, and one that a person relabelled
    entry = remember(run, 1)
    assert entry == remember(run, 1) and [path.name for path in run.history.iterdir()] == [f"000001-{'a' * 16}.json"]
    assert [entry[name] for name in ("items", "gone", "samples", "keep", "drop", "relabel", "review")] == [10, 2, 9, 6, 3, 0, 0]
    assert (entry["angles"][20], entry["angles"][88], sum(entry["angles"])) == (6, 3, 9)
    assert entry["noise_rate"] == 0.123 and entry["drift"] is None and entry["kept_share"] == 0.7778
    assert entry["sources"] == [], "of a folder per identity the first folder is a person's name"
    write_json(run.manifest / "_receipt.json", {"stage": "manifest", "fingerprint": "b" * 64, "counts": {}, "seconds": 1.0})
    remember(run, 1)
    assert [one["run_id"][0] for one in read_history(run.root)] == ["a", "b"]
    run.forgotten.mkdir()
    known = Forgotten(new_key())
    keep_key(run.root, known)
    append(run.root, [{"kind": "identity", "hash": known.mark("identity", "Cyd"), "items": 1, "words": None}], by=None)
    assert len(run_id(run)) == 16 and run_id(run) != "b" * 16, "somebody was forgotten since"
    shutil.rmtree(run.forgotten)
    last = run.history / f"000002-{'b' * 16}.json"
    for angles, drift_of, named in ((entry["angles"], 0.07, "c"), ([3 * one for one in entry["angles"]], None, "d")):
        write_json(last, read_history(run.root)[1] | {"drift": 0.07, "angles": angles})
        write_json(run.manifest / "_receipt.json", {"stage": "manifest", "fingerprint": named * 64, "counts": {}, "seconds": 1.0})
        assert remember(run, 1)["drift"] == drift_of, "the drift of a judgement stands until there is another"
        (run.history / f"000003-{named * 16}.json").unlink()
    (run.history / "000001-aaaaaaaaaaaaaaaa.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        read_history(run.root)


def test_drift_is_the_largest_gap_of_the_two_distributions() -> None:
    before, now = [0] * 180, [0] * 180
    before[30], before[90] = 600, 400
    now[30], now[90] = 150, 150
    assert drift(before, now) == pytest.approx(0.1) and drift(before, before) == 0
    assert drift(before, [one // 10 for one in now]) is None, "30 angles prove nothing"


def test_limits_are_kept_at_exactly_the_limit() -> None:
    entry = {"noise_rate": 0.5, "kept_share": 0.4, "drift": 0.1}
    assert exceeded(entry, LimitsConfig()) == [] == exceeded(entry, LimitsConfig(noise_rate=0.5, kept_share=0.4, drift=0.1))
    found = exceeded(entry, LimitsConfig(noise_rate=0.49, kept_share=0.41, drift=0.09))
    assert [words.rpartition("limits.")[2].split()[0] for words in found] == ["noise_rate", "kept_share", "drift"]
    assert exceeded({**entry, "drift": None}, LimitsConfig(drift=0.0)) == [], "a first run drifts from nothing"


def test_the_status_file_is_json_that_others_may_read(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.begin("round 1 train")
    assert json.loads((tmp_path / ".status.json").read_text())["now"]["stage"] == "round 1 train"
