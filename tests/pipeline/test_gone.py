"""Samples whose files are no longer in the crawl: kept and counted as such, or left out when that is wanted."""

from pathlib import Path

import pandas as pd

from flows.purify import summary
from pipeline.decisions import decide
from pipeline.export import is_current
from pipeline.receipts import read
from pipeline.report import report
from tests.pipeline.clean_run import config, export_again, write_clean_run
from tests.pipeline.fake_run import Planted, key_of

ITEMS = [
    *[Planted(identity="Ada")] * 3,
    Planted(identity="Ada", is_gone=True),
    Planted(identity="Bob", is_gone=True),
    Planted(identity="Bob"),
    Planted(identity="Bob", is_gone=True, verdict="drop", reason="angle"),
    Planted(identity="Bob", is_gone=True, status="truncated"),
]


def test_what_vanished_stays_unless_it_is_to_be_left_out_and_people_win(tmp_path: Path) -> None:
    run = write_clean_run(tmp_path / "run", ITEMS)
    counted = {(row["status"], row["verdict"]): row["no_longer_in_crawl"] for row in report(run.root, "summary").to_pylist()}
    assert counted == {("ok", "keep"): 2, ("ok", "drop"): 1, ("truncated", "drop"): 1}
    assert read(run.clean).counts["samples"] == 6 and "gone" not in read(run.manifest).counts
    decide(run.root, [{"sample_id": key_of(ITEMS, 3), "verdict": "keep"}], by="Eve")
    without = config("export.keep_gone=false")
    assert not is_current(run, without)
    export_again(run, without)
    assert is_current(run, without)
    rows = pd.read_parquet(run.manifest)
    assert rows["verdict"].tolist() == ["keep"] * 4 + ["drop", "keep", "drop", "drop"]
    assert rows["reason"].tolist()[3:] == ["decision", "gone", "accepted", "gone", "truncated"]
    assert rows["rule_verdict"].tolist()[4] == "keep" and rows["clean_identity"].isna().tolist() == [False] * 4 + [True, False, True, True]
    assert read(run.clean).counts["samples"] == 5 and read(run.manifest).counts["gone"] == 2


def test_the_end_of_a_run_tells_how_many_are_gone() -> None:
    def told(ingest: dict[str, int], manifest: dict[str, int]) -> dict[str, object]:
        verdicts = dict.fromkeys(("keep", "drop", "relabel", "review"), 1)
        counts = {"ingest": ingest, "round 1 isolate": {"noise_rate": 0.1}, "manifest": verdicts | manifest}
        counts |= {"export": {"samples": 1, "identities": 1}, "evaluate": {}}
        return {row["what"]: row["value"] for row in summary({"stages": [{"stage": name, "counts": one} for name, one in counts.items()]})}

    assert told({"items": 402}, {})["items in the crawl"] == 402
    found = told({"items": 402, "gone": 10}, {"gone": 7})
    assert found["items"] == "402, of which 10 are no longer in the crawl" and found["left out as no longer in the crawl"] == 7
    assert told({"items": 3, "gone": 1}, {})["items"] == "3, of which 1 is no longer in the crawl"
