"""Every form holds exactly what was kept, under the names that were planned; the same bytes whatever the workers, also after a kill."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from pipeline import recordio
from pipeline.decisions import decide
from pipeline.errors import BadConfig, BadInput, BadShard, NoSpace
from pipeline.export import is_current
from pipeline.exporters import EXPORTERS, stream
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to, plan_only
from pipeline.layout import RunLayout
from pipeline.shards import CropReader
from tests.pipeline.clean_run import NAMES, config, export_again, planted, write_clean, write_clean_run
from tests.pipeline.fake_run import key_of

Sample = tuple[str, str, str, bytes]
"""(split, identity, sample_id, picture)"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return write_clean_run(tmp_path_factory.mktemp("exports") / "a run [1]")


def wanted(form: str, **changed: Any) -> Wanted:
    return Wanted(form=form, **{"samples_per_shard": 4, "val": 0.4, **changed})


def kept(run: RunLayout) -> dict[str, tuple[str, bytes]]:
    """sample_id -> (identity, picture), read from manifest and raw shards, past all that is tested."""
    found = {}
    places = {row["source_uri"]: row for path in run.raw.glob("raw-*.parquet") for row in pq.read_table(path).to_pylist()}
    for row in pq.read_table(run.manifest).to_pylist():
        if row["clean_identity"] is not None:
            place = places[row["source_uri"]]
            with CropReader(run.raw / f"{place['shard']}.tar") as crops:
                found[row["sample_id"]] = row["clean_identity"], crops.read(place["crop_offset"], place["crop_size"])
    return found


# --- what stands in an export, read without our code


def names_of(out: Path) -> dict[tuple[str, int], str]:
    told = json.loads((out / "identities.json").read_text())
    assert all([row["class_index"] for row in rows] == list(range(len(rows))) for rows in told.values()), "class indices are dense"
    return {(split, row["class_index"]): row["identity"] for split, rows in told.items() for row in rows}


def from_webdataset(out: Path) -> list[Sample]:
    names = names_of(out)
    found = []
    for split in ("train", "val"):
        for tar in sorted(out.glob(f"{split}-*.tar")):
            for one in wds.WebDataset(str(tar), shardshuffle=False):
                told = json.loads(one["json"])
                assert told["identity"] == names[split, int(one["cls"])] and told["sample_id"] == one["__key__"] and told["source_uri"]
                found.append((split, told["identity"], one["__key__"], one["jpg"]))
            twin = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
            with CropReader(tar, deep=True) as crops:
                assert [crops.read(row["crop_offset"], row["crop_size"]) for row in twin] == [one[3] for one in found[-len(twin) :]]
    return found


def from_imagefolder(out: Path) -> list[Sample]:
    folders = {row["folder"]: row for rows in json.loads((out / "identities.json").read_text()).values() for row in rows}
    rows = {row["file_name"]: row for path in (out / "metadata").glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    found = []
    for split in ("train", "val"):
        # the order in which torchvision's ImageFolder counts: sorted names of folders
        for number, folder in enumerate(sorted(path.name for path in (out / split).iterdir())):
            assert folders[folder]["class_index"] == number and unquote(folder) == folders[folder]["identity"]
            for path in (out / split / folder).iterdir():
                row = rows.pop(f"{split}/{folder}/{path.name}")
                assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"] and row["class_index"] == number
                found.append((split, folders[folder]["identity"], path.stem, path.read_bytes()))
    assert not rows, "a row without a file"
    return found


def from_recordio(out: Path) -> list[Sample]:
    names = names_of(out)
    found = []
    for split, folder in (("train", out), ("val", out / "val")):
        lines = [line.split("\t") for line in (folder / "train.lst").read_text().splitlines()]
        listed = {int(key): name.removesuffix(".jpg") for key, _, name in lines}
        path = folder / "train.rec"
        with path.open("rb") as file:
            for record in recordio.read(file, 0, path.stat().st_size, path.stat().st_size, limit=10**9):
                one = recordio.image_record(record.content)
                assert record.problem is None and one is not None
                if not one.has_vector:
                    found.append((split, names[split, int(one.labels[0])], listed.pop(one.number), one.content))
        assert not listed
        assert (folder / "property").read_text() == f"{sum(where == split for where, _ in names)},112,112\n"
    return found


def from_parquet(out: Path) -> list[Sample]:
    names = names_of(out)
    rows = [
        (split, row)
        for split in ("train", "val")
        for path in sorted(out.glob(f"data/{split}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert all(row["identity"] == names[split, row["class_index"]] and row["source_uri"] for split, row in rows)
    return [(split, row["identity"], row["sample_id"], row["jpg"]) for split, row in rows]


def from_hf(out: Path) -> list[Sample]:
    names = names_of(out)
    card = (out / "README.md").read_text()
    found = []
    for split in ("train", "val"):
        assert f"  - split: {split}\n    path: data/{split}-*\n" in card
        for path in sorted((out / "data").glob(f"{split}-*.parquet")):
            table = pq.read_table(path)
            features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            assert features["image"] == {"_type": "Image"} and list(features) == table.column_names
            for row in table.to_pylist():
                assert row["image"]["path"] == f"{row['sample_id']}.jpg" and names[split, row["label"]] == row["identity"]
                found.append((split, row["identity"], row["sample_id"], row["image"]["bytes"]))
    return found


READERS: dict[str, Callable[[Path], list[Sample]]] = {
    "webdataset": from_webdataset,
    "imagefolder": from_imagefolder,
    "recordio": from_recordio,
    "parquet": from_parquet,
    "hf": from_hf,
}


def content(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the receipt, which has seconds in it."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "_receipt.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_form_has_a_reader_here() -> None:
    assert set(READERS) == set(EXPORTERS)


@pytest.mark.parametrize("form", EXPORTERS)
def test_an_export_holds_what_was_kept_and_nothing_else(run: RunLayout, form: str, tmp_path: Path) -> None:
    receipt = export_to(run.clean, tmp_path / "out", wanted(form, min_images=6), workers=1)
    found = READERS[form](tmp_path / "out")
    samples = kept(run)
    count = Counter(identity for identity, _ in samples.values())
    assert min(count.values()) == 5 and max(count.values()) == 6, "some are left out"
    assert {key: (identity, picture) for _, identity, key, picture in found} == {
        key: value for key, value in samples.items() if count[value[0]] >= 6
    }
    assert len(found) == len({key for *_, key, _ in found}), "a sample stands twice"
    splits = defaultdict(set)
    for split, identity, *_ in found:
        splits[identity].add(split)
    assert all(len(where) == 1 for where in splits.values()) and set().union(*splits.values()) == {"train", "val"}
    told = json.loads((tmp_path / "out" / "dataset.json").read_text())
    for one in told["files"]:
        path = tmp_path / "out" / one["name"]
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (one["bytes"], one["sha256"])
    assert {split: facts["samples"] for split, facts in told["splits"].items()} == Counter(split for split, *_ in found)
    assert receipt.counts["left_out_samples"] == sum(number for number in count.values() if number < 6)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", EXPORTERS)
def test_how_the_work_is_shared_out_changes_no_byte(run: RunLayout, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for workers in (1, 2, 5):
        with monkeypatch.context() as patch:
            patch.setattr(stream, "worker_count", lambda _, workers=workers: workers)  # so many stretches for each, in this process
            export_to(run.clean, tmp_path / str(workers), wanted(form, samples_per_shard=2), workers=1)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")
    assert export_to(run.clean, tmp_path / "1", wanted(form, samples_per_shard=2), workers=1).reused


def test_two_processes_write_the_same_bytes_as_one(run: RunLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.exporters.recordio.PART_BYTES", 20_000)  # those in the order of the shards: test_export_stores.py
    for workers in (1, 2):
        export_to(run.clean, tmp_path / str(workers), wanted("recordio"), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")


class Killed(BaseException):
    """What a kill looks like from the inside."""


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_killed_export_goes_on_to_the_same_bytes(run: RunLayout, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(run.clean, tmp_path / "whole", wanted(form), workers=1)
    out = tmp_path / "out"
    place = "pipeline.exporters.recordio" if form == "recordio" else "pipeline.exporters.stream"
    from importlib import import_module

    module = import_module(place)
    write = module.write_json
    attempts = written = 0

    def dies(path: Path, value: Any) -> None:
        nonlocal written
        if written >= attempts % 2:
            raise Killed
        write(path, value)
        written += 1

    while not out.exists():
        attempts, written = attempts + 1, 0
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_json", dies)
            try:
                export_to(run.clean, out, wanted(form), workers=1)
            except Killed:
                continue
        assert attempts < 60
    assert attempts > 5 and content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_kill_when_all_but_the_seal_is_done(run: RunLayout, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(run.clean, tmp_path / "whole", wanted(form), workers=1)

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    for place in ("pipeline.exporters.stage.write_json", "pipeline.exporters.stage.shutil.rmtree"):
        with monkeypatch.context() as patch:
            patch.setattr(place, dies)
            with pytest.raises(Killed):
                export_to(run.clean, tmp_path / "out", wanted(form), workers=1)
        assert not (tmp_path / "out").exists()
    export_to(run.clean, tmp_path / "out", wanted(form), workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_kill_minus_nine_leaves_what_can_be_gone_on_with(run: RunLayout, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from pipeline.exporters import stream
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
write = stream.write_json
def slow(path, value):
    write(path, value)
    print("part", flush=True)
    time.sleep(0.3)
stream.write_json = slow
export_to(Path({str(run.clean)!r}), Path({str(tmp_path / "out")!r}), Wanted(form="webdataset", samples_per_shard=4, val=0.4), workers=1)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "out").exists()
    [partial] = tmp_path.glob(".out.partial-*")
    before = {path: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    time.sleep(0.01)
    done = [path.stem for path in (partial / ".parts").glob("*.json")]
    assert done
    export_to(run.clean, tmp_path / "out", wanted("webdataset"), workers=1)
    assert all((tmp_path / "out" / f"{stem}.tar").stat().st_mtime_ns == before[partial / f"{stem}.tar"] for stem in done)
    export_to(run.clean, tmp_path / "whole", wanted("webdataset"), workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("form", ["webdataset", "parquet", "hf", "imagefolder"])
def test_no_part_of_a_damaged_clean_shard_counts_as_written(run: RunLayout, form: str, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(run.clean, clean)
    for place in ("clean-000000", "clean-000003"):
        tar = clean / f"{place}.tar"
        whole = tar.read_bytes()
        tar.write_bytes(whole[:-1] + b"x")
        with pytest.raises(BadShard, match=rf"{place}.tar differs from the SHA-256"):
            export_to(clean, tmp_path / "out", wanted(form, samples_per_shard=2), workers=1)
        assert not (tmp_path / "out").exists()
        keys = set(pq.read_table(tar.with_suffix(".parquet"))["sample_id"].to_pylist())
        for path in tmp_path.glob(".out.partial-*/.parts/*.json"):
            for file in json.loads(path.read_text()):
                if file["name"].endswith(".parquet"):
                    assert not keys & set(pq.read_table(path.parents[1] / file["name"])["sample_id"].to_pylist())
        tar.write_bytes(whole)
    export_to(clean, tmp_path / "out", wanted(form, samples_per_shard=2), workers=1)
    export_to(run.clean, tmp_path / "whole", wanted(form, samples_per_shard=2), workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_recordio_is_not_made_of_damage(run: RunLayout, tmp_path: Path) -> None:
    shutil.copytree(run.clean, tmp_path / "clean")
    tar = tmp_path / "clean" / "clean-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(BadShard, match="differs from the SHA-256"):
        export_to(tmp_path / "clean", tmp_path / "out", wanted("recordio"), workers=1)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.partial-*/.plan/runs/clean-000001*"))


def test_shards_end_by_samples_or_by_bytes(run: RunLayout, tmp_path: Path) -> None:
    export_to(run.clean, tmp_path / "samples", wanted("webdataset", val=0, samples_per_shard=10), workers=1)
    assert [one["samples"] for one in files(tmp_path / "samples", ".tar")] == [10, 10, 10, 4]
    export_to(run.clean, tmp_path / "bytes", wanted("webdataset", val=0, bytes_per_shard=40_000), workers=1)
    sizes = [one["bytes"] for one in files(tmp_path / "bytes", ".tar")]
    assert len(sizes) > 3 and all(25_000 < size < 55_000 for size in sizes[:-1])
    export_to(run.clean, tmp_path / "one each", wanted("webdataset", val=0, bytes_per_shard=1), workers=1)
    assert [one["samples"] for one in files(tmp_path / "one each", ".tar")] == [1] * 34
    order = [[key for *_, key, _ in from_webdataset(tmp_path / name)] for name in ("samples", "bytes", "one each")]
    assert order[0] == order[1] == order[2]


def files(out: Path, suffix: str) -> list[dict[str, Any]]:
    return [one for one in json.loads((out / "dataset.json").read_text())["files"] if one["name"].endswith(suffix)]


def test_the_split_of_an_identity_depends_on_its_name_alone(tmp_path: Path) -> None:
    names = [f"person {number}" for number in range(200)]
    drawn = []
    for which, some in (("small", names[::2]), ("large", names)):
        clean = write_clean(tmp_path / which, [(name, b"picture") for name in some], per_shard=100)
        export_to(clean, tmp_path / f"{which} out", Wanted(form="parquet", val=0.25), workers=1)
        drawn.append({row["identity"] for row in json.loads((tmp_path / f"{which} out" / "identities.json").read_text())["val"]})
    assert drawn[0] == drawn[1] & set(names[::2])
    assert drawn[1] == {name for name in names if int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 < 0.25}
    assert 30 < len(drawn[1]) < 70


def test_decisions_are_in_the_export(tmp_path: Path) -> None:
    items = planted()
    run = write_clean_run(tmp_path / "run", items)
    dropped = next(number for number, item in enumerate(items) if item.verdict == "drop")
    assert is_current(run, config())
    decide(
        run.root, [{"sample_id": key_of(items, 0), "verdict": "drop"}, {"sample_id": key_of(items, dropped), "verdict": "keep"}], by="Eve"
    )
    decide(run.root, [{"sample_id": key_of(items, 1), "verdict": "relabel", "clean_identity": "Cleo"}], by="Eve")
    assert not is_current(run, config()), "clean shards of old decisions would be exported"
    export_again(run, config())
    assert is_current(run, config())
    export_to(run.clean, tmp_path / "out", wanted("imagefolder"), workers=1)
    found = {key: identity for _, identity, key, _ in from_imagefolder(tmp_path / "out")}
    assert key_of(items, 0) not in found and found[key_of(items, dropped)] == items[dropped].identity and found[key_of(items, 1)] == "Cleo"
    rows = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "out" / "metadata").glob("*.parquet")]).to_pylist()
    assert {row["crawled_identity"] for row in rows if row["sample_id"] == key_of(items, 1)} == {"Bob"}


def test_a_dry_run_counts_what_is_then_written(run: RunLayout, tmp_path: Path) -> None:
    for form in EXPORTERS:
        plan = plan_only(run.clean, wanted(form, min_images=6))
        export_to(run.clean, tmp_path / form, wanted(form, min_images=6), workers=1)
        told = json.loads((tmp_path / form / "dataset.json").read_text())
        assert {split.name: {"identities": split.identities, "samples": split.samples} for split in plan.splits} == told["splits"]
        assert told["left_out"] == {"identities": plan.left_out_identities, "samples": plan.left_out_samples}
        if form == "webdataset":
            written = sum(one["bytes"] for one in files(tmp_path / form, ".tar"))
            ends = (
                sum(split.parts for split in plan.splits) * 10240
            )  # a tar ends with zeros up to 10,240 bytes, which is much beside four samples
            assert abs(written - sum(split.total_bytes for split in plan.splits)) < ends


def test_what_has_no_sense_is_refused(run: RunLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changed, message in (
        ({"form": "mxnet"}, "There is no export 'mxnet'. Give one of webdataset"),
        ({"val": 1.0}, "--val is a share"),
        ({"min_images": 0}, "--min-images is 1 or more"),
        ({"samples_per_shard": 0}, "--samples-per-shard is 1 or more"),
        ({"bytes_per_shard": 0}, "--bytes-per-shard is 1 or more"),
    ):
        with pytest.raises(BadConfig, match=message):
            export_to(run.clean, tmp_path / "out", Wanted(**{"form": "parquet", **changed}))
    with pytest.raises(BadInput, match=r"No sample .* The largest identity has 6 samples; --min-images is 7"):
        export_to(run.clean, tmp_path / "out", wanted("parquet", min_images=7))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    export_to(run.clean, tmp_path / "parquet", wanted("parquet"), workers=1)
    for place in (tmp_path / "mine", run.clean, tmp_path / "mine" / "letter.txt", tmp_path / "parquet"):
        with pytest.raises(BadInput, match="holds something else than an export hf"):
            export_to(run.clean, place, wanted("hf"), workers=1)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match="needs about"):
        export_to(run.clean, tmp_path / "full", wanted("webdataset"), workers=1)
    assert not list(tmp_path.glob(".full.partial-*/*.tar"))


def test_an_export_of_other_settings_takes_the_place_of_the_old_one(run: RunLayout, tmp_path: Path) -> None:
    export_to(run.clean, tmp_path / "out", wanted("parquet"), workers=1)
    assert not export_to(run.clean, tmp_path / "out", wanted("parquet", val=0), workers=1).reused
    assert set(json.loads((tmp_path / "out" / "identities.json").read_text())) == {"train"}
    assert sorted({row["identity"] for row in json.loads((tmp_path / "out" / "identities.json").read_text())["train"]}) == sorted(NAMES)
