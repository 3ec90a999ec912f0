"""What people do with a finished run: decide, have it trained on, forget somebody; and what the flows make of it."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.purify import purify
from pipeline.decisions import decide
from pipeline.history import read_history
from pipeline.receipts import mark_of
from tests.flows.small_run import config, manifest, stages

pytestmark = pytest.mark.usefixtures("server")


def _members(tar: Path) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


def test_a_person_decides_and_export_carries_it_out_without_training(
    finished: tuple[Path, Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    rows = manifest(run).query("status == 'ok'")
    dropped, kept = rows[rows["verdict"] == "drop"].iloc[0], rows[rows["verdict"] == "keep"].iloc[0]

    def said(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        assert stop.value.code in (0, None), capsys.readouterr()
        return capsys.readouterr().out

    trained = (run / "rounds" / "2" / "train" / "_receipt.json").read_bytes()
    said("decide", str(run), "--sample", dropped["sample_id"], "--verdict", "keep", "--note", "it is her", "--by", "Eve")
    said("decide", str(run), "--sample", kept["sample_id"], "--verdict", "drop", "--by", "Eve")
    assert f"purify export {run}" in said("status", str(run)), "what was decided waits"
    with pytest.raises(SystemExit):
        cli.main(["report", str(run), "verdicts"])
    assert f"purify export {run}" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.imagine.invert", None)  # the model and its centers are the same: no face is imagined anew
        said("export", str(run))
    pictures = [{file.name: file.read_bytes() for file in (one / "audit" / "inversions").iterdir()} for one in (finished[1], run)]
    assert sorted(pictures[0].values()) == sorted(pictures[1].values()) and len(pictures[1]) > 1
    titles = [re.search("<title>.*</title>", (one / "audit" / "index.html").read_text("utf-8")) for one in (finished[1], run)]
    assert titles[0] and titles[1] and titles[0][0] == titles[1][0], "export calls the run as run did"
    now = manifest(run).set_index("source_uri")
    assert now.loc[dropped["source_uri"], "clean_shard"] == "clean-000000" and pd.isna(now.loc[kept["source_uri"], "clean_identity"])
    assert now.loc[dropped["source_uri"], "decided_by"] == "person:Eve" and now.loc[dropped["source_uri"], "rule_verdict"] == "drop"
    before, record = finished[2], json.loads((run / "run.json").read_text())
    counts = {stage["stage"]: stage["counts"] for stage in record["stages"]}
    assert record["run_id"] == mark_of(run / "manifest")[:16] != before["run_id"]
    assert stages(record).keys() == stages(before).keys() and {name for name, same in stages(record).items() if not same} == {
        "manifest",
        "export",
        "audit",
    }
    assert counts["manifest"]["exported"] == counts["export"]["samples"] == int(now["clean_shard"].notna().sum())
    assert {entry["run_id"]: entry["keep"] for entry in read_history(run)}[record["run_id"]] == int((now["verdict"] == "keep").sum())
    told = said("status", str(run))
    assert "Finished." in told and "audit/index.html" in told and "purify export" not in told
    (run / "audit").rename(run / "away")
    assert "audit page is gone" in said("status", str(run)) and "index.html" not in said("status", str(run))
    (run / "away").rename(run / "audit")
    assert record["run_id"] in said("history", str(run)) and f" {counts['manifest']['exported']} " in said("history", str(run))
    names = [name for tar in (run / "clean").glob("*.tar") for name in _members(tar)]
    assert f"{dropped['sample_id']}.jpg" in names and f"{kept['sample_id']}.jpg" not in names
    assert (run / "rounds" / "2" / "train" / "_receipt.json").read_bytes() == trained
    assert "it is her" in said("why", str(run), dropped["sample_id"])
    assert "decision" in said("diff", str(finished[1]), str(run), "--format", "markdown")
    said("undo", str(run), "--sample", dropped["sample_id"], "--sample", kept["sample_id"], "--by", "Eve")
    said("export", str(run))
    assert manifest(run)["verdict"].tolist() == manifest(finished[1])["verdict"].tolist()
    record = json.loads((run / "run.json").read_text())
    assert record["run_id"] == before["run_id"] and [entry["run_id"] for entry in read_history(run)][-1] == before["run_id"]
    assert len(read_history(run)) == 3 and {entry["drift"] for entry in read_history(run)} == {None}, "nothing was judged anew"
    (run / "run.json").write_text(json.dumps(record | {"config": record["config"] | {"limits": {"kept_share": 1.0}}}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(run)])
    assert stop.value.code == 3 and "limits.kept_share" in " ".join(capsys.readouterr().out.split())


def test_a_decision_is_trained_on_in_the_next_round(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    crawl, run = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], run)
    classes = pq.read_table(run / "rounds" / "2" / "train" / "classes.parquet").to_pandas().query("samples > 2")["identity"]
    kept = pd.concat(pd.read_parquet(path) for path in (run / "rounds" / "1" / "noise").glob("raw-*.parquet")).query("verdict == 'keep'")
    rows = kept[kept["identity"].isin(classes)]  # what round 2 trains on
    decide(run, [{"sample_id": rows.iloc[0]["sample_id"], "verdict": "drop"}], by="Eve")
    record = purify(crawl, run, config())
    reused = {stage["stage"]: stage["reused"] for stage in record["stages"]}
    assert reused["round 1 isolate"] and not reused["round 2 train"] and not reused["manifest"]
    before = {stage["stage"]: stage["counts"] for stage in finished[2]["stages"]}["round 2 train"]["samples"]
    assert {stage["stage"]: stage["counts"] for stage in record["stages"]}["round 2 train"]["samples"] == before - 1


def test_a_person_is_forgotten_and_the_flow_goes_on(
    finished: tuple[Path, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    crawl, run = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], run)
    name = manifest(run).query("verdict == 'keep'")["identity"].iloc[0]

    def said(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        assert stop.value.code in (0, None), capsys.readouterr()
        return capsys.readouterr().out

    assert "Nothing was changed" in said("forget", str(run), "--identity", name)
    assert "Done" in said("forget", str(run), "--identity", name, "--yes")
    reused = stages(purify(crawl, run, config()))
    assert {stage for stage, same in reused.items() if not same} == {"audit"}, "only the page is made again"
    assert "forgotten" in said("report", str(run), "summary")
    said("export", str(run))
    assert len(manifest(run)) == len(manifest(finished[1])) and name not in set(manifest(run)["identity"])
    texts = [path.read_text() for path in (run / "audit").rglob("*") if path.suffix in {".js", ".html"}]
    assert len(texts) >= 4 and not any(json.dumps(name) in text for text in texts)
