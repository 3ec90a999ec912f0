"""The whole flow on a small crawl: everything accounted for, the truth never read, a second run that does nothing, a change that redoes its own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds

from flows import cli
from flows.purify import export, purify, summary
from pipeline import tables
from pipeline.embedders import load_embedder
from pipeline.errors import BadInput, HeadNotLearned, StaleInput
from pipeline.forget import forget
from pipeline.layout import RunLayout
from pipeline.protect import protect
from pipeline.report import report
from pipeline.score import score
from pipeline.status import read_status
from tests.flows.small_run import OPTIONS, config, manifest, stages
from tests.pipeline.embedder_models import write

pytestmark = pytest.mark.usefixtures("server")


def test_every_file_of_the_crawl_has_one_row(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    crawl, run, record = finished
    files = sorted(str(path.relative_to(crawl)) for path in crawl.rglob("*") if path.is_file())
    rows = manifest(run)
    assert sorted(rows["source_uri"]) == files
    assert set(rows["verdict"]) <= set(tables.VERDICTS) and set(rows["status"]) <= set(tables.STATUSES)
    assert (rows.loc[rows["status"] != "ok", "decided_by"] == "ingest").all()
    assert (rows.loc[rows["status"] == "ok", "decided_by"] == "rule:angle").all() and (rows.loc[rows["status"] == "ok", "round"] == 2).all()
    for path in (run / "manifest").glob("*.parquet"):
        tables.check(path, tables.MANIFEST)
    assert record["finished"] and json.loads((run / "run.json").read_text())["stages"] == record["stages"]


def test_the_rule_can_be_judged_again_from_the_manifest(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    rows = manifest(finished[1]).query("status == 'ok'")
    alone = rows.groupby("identity")["identity"].transform("size") == 1
    one_of_two = rows["reason"].isin(["near_duplicate", "same_bytes_elsewhere"])
    assert ((rows["verdict"] == "keep") == ((rows["angle_deg"] <= 75.0) & ~alone & ~one_of_two)).all()


def test_clean_shards_hold_exactly_what_was_kept_and_bare_webdataset_reads_them(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, run, _ = finished
    facts = json.loads((run / "clean" / "dataset.json").read_text())
    identities = pq.read_table(run / "clean" / "identities.parquet").to_pylist()
    names = {row["class_index"]: row["identity"] for row in identities}
    kept = manifest(run).query("verdict == 'keep'").set_index("sample_id")
    seen = {}
    for shard in facts["shards"]:
        path = run / "clean" / shard["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        for sample in wds.WebDataset(str(path), shardshuffle=False).decode("rgb8"):
            seen[sample["__key__"]] = names[sample["cls"]]
            assert sample["jpg"].shape == (112, 112, 3) and sample["json"]["identity"] == names[sample["cls"]]
            assert kept.loc[sample["__key__"], "clean_shard"] == path.stem
    assert seen == kept["clean_identity"].to_dict() and len(seen) == facts["samples"]
    assert sorted(names) == list(range(len(names)))


def test_the_page_and_the_evaluation_are_there(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, run, _ = finished
    page = (run / "audit" / "index.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert {path.name[:6] for path in (run / "audit" / "inversions").glob("0*.png")} == {"000000", "000001", "000002"}, (
        "one or more of each"
    )
    assert len(list((run / "audit" / "sheets").glob("*/*.jpg"))) == 3
    metrics = pq.read_table(run / "evaluation" / "metrics.parquet").to_pandas()
    assert set(metrics["backbone"]) == {"round-1", "round-2"} and set(metrics["dataset"]) >= {"held-out"}


def test_a_second_run_does_nothing(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    crawl, run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name not in {"run.json", ".lock"}}
    again = purify(crawl, run, config())
    assert all(stages(again).values())
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name not in {"run.json", ".lock"}}


def test_a_change_redoes_what_depends_on_it_and_nothing_else(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    crawl, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    reused = stages(purify(crawl, tmp_path / "run", config("isolate.max_angle_deg=70", "rounds=1")))
    assert {name for name, same in reused.items() if same} == {"ingest", "round 1 train", "round 1 embed"}
    assert not (tmp_path / "run" / "rounds" / "2").exists(), "no report may speak of a round that these settings do not have"
    reused = stages(purify(crawl, tmp_path / "run", config("isolate.max_angle_deg=70", "rounds=1", "audit.faces=5")))
    assert {name for name, same in reused.items() if not same} == {"audit"}


def test_the_score_against_the_truth(finished: tuple[Path, Path, dict[str, Any]], tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    _, run, _ = finished
    found = score(run, tiny_crawl[1])
    rows = manifest(run).query("status == 'ok'").merge(pd.read_parquet(tiny_crawl[1]), left_on="source_uri", right_on="item")
    assert found.samples == len(rows) and found.noise_before == pytest.approx(rows["is_noise"].mean())
    removed = rows["verdict"] != "keep"
    assert found.precision == pytest.approx(rows.loc[removed, "is_noise"].mean())
    assert found.recall == pytest.approx(removed[rows["is_noise"]].mean())
    assert set(found.auroc_by_round) == {1, 2}
    half = pq.read_table(tiny_crawl[1]).slice(0, 30)
    pq.write_table(half, tmp_path / "half.parquet")
    with pytest.raises(BadInput, match="Give the truth table that was written with this crawl"):
        score(run, tmp_path / "half.parquet")


def test_bare_duckdb_reads_the_manifest(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, run, record = finished
    with duckdb.connect() as db:
        found = db.execute("SELECT count(*) FROM read_parquet(?)", [str(run / "manifest" / "*.parquet")]).fetchone()
    assert found == (record["stages"][0]["counts"]["items"],)


def test_a_head_that_told_nobody_apart_judges_nobody(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    lazy = config("train.learning_rate=1e-9", "train.epochs=1", "isolate.judge_anyway=false")
    with pytest.raises(HeadNotLearned, match=r"--embedder.*--init.*train\.epochs.*purify report"):
        purify(tiny_crawl[0], tmp_path / "run", lazy)
    noise = pd.concat(pd.read_parquet(path) for path in (tmp_path / "run" / "rounds" / "1" / "noise").glob("raw-*.parquet"))
    assert set(noise["verdict"]) == {"review"} and set(noise["reason"]) == {"head_not_learned"}
    assert not (tmp_path / "run" / "clean").exists()
    items = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "run" / "raw").glob("raw-*.parquet"))
    assert {row["verdict"] for row in report(tmp_path / "run", "summary").to_pylist() if row["status"] == "ok"} == {"review"}
    assert sum(row["items"] for row in report(tmp_path / "run", "summary").to_pylist()) == items, "damaged items can be looked up"
    told = read_status(tmp_path / "run")
    assert told.state == "stopped" and told.finished[-1]["stage"] == "manifest" and "--init" in told.todo[0]
    assert next(one for one in told.finished if one["stage"] == "round 1 isolate")["counts"]["noise_rate"] is None


def test_another_crawl_does_not_get_this_run(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(StaleInput, match="the run of another crawl"):
        purify(tmp_path, finished[1], config())


def test_parameters_are_validated_before_anything_runs(tmp_path: Path) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="max_angle_deg"):
        purify(tmp_path, tmp_path / "run", {"isolate": {"max_angle_deg": 999}})
    assert not (tmp_path / "run").exists()


def test_command_line(finished: tuple[Path, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    crawl, run, record = finished

    def said(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        assert stop.value.code in (0, None), capsys.readouterr()
        return capsys.readouterr().out

    assert "noisiest" in said("report", str(run))
    assert "truncated" in said("report", str(run), "summary")
    lines = said("report", str(run), "verdicts", "--format", "json").splitlines()
    assert sum(json.loads(line)["items"] for line in lines) == record["stages"][0]["counts"]["items"]
    assert said("query", str(run), "select count(*) as n from manifest", "--format", "csv").split() == ["n", str(len(manifest(run)))]
    assert "to do" in said("run", str(crawl), str(tmp_path / "new"), "--preset", "demo", "--dry-run") and not (tmp_path / "new").exists()
    for argv, code, message in (
        (["run", str(crawl), str(run), "--set", "isolate.max_angel_deg=3"], 2, "Did you mean 'isolate.max_angle_deg'"),
        (["run", str(tmp_path / "no"), str(tmp_path / "new")], 1, "There is no crawl at"),
        (["query", str(run), "drop table manifest"], 1, "one SELECT statement"),
        (["report", str(tmp_path)], 1, "has no manifest"),
        (["report", str(tmp_path / "nope")], 1, "give the folder of a finished run"),
        (["report", str(tmp_path), "summary"], 1, "has no manifest"),
        (["synthesize", str(crawl), str(tmp_path / "t.parquet")], 1, "is there already"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert (stop.value.code or 0) == code
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_protected_set_is_found_in_the_crawl_and_left_out(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crawl, run = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], run)
    rows = manifest(run).query("status == 'ok' and verdict == 'keep'")
    taken = rows.iloc[[0, -1]]
    lfw = tmp_path / "lfw"
    lfw.mkdir()
    for number, uri in enumerate(taken["source_uri"]):
        shutil.copy(crawl / uri, lfw / f"{number}.jpg")
    settings = [f"protect.sets=['{lfw}']", "protect.angle_deg=0"]
    told = {row["what"]: row["value"] for row in summary(purify(crawl, run, config(*settings)))}
    found = pd.read_parquet(run / "protected" / "contamination.parquet")
    exact = found[(found["angle_deg"] == 0) & (found["kind"] == "image")]
    assert set(taken["source_uri"]) <= set(exact["source_uri"]) and set(found["protected_set"]) == {"lfw"}
    assert manifest(run)["verdict"].tolist() == manifest(finished[1])["verdict"].tolist(), "reported only"
    assert told["images also in a protected set"] == (found["kind"] == "image").sum() >= 2
    assert told["left out as protected"] == "nothing, without --exclude-protected"
    record = purify(crawl, run, config(*settings, "protect.exclude=true"))
    told = {row["what"]: row["value"] for row in summary(record)}
    assert told["left out as protected"] == (manifest(run)["reason"] == "protected").sum() >= 2
    cli._summarise(record | {"wall_seconds": 1.0}, run)
    assert "contamination" in capsys.readouterr().out
    layout = RunLayout(run)
    last, seen = layout.round(2), list[tuple[int, int]]()
    protect(
        layout.raw, last.train, last.embeddings, last.noise, tmp_path / "again", config(*settings), progress=lambda *one: seen.append(one)
    )
    samples = sum(pq.read_metadata(path).num_rows for path in last.embeddings.glob("*.parquet"))
    assert seen[0] == (0, samples + 2) and (2, samples + 2) in seen and seen[-1] == (samples + 2, samples + 2), (
        "pictures embedded, then looked up"
    )
    now = manifest(run).set_index("source_uri").loc[list(taken["source_uri"])]
    assert set(now["reason"]) == {"protected"} and now["clean_shard"].isna().all() and set(now["rule_verdict"]) == {"keep"}
    with pytest.raises(BadInput, match="no set to protect"):
        purify(crawl, run, config("protect.sets=['nowhere.bin']"))


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's first command, made small: relative folder, score at the end, and a second call that renders and trains nothing."""
    monkeypatch.chdir(tmp_path)
    small = [
        "--identities",
        "10",
        "--images",
        "8",
        *(part for option in OPTIONS for part in ("--set", option)),
        "--set",
        "evaluate.holdout=0",
    ]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            cli.main(["demo", "here", *small])
        assert not stop.value.code
        printed = capsys.readouterr()
        assert "Against the planted truth: precision" in printed.out and "here/run/audit/index.html" in printed.out
    assert "ingest already done" in printed.err and "render the crawl" not in printed.err
    assert (tmp_path / "here" / "run" / "audit" / "index.html").is_file()
    metrics = pq.read_table(tmp_path / "here" / "run" / "evaluation" / "metrics.parquet").to_pandas()
    assert set(metrics["dataset"]) == {"unseen"}, "nobody is held out; people whom the crawl does not know are compared"


def test_a_given_model_purifies_without_training(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is the one that the fixture trained, as an ONNX file."""
    crawl, first, _ = finished
    trained = load_embedder(first, torch.device("cpu")).module
    assert trained is not None
    given = write(tmp_path / "given.onnx", trained, shape=(1, 3, 32, 32))
    run = tmp_path / "run"
    settings = config(f"embedder.model={given}", "evaluate.bins=[]")
    record = purify(crawl, run, settings)
    assert list(stages(record))[:5] == ["embedder", "ingest", "round 1 embed", "round 1 centers", "round 1 isolate"]
    assert not [name for name in stages(record) if name.endswith("train")] and not list(run.glob("rounds/*/train/backbone*"))
    rows = manifest(run)
    assert len(rows) == len(manifest(first)) and (rows["status"] == manifest(first)["status"]).all()
    metrics = pq.read_table(run / "evaluation" / "metrics.parquet").to_pandas()
    assert set(metrics["backbone"]) == {"embedder"} and set(metrics["dataset"]) >= {"held-out"}
    assert "ONNX file, and has no gradients to follow" in (run / "audit" / "index.html").read_text()
    with pytest.raises(SystemExit):
        cli.main(["imagine", str(run), str(tmp_path / "faces"), "--identity", rows["identity"].iloc[0]])
    assert "has no gradients to follow" in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "faces").exists()
    given.unlink()
    facts = {stage["stage"]: stage["counts"] for stage in record["stages"]}
    assert facts["embedder"]["sha256"] == hashlib.sha256((run / "embedder" / "model.onnx").read_bytes()).hexdigest()
    told = forget(run, identities=[rows["identity"].iloc[0]])
    assert told.unknown == () and told.trained == 0 and told.files["centers"] >= 2, "no weights have learned from anybody"
    again: Any = export(run)
    assert {stage["stage"]: stage["counts"] for stage in again["stages"]}["export"] == facts["export"], (
        "what was given is not asked for again"
    )
    assert stages(again).keys() == stages(record).keys()
