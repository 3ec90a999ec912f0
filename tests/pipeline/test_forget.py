"""Forget: no byte of a forgotten person is left in the run, wherever it is killed, whatever the name; and the run works on."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from flows import cli
from pipeline import forgotten as log
from pipeline.answers import saved_queries
from pipeline.config import load
from pipeline.decisions import decide
from pipeline.errors import BadInput, BadShard, StaleInput
from pipeline.forget import Forgetting, forget
from pipeline.ingest import ingest
from pipeline.layout import RunLayout
from pipeline.report import report
from pipeline.review import draw
from pipeline.run_folder import claimed
from pipeline.shards import check_shard, shard_stems
from pipeline.status import read_status
from pipeline.verify import verify
from tests.pipeline.forgetting import CONFIG, OPTIONS, Needles, of, people_told, purified, rows_of, tree


def test_a_dry_run_says_what_would_go_and_changes_nothing(copied: tuple[Path, Path, str]) -> None:
    _, run, name = copied
    before = tree(run)
    said = forget(run, identities=[name])
    ours = of(run, name)
    assert not said.done and tree(run) == before and not (run / "forgotten").exists()
    same = {row["content_sha256"] for row in ours} - {None}
    rows = [row for row in rows_of(run, "raw", "raw-*.parquet") if row["identity"] == name or row["content_sha256"] in same]
    proposed = {row["sample_id"] for row in rows_of(run, "manifest") if row["verdict"] == "relabel" and row["other_identity"] == name}
    assert said.items - len({row["sample_id"] for row in rows} | proposed) in (0, 1), "a duplicate within the name has the same sample_id"
    assert said.unknown == (), "who adds a file to a run folder says here what forgetting does with it (_OURS)"
    assert said.elsewhere >= 1 and said.trained == 2 and said.folders == 1
    assert set(said.files) >= {"raw shards", "clean shards", "embeddings", "centers", "heads", "noise tables", "manifest parts"}
    assert (
        forget(run, identities=[name], yes=True).files.items()
        >= {what: said.files[what] for what in ("raw shards", "clean shards")}.items()
    )


def test_no_byte_of_a_person_is_left(copied: tuple[Path, Path, str]) -> None:
    _, run, name = copied
    people_told(run, name)
    needles = Needles(run, of(run, name), name)
    needles.add_centers(run, name)
    before = needles.found(run)
    wanted = {
        "raw/raw-000000.tar",
        "raw/raw-000000.parquet",
        "raw/identities.parquet",
        "clean/identities.parquet",
        "audit/data/list-00000.js",
    }
    wanted |= {"rounds/1/train/classes.parquet", "rounds/1/train/head.safetensors", "rounds/2/noise/centers.safetensors"}
    wanted |= {"rounds/2/noise/proposals.parquet", "protected/contamination.parquet", "raw/.raw-000000.tar.77.tmp"}
    assert before >= wanted, "what is looked for is found before"
    kinds = (
        "clean/clean-",
        "rounds/1/embeddings/",
        "rounds/2/noise/raw-",
        "manifest/part-",
        "manifest/_answers/",
        "decisions/",
        "audit/data/people-",
        "rounds/2/.train.",
    )
    assert all(any(found.startswith(kind) for found in before) for kind in kinds)
    items, others = len(rows_of(run, "raw", "raw-*.parquet")), [row for row in rows_of(run, "manifest") if row["identity"] != name]
    forget(run, identities=[name], yes=True, by="Officer")
    assert needles.found(run) == set()
    assert len(rows_of(run, "raw", "raw-*.parquet")) == len(rows_of(run, "manifest")) == items, "every item is still accounted for"
    gone = [row for row in rows_of(run, "manifest") if row["status"] == "forgotten"]
    shown = {"identity", "source_uri", "shard", "status", "status_detail", "is_gone", "verdict", "reason", "decided_by"}
    assert all({column for column, value in row.items() if value is not None} == shown for row in gone)
    assert {row["identity"] for row in gone} == {"(forgotten)"} and len({row["source_uri"] for row in gone}) == len(gone)
    left = {row["sample_id"]: row for row in rows_of(run, "manifest") if row["status"] == "ok"}
    for row in others:
        if row["sample_id"] in left and row["other_identity"] not in (name, None):
            assert {key: left[row["sample_id"]][key] for key in ("identity", "verdict", "angle_deg", "other_identity", "clean_shard")} == {
                key: row[key] for key in ("identity", "verdict", "angle_deg", "other_identity", "clean_shard")
            }, "who was not asked for is as before"
    kinds_left = [(row["kind"], row["identity"], row["other_identity"]) for row in rows_of(run, "rounds/1/noise", "proposals.parquet")]
    assert kinds_left == [("split", "A", None), ("merge", "A", "B")]
    assert [row["note"] for row in rows_of(run, "decisions") if row["verdict"] == "keep"] == [None]
    entries = rows_of(run, "forgotten")
    assert {row["forgotten_by"] for row in entries} == {"Officer"} and {row["kind"] for row in entries} == {
        "identity",
        "words",
        "first",
        "content",
        "sample",
    }
    assert (run / "forgotten" / "key").stat().st_mode & 0o077 == 0


def test_shards_are_proven_anew_and_offsets_follow(copied: tuple[Path, Path, str]) -> None:
    crawl, run, name = copied
    labels = {row["class_index"]: row["identity"] for row in rows_of(run, "clean", "identities.parquet")}
    forget(run, identities=[name], yes=True)
    for folder in ("raw", "clean"):
        for stem in shard_stems(run / folder, folder):
            facts = check_shard(run / folder / f"{stem}.tar", deep=True)
            with tarfile.open(run / folder / f"{stem}.tar") as tar:
                names = tar.getnames()
                assert len([one for one in names if one.endswith(".jpg")]) == int(facts["num_samples"])
    for row in rows_of(run, "raw", "raw-*.parquet"):
        if row["crop_offset"] is not None:
            content = (run / "raw" / f"{row['shard']}.tar").read_bytes()[row["crop_offset"] :][: row["crop_size"]]
            assert content == (crawl / row["source_uri"]).read_bytes()
    for stem in shard_stems(run / "clean", "clean"):
        whole = (run / "clean" / f"{stem}.tar").read_bytes()
        for row in rows_of(run, "clean", f"{stem}.parquet"):
            assert whole[row["crop_offset"] :][: row["crop_size"]] == (crawl / row["source_uri"]).read_bytes()
    page = json.loads((run / "clean" / "dataset.json").read_text())
    assert [one["sha256"] for one in page["shards"]] == [
        hashlib.sha256((run / "clean" / one["name"]).read_bytes()).hexdigest() for one in page["shards"]
    ]
    assert page["samples"] == len(rows_of(run, "clean", "clean-*.parquet")) == sum(one["samples"] for one in page["shards"])
    now = {row["class_index"]: row for row in rows_of(run, "clean", "identities.parquet")}
    assert len(now) == len(labels) and page["identities"] == len(labels), "labels in shards that were not touched stay right"
    for number, label in labels.items():
        assert now[number]["identity"] == (f"(forgotten {number})" if label == name else label)
        assert now[number]["samples"] == sum(row["identity"] == label for row in rows_of(run, "clean", "clean-*.parquet"))


def test_the_run_works_on_and_nothing_is_made_again_for_nothing(copied: tuple[Path, Path, str], tmp_path: Path) -> None:
    crawl, run, name = copied
    forget(run, identities=[name], yes=True)
    for query in set(saved_queries()) - {"contamination"}:  # no set was protected
        report(run, query)
    again = purified(crawl, run)
    assert {stage for stage, receipt in again.items() if not receipt.reused} == {"audit"}
    assert again["ingest"].counts["forgotten"] == sum(row["status"] == "forgotten" for row in rows_of(run, "manifest"))
    assert Needles(run, [], name).found(run) == set()
    draw(run, tmp_path / "review", count=20, seed=0)
    decide(run, [{"sample_id": next(row["sample_id"] for row in rows_of(run, "clean", "clean-*.parquet")), "verdict": "drop"}], by="Eve")
    assert not purified(crawl, run)["export"].reused, "a new export, with dense classes again"
    assert not any(row["identity"].startswith("(") for row in rows_of(run, "clean", "identities.parquet"))
    strict = load(preset="demo", overrides=[*OPTIONS, "isolate.max_angle_deg=84"])
    purified(crawl, run, strict)


def test_a_crawl_read_again_brings_nobody_back(copied: tuple[Path, Path, str], tmp_path: Path) -> None:
    """... and gives the very rows and tars that forgetting left, so that it does not matter which came first."""
    crawl, run, name = copied
    needles = Needles(run, of(run, name), name)
    forget(run, identities=[name], yes=True)
    new = tmp_path / "new"
    shutil.copytree(run / "forgotten", new / "forgotten")
    with claimed(crawl, RunLayout(new)):
        ingest(crawl, new / "raw", CONFIG)
    assert needles.found(new) == set()
    for stem in shard_stems(run / "raw"):
        assert (new / "raw" / f"{stem}.tar").read_bytes() == (run / "raw" / f"{stem}.tar").read_bytes()
        assert pq.read_table(new / "raw" / f"{stem}.parquet").to_pylist() == pq.read_table(run / "raw" / f"{stem}.parquet").to_pylist()
    assert rows_of(new, "raw", "identities.parquet") == rows_of(run, "raw", "identities.parquet")
    moved = tmp_path / "moved"
    shutil.copytree(crawl, moved)
    (moved / name).rename(moved / "Another Name")
    (tmp_path / "other").mkdir()
    shutil.copytree(run / "forgotten", tmp_path / "other" / "forgotten")
    ingest(moved, tmp_path / "other" / "raw", CONFIG)
    assert needles.found(tmp_path / "other") == set(), "the same bytes under another name are known again"


def test_somebody_is_forgotten_before_the_crawl_is_read(copied: tuple[Path, Path, str], tmp_path: Path) -> None:
    """... or half read: the half-made shards go, and the next ingest knows."""
    crawl, run, name = copied
    content = next(row["content_sha256"] for row in of(run, name) if row["status"] == "ok")
    new = RunLayout(tmp_path / "new")
    with claimed(crawl, new):
        (new.root / ".raw.partial-0123456789abcdef").mkdir()
        shutil.copy(run / "raw" / "raw-000000.tar", new.root / ".raw.partial-0123456789abcdef")
    with pytest.raises(BadInput, match="--in-advance"):
        forget(new.root, identities=[name], yes=True)
    forget(new.root, identities=[name], contents=[content], in_advance=True, yes=True)
    with claimed(crawl, new):
        ingest(crawl, new.raw, CONFIG)
    assert Needles(run, [], name).found(new.root) == set()
    assert content not in str(rows_of(new.root, "raw", "raw-*.parquet"))


def test_files_of_others_are_told(copied: tuple[Path, Path, str]) -> None:
    _, run, name = copied
    (run / "raw" / "my notes.txt").write_text(name)
    assert forget(run, identities=[name], yes=True).unknown == ("raw/my notes.txt",)
    assert (run / "raw" / "my notes.txt").exists()


def test_the_rounds_can_be_made_again_without_them(copied: tuple[Path, Path, str]) -> None:
    crawl, run, name = copied
    forget(run, identities=[name], retrain=True, yes=True)
    assert not any((run / gone).exists() for gone in ("rounds", "manifest", "clean", "audit", "evaluation"))
    assert read_status(run).state == "stopped" and verify(run, workers=1).is_unfinished
    again = purified(crawl, run)
    assert again["ingest"].reused and not again["round 1 train"].reused and not again["manifest"].reused
    assert Needles(run, [], name).found(run) == set()


def test_one_picture_is_forgotten_and_its_identity_stays(copied: tuple[Path, Path, str]) -> None:
    crawl, run, name = copied
    row = next(row for row in of(run, name) if row["status"] == "ok")
    needles = Needles(run, [row])
    place = [one["identity"] for one in rows_of(run, "raw", "identities.parquet") if one["samples"]].index(name)
    before = load_file(run / "rounds" / "2" / "noise" / "centers.safetensors")
    said = forget(run, contents=[row["content_sha256"].upper()], yes=True)
    assert needles.found(run) == set() and said.items >= 1
    after = load_file(run / "rounds" / "2" / "noise" / "centers.safetensors")
    left = {one["identity"]: one["samples"] for one in rows_of(run, "raw", "identities.parquet")}
    assert left[name] == sum(one["status"] == "ok" for one in of(run, name)) > 0
    for key, rows in after.items():
        assert not np.allclose(rows[place], before[key][place], atol=1e-4), "no center from which it could be had by subtraction"
        assert np.linalg.norm(rows[place]) == pytest.approx(1, abs=1e-4)
    kept = {one["sample_id"] for one in rows_of(run, "rounds/2/noise", "raw-*") if one["verdict"] == "keep" and one["identity"] == name}
    mean = np.mean([one["embedding"] for one in rows_of(run, "rounds/2/embeddings", "raw-*") if one["sample_id"] in kept], axis=0)
    assert rows_near(after["consensus"][place], mean)
    assert name not in [one["identity"] for one in rows_of(run, "rounds/1/train", "classes.parquet")], "isolate finds its centers anew"
    heads = load_file(run / "rounds" / "1" / "train" / "head.safetensors")["centers"]
    classes = rows_of(run, "rounds/1/train", "classes.parquet")
    assert len(heads) == len(classes) and [one["class_index"] for one in classes] == list(range(len(classes)))
    purified(crawl, run, load(preset="demo", overrides=[*OPTIONS, "isolate.max_angle_deg=70"]))
    assert needles.found(run) == set()


def rows_near(one: Any, other: Any) -> bool:
    return bool(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) > 0.9999)


def test_what_the_run_takes_for_the_person_goes_too(copied: tuple[Path, Path, str]) -> None:
    """A sample of another name that a person relabelled to the forgotten one, exported or not yet."""
    crawl, run, name = copied
    theirs = [
        row
        for row in rows_of(run, "raw", "raw-*.parquet")
        if row["status"] == "ok" and row["identity"] != name and not row["duplicate_set"]
    ]
    decide(run, [{"sample_id": theirs[3]["sample_id"], "verdict": "relabel", "clean_identity": name}], by="Eve")
    purified(crawl, run)
    decide(run, [{"sample_id": theirs[7]["sample_id"], "verdict": "relabel", "clean_identity": name}], by="Eve")
    needles = Needles(run, [theirs[3], theirs[7]], name)
    assert any(found.startswith("clean/") for found in Needles(run, [theirs[3]]).found(run))
    assert forget(run, identities=[name], yes=True).elsewhere >= 2
    assert needles.found(run) == set()


class Killed(BaseException):
    """The process is gone: from here on nothing is written any more."""


@pytest.fixture
def killable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """`killable(n)`: the n-th change of the file system, and all after it, raise Killed. Returns a list that counts."""

    def arm(at: int) -> list[int]:
        count = [0]
        monkeypatch.undo()
        monkeypatch.setattr(log, "new_key", lambda: b"k" * 32)
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
            real = getattr(owner, name)

            def counted(*given: Any, real: Any = real, **options: Any) -> Any:
                count[0] += 1
                if count[0] >= at:
                    raise Killed
                return real(*given, **options)

            monkeypatch.setattr(owner, name, counted)
        return count

    yield arm
    monkeypatch.undo()


def test_killed_anywhere_the_next_call_finishes(
    finished: tuple[Path, Path, str], tmp_path: Path, killable: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source, name = finished

    def fresh(where: str) -> Path:
        killable(10**9)
        shutil.copytree(source, tmp_path / where)
        return tmp_path / where

    whole = fresh("whole")
    needles = Needles(whole, of(whole, name), name)
    count = killable(10**9)
    forget(whole, identities=[name], yes=True)
    total, wanted = count[0], tree(whole)
    points = sorted({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, total - 3, total - 2, total - 1, total, *range(13, total, 31)})
    for at in points:
        run = fresh(f"killed-{at}")
        killable(at)
        with pytest.raises(Killed):
            forget(run, identities=[name], yes=True)
        killable(10**9)
        begun = (run / "forgotten" / "pending.json").exists()
        if begun:
            with pytest.raises(StaleInput, match="stopped half way"):
                report(run, "summary")
            with pytest.raises(StaleInput, match="To finish it: purify forget"), claimed(finished[0], RunLayout(run)):
                pass
            with pytest.raises(StaleInput, match="--yes"):
                forget(run, identities=[name])
        # At first the name is still to be said; once the sweep has begun it is not needed any more.
        if begun and at % 2:
            assert forget(run, yes=True).finished_earlier
        else:
            forget(run, identities=[name], yes=True)
        assert tree(run) == wanted, f"killed at change {at} of {total}"
        assert needles.found(run) == set()
        shutil.rmtree(run)
    assert len(points) > 12


def test_nothing_names_the_forgotten(
    copied: tuple[Path, Path, str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, run, name = copied
    for more in ([], ["--yes"], ["--yes"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["forget", str(run), "--identity", name, *more])
        assert stop.value.code in (0, None)
    said = capfd.readouterr()
    assert name not in said.out + said.err + caplog.text
    assert "Nothing was changed" in said.out and "cannot be edited" in said.out and "forgotten already" in said.out
    for word in (name, name.split()[0]):
        assert word not in (run / "run.json").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main(["forget", str(run), "--identity", "Nobody Atall", "--yes"])
    assert stop.value.code == 1 and "Nobody" not in (err := capfd.readouterr().err) and "--identity number 1 is not in this run" in err


def test_what_cannot_be_done_is_said(copied: tuple[Path, Path, str], tmp_path: Path) -> None:
    crawl, run, name = copied
    before = tree(run)
    for given, message in (
        ({}, "nothing to forget"),
        ({"identities": [name, "Nobody"]}, "--identity number 2 is not in this run"),
        ({"identities": [" "]}, "--identity takes a name"),
        ({"contents": ["0" * 64]}, "--sha256 number 1"),
        ({"contents": ["0" * 63]}, "64 hex digits"),
        ({"samples": ["../../etc"]}, "sample_id"),
    ):
        with pytest.raises(BadInput, match=message):
            forget(run, **given, yes=True)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no run folder"):
        forget(tmp_path / "nowhere", identities=["x"], yes=True)
    assert not (tmp_path / "nowhere").exists()
    with claimed(crawl, RunLayout(run)), pytest.raises(StaleInput, match="Another process works in"):
        forget(run, identities=[name], yes=True)
    assert tree(run) == before
    row = next(row for row in of(run, name) if row["crop_offset"] is not None)
    tar = run / "raw" / f"{row['shard']}.tar"
    content = bytearray(tar.read_bytes())
    content[row["crop_offset"] + 700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(BadShard, match="differs from the SHA-256"):
        forget(run, identities=[name], yes=True)


def test_a_log_without_its_key_stops_ingest(copied: tuple[Path, Path, str]) -> None:
    crawl, run, name = copied
    forget(run, identities=[name], yes=True)
    (run / "forgotten" / "key").unlink()
    shutil.rmtree(run / "raw")
    with pytest.raises(BadInput, match="its key is gone"):
        purified(crawl, run)


def test_forgetting_twice_is_forgetting_once(copied: tuple[Path, Path, str]) -> None:
    _, run, name = copied
    forget(run, identities=[name], yes=True)
    before = tree(run)
    assert forget(run, identities=[name], yes=True) == Forgetting(done=True)
    assert tree(run) == before and len(list((run / "forgotten").glob("*.parquet"))) == 1
    other = next(row["identity"] for row in rows_of(run, "clean", "clean-*.parquet"))
    needles = Needles(run, of(run, other), other)
    forget(run, identities=[other], yes=True)
    assert needles.found(run) == set() and len(list((run / "forgotten").glob("*.parquet"))) == 2
