"""Forget: no byte of a forgotten person is left in the run, wherever it is killed, whatever the name; and the run works on."""

import hashlib
import json
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from flows import cli
from pipeline import forgotten as log
from pipeline import tables
from pipeline.audit import audit
from pipeline.config import Config, load
from pipeline.decisions import decide, read_standing, undo
from pipeline.embed import embed
from pipeline.errors import BadInput, BadShard, StaleInput
from pipeline.evaluate import evaluate
from pipeline.export import export_clean, write_manifest
from pipeline.forget import Forgetting, forget
from pipeline.forgotten import Forgotten, added, phrases_of
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.receipts import Receipt
from pipeline.report import report, saved_queries
from pipeline.review import draw
from pipeline.run_folder import claimed, write_record
from pipeline.shards import check_shard, shard_stems
from pipeline.train import train
from tests.pipeline.test_ingest import picture, write

OPTIONS = [
    *("train.epochs=3", "train.input_px=32", "train.embedding_dim=32", "train.batch_size=32", "train.learning_rate=0.05"),
    *("isolate.judge_anyway=true", "isolate.rule=angle", "isolate.max_angle_deg=85", "evaluate.holdout=0.2", "evaluate.pairs=60"),
    *("evaluate.folds=5", "audit.identities=14", "audit.inversion_steps=1", "ingest.samples_per_shard=40", "export.samples_per_shard=25"),
    *("workers=1", "ingest.near_duplicate_bits=0"),
]
CONFIG = load(preset="demo", overrides=OPTIONS)
NOT_COMPARED = {".lock"}


def purified(crawl: Path, run: Path, config: Config = CONFIG) -> dict[str, Receipt]:
    """The stages as `flows.purify` runs them, without Prefect."""
    layout = RunLayout(run)
    with claimed(crawl, layout):
        done = {"ingest": ingest(crawl, layout.raw, config)}
        kept_by: Path | None = None
        for one in (rounds := [layout.round(1), layout.round(2)]):
            decided = read_standing(run) if kept_by else None
            done[f"round {one.number} train"] = train(layout.raw, one.train, config, noise=kept_by, decisions=decided)
            done[f"round {one.number} embed"] = embed(layout.raw, one.train, one.embeddings, config)
            done[f"round {one.number} isolate"] = isolate(layout.raw, one.train, one.embeddings, one.noise, config, previous=kept_by)
            kept_by = one.noise
        decided = read_standing(run)
        done["manifest"] = write_manifest(layout.raw, rounds[-1].noise, 2, layout.manifest, config, decisions=decided)
        done["export"] = export_clean(layout.raw, layout.manifest, layout.clean, config)
        done["evaluate"] = evaluate(layout.raw, rounds, layout.evaluation, config)
        done["audit"] = audit(layout, layout.audit, config, title="Test")
        write_record(crawl, layout, config, list(done.items()), 1.0)
    assert done["ingest"].counts["items"] == done["manifest"].counts["items"]
    assert done["manifest"].counts["exported"] == done["export"].counts["samples"]
    return done


@pytest.fixture(scope="module")
def finished(tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(crawl, finished run, a name of it with samples in `clean/`). One of its pictures also stands under another name."""
    crawl = tmp_path_factory.mktemp("forget") / "crawl"
    shutil.copytree(tiny_crawl[0], crawl)
    names = sorted(path.name for path in crawl.iterdir() if path.is_dir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copy(sorted((crawl / name).glob("*.jpg"))[0], crawl / other / "same bytes.jpg")
    run = crawl.parent / "run"
    purified(crawl, run)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((run / "manifest").glob("*.parquet"))]).to_pylist()
    trained = set(pq.read_table(run / "rounds" / "2" / "train" / "classes.parquet")["identity"].to_pylist())
    exported = [row["identity"] for row in rows if row["clean_shard"] and row["identity"] in trained]
    return crawl, run, max(sorted(set(exported)), key=exported.count)


@pytest.fixture
def copied(finished: tuple[Path, Path, str], tmp_path: Path) -> tuple[Path, Path, str]:
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run", finished[2]


def rows_of(run: Path, folder: str, pattern: str = "*.parquet") -> list[dict[str, Any]]:
    return [row for path in sorted((run / folder).glob(pattern)) for row in pq.read_table(path).to_pylist()]


def of(run: Path, name: str) -> list[dict[str, Any]]:
    """Raw rows of the samples under a name."""
    return [row for row in rows_of(run, "raw", "raw-*.parquet") if row["identity"] == name]


class Needles:
    """All by which a person can be found again in a run, taken before forgetting."""

    def __init__(self, run: Path, rows: list[dict[str, Any]], name: str | None = None) -> None:
        keys = [row["sample_id"] for row in rows if row["sample_id"]]
        shas = [row["content_sha256"] for row in rows if row["content_sha256"]]
        self.texts = [*keys, *shas, *(sha[:16] for sha in shas), *(row["source_uri"] for row in rows)]
        self.texts += [name, unicodedata.normalize("NFD", name)] if name else []
        self.bytes = [text.encode() for text in self.texts]
        for row in rows:
            if row["crop_offset"] is not None:
                content = (run / "raw" / f"{row['shard']}.tar").read_bytes()
                # A strip from the middle: a JPEG's head is the same in many.
                self.bytes.append(content[row["crop_offset"] + row["crop_size"] // 2 :][:64])
        vectors = [
            row["embedding"]
            for number in (1, 2)
            for row in rows_of(run, f"rounds/{number}/embeddings", "raw-*.parquet")
            if row["sample_id"] in keys
        ]
        self.vectors = np.array(vectors, np.float32).reshape(len(vectors), -1 if vectors else 32)
        self.bytes += [vector.tobytes()[:32] for vector in self.vectors]

    def add_centers(self, run: Path, name: str) -> None:
        """The rows of a name in every round's head and centers."""
        names = [row["identity"] for row in rows_of(run, "raw", "identities.parquet") if row["samples"]]
        found = [self.vectors]
        for number in (1, 2):
            folder = run / "rounds" / str(number)
            found += [rows[names.index(name)][None] for rows in load_file(folder / "noise" / "centers.safetensors").values()]
            classes = pq.read_table(folder / "train" / "classes.parquet")["identity"].to_pylist()
            if name in classes:
                found.append(load_file(folder / "train" / "head.safetensors")["centers"][classes.index(name)])
        self.vectors = np.concatenate([rows for rows in found if len(rows)])

    def found(self, run: Path) -> set[str]:
        """Files that hold one of them: as bytes, in tars, in decompressed Parquet, as rows of floats, in HTML, in the file's own name."""
        return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and self._stands_in(path)}

    def _stands_in(self, path: Path) -> bool:
        content = path.read_bytes()
        if any(needle in content for needle in self.bytes) or any(text in str(path) for text in self.texts):
            return True
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if "embedding" in table.column_names and self._is_near(np.array(table["embedding"].to_pylist(), np.float32)):
                return True
            told = json.dumps([table.to_pylist(), str(table.schema.metadata)], default=str, ensure_ascii=False)
            return any(json.dumps(text, ensure_ascii=False)[1:-1] in told for text in self.texts)
        if path.suffix == ".safetensors" and path.name != "backbone.safetensors":
            return any(self._is_near(rows.reshape(-1, rows.shape[-1])) for rows in load_file(path).values() if rows.ndim > 1)
        return False

    def _is_near(self, rows: Any) -> bool:
        if not len(self.vectors) or not len(rows) or rows.shape[-1] != self.vectors.shape[-1]:
            return False
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(self.vectors, axis=1)
        return bool((np.divide(rows @ self.vectors.T, lengths, where=lengths > 0, out=np.zeros_like(lengths)) > 0.999999).any())


def tree(run: Path) -> dict[str, str]:
    """Digest of every file, the log's time and name apart."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and path.name not in NOT_COMPARED and not (path.parent.name == "forgotten" and path.suffix == ".parquet"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def people_told(run: Path, name: str) -> None:
    """What people and other stages left about a name: notes, relabels, a page of contamination, proposals, half-made folders."""
    ours = [row["sample_id"] for row in of(run, name) if row["status"] == "ok"]
    theirs = [row["sample_id"] for row in rows_of(run, "raw", "raw-*.parquet") if row["status"] == "ok" and row["identity"] != name]
    decide(
        run,
        [{"sample_id": ours[0], "verdict": "keep"}, {"sample_id": theirs[0], "verdict": "keep", "note": f"not {name.upper()}!"}],
        by="Eve",
    )
    decide(run, [{"sample_id": theirs[1], "verdict": "relabel", "clean_identity": name}], by="Eve")
    undo(run, [theirs[1]], by="Eve")
    layout = RunLayout(run)
    layout.protected.mkdir()
    match = {"identity": name, "protected_set": "lfw", "protected_image": f"{name.replace(' ', '_')}/1.jpg", "angle_deg": 2.0}
    matches = [{"kind": "identity", **match}, {"kind": "image", **match, "identity": "Somebody", "sample_id": theirs[0]}]
    pq.write_table(pa.Table.from_pylist(matches, schema=tables.CONTAMINATION), layout.protected / "contamination.parquet")
    pairs = [
        {"kind": kind, "identity": one, "other_identity": other, "samples": 3, "other_samples": 3}
        for kind, one, other in (
            ("merge", name, "B"),
            ("review", "A", name),
            ("split", "A", name),
            ("split", name, None),
            ("merge", "A", "B"),
        )
    ]
    for number in (1, 2):
        path = layout.round(number).noise / "proposals.parquet"
        pq.write_table(pa.Table.from_pylist(pairs, schema=tables.PROPOSALS), path)
    (run / ".clean.partial-0123456789abcdef" / ".spill").mkdir(parents=True)
    (run / ".clean.partial-0123456789abcdef" / ".x.1.tmp").touch()
    (run / "rounds" / "2" / ".train.partial-0123456789abcdef").mkdir()
    for half in (
        ".clean.partial-0123456789abcdef/clean-000000.tar",
        "rounds/2/.train.partial-0123456789abcdef/x",
        "raw/.raw-000000.tar.77.tmp",
    ):
        shutil.copy(run / "raw" / "raw-000000.tar", run / half)


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
    points = sorted({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, total - 3, total - 2, total - 1, total, *range(13, total, 17)})
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


ODD = [
    "O'Brien",
    'Q"uote; DROP TABLE items; --',
    "Ann\nLee",
    "-rf",
    "..",
    "a b",
    "%s{x}$1",
    "🙂 Smile",
    "علي",
    "name.with.dots",
    "王菲",
    "x" * 200,
]


@pytest.mark.parametrize("name", [*ODD, "Zoë Ångström", "Bad\udcff"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    folder = {"..": "...", "Bad\udcff": "Bad\udcff"}.get(name, name)
    for person, seed in ((folder, 1), ("Other", 50), ("Third", 90)):
        where = Path(os.fsdecode(os.fsencode(crawl) + b"/" + os.fsencode(person)))
        where.mkdir(parents=True)
        for number in range(3):
            (where / f"{number}.jpg").write_bytes(picture(seed + number))
    run = tmp_path / "run"
    with claimed(crawl, RunLayout(run)):
        ingest(crawl, run / "raw", CONFIG)
    given = unicodedata.normalize("NFD", folder)
    stored = log.plain(folder)
    ours = of(run, stored)
    assert len(ours) == 3
    needles = Needles(run, ours)
    with pytest.raises(SystemExit) as stop:
        cli.main(["forget", str(run), f"--identity={given}", "--yes"])
    assert stop.value.code in (0, None)
    assert needles.found(run) == set() and of(run, stored) == []
    assert {row["identity"] for row in rows_of(run, "raw", "identities.parquet")} == {"(forgotten)", "Other", "Third"}
    assert ingest(crawl, run / "raw", CONFIG).reused


def test_names_in_the_texts_of_others(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    crawl = write(
        tmp_path / "crawl", {f"{who}/{n}.jpg": picture(n + 9 * len(who)) for who in ("Jane Doe", "John Roe 2", "Ada") for n in range(2)}
    )
    write(crawl, {"John Roe 2/with_JANE-DOE.jpg": picture(77)})
    with claimed(crawl, layout):
        ingest(crawl, layout.raw, CONFIG)
    assert forget(layout.root, identities=["Jane Doe"], yes=True).others == 1
    rows = rows_of(layout.root, "raw", "raw-*.parquet")
    assert sum(row["identity"] == "John Roe 2" and row["status"] == "ok" for row in rows) == 3, "the picture is not hers, only the text was"
    assert not any("JANE" in path.read_bytes().decode("latin-1").upper() for path in layout.root.rglob("*") if path.is_file())
    hidden = next(row for row in rows if row["source_uri"].startswith("forgotten/") and row["status"] == "ok")
    with claimed(crawl, layout):
        shutil.rmtree(layout.raw)
        ingest(crawl, layout.raw, CONFIG)
    assert hidden["source_uri"] in {row["source_uri"] for row in rows_of(layout.root, "raw", "raw-*.parquet")}, (
        "hidden in the same way when read again"
    )


@pytest.mark.parametrize(
    ("text", "own", "is_found"),
    [
        ("a photo of Jane Doe in 2019", "", True),
        ("JANE_DOE_0003.jpg", "", True),
        ("https://x.org/jane%20doe.jpg", "", True),
        ("https://x.org/janedoe/1.jpg", "", True),
        ("Jane\u00a0Doe, actress", "", True),
        ("Jane met Doe", "", False),
        ("Mary Jane Doesky", "", False),
        ("Jane Doe Junior at home", "Jane Doe Junior", False),
        ("Jane Doe Junior and Jane Doe", "Jane Doe Junior", True),
        ("zoe\u0308 at sea", "", True),
        ("昨日の王菲演唱会", "", True),
        ("bo knows", "", False),
        ("", "", False),
    ],
)
def test_where_a_name_stands(text: str, own: str, is_found: bool) -> None:
    known = Forgotten(b"key")
    wish = log.Wish({"Jane Doe": 1, "Zoë": 1, "王菲": 1, "Bo": 1})
    assert added(known, log.rows_of(wish, known)).mentions(text, own) is is_found


def test_short_names_are_looked_for_in_columns_of_names_only() -> None:
    assert [phrases_of(name) for name in ("7", "42", "Bo", "--", "A.B.", "王")] == [[]] * 6
    assert phrases_of("J. Smith") == [("j smith", 2), ("jsmith", 1)]


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
