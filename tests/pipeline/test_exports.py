"""Every form holds exactly what was kept, under the names that were planned; the same bytes whatever the workers, also after a kill."""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.decisions import decide
from pipeline.errors import BadConfig, BadInput, BadShard, NoSpace
from pipeline.export import is_current
from pipeline.exporters import EXPORTERS, stage
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to, plan_only, require_place
from pipeline.layout import RunLayout
from tests.pipeline.clean_run import NAMES, config, export_again, planted, write_clean, write_clean_run
from tests.pipeline.export_readers import READERS, from_imagefolder, from_webdataset, kept, wanted
from tests.pipeline.fake_run import key_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return write_clean_run(tmp_path_factory.mktemp("exports") / "a run [1]")


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
    export_to(run.clean, tmp_path / "few each", wanted("webdataset", val=0, bytes_per_shard=10_240), workers=1)
    assert {one["samples"] for one in files(tmp_path / "few each", ".tar")} <= {1, 2, 3}
    order = [[key for *_, key, _ in from_webdataset(tmp_path / name)] for name in ("samples", "bytes", "few each")]
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
        ({"bytes_per_shard": 10_239}, "--bytes-per-shard is 10,240 or more.* got 10,239. Give it as 500MB"),
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


@pytest.mark.parametrize("form", ["recordio", "imagefolder"])
def test_what_an_export_did_not_write_is_not_removed_with_it(
    run: RunLayout, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", wanted(form, val=0)
    export_to(run.clean, out, wanted(form), workers=1)
    require_place(out, other, run.clean)
    stray = out / "train" / "Anna" / "model.pt"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"weights")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for clean in (run.clean, None):
        with pytest.raises(BadInput, match=r"files that this export did not write: train/Anna/model.pt\. .* Move them away"):
            require_place(out, other, clean)
    with pytest.raises(BadInput, match="did not write: train/Anna/model"):
        export_to(run.clean, out, other, workers=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert export_to(run.clean, out, wanted(form), workers=1).reused, "nothing is removed where the export stands already"
    stray.unlink()
    with monkeypatch.context() as patch:
        tell = stage._told
        patch.setattr(stage, "_told", lambda *facts: (stray.write_bytes(b"weights"), tell(*facts))[1])
        with pytest.raises(BadInput, match="did not write"):
            export_to(run.clean, out, other, workers=1)
    assert stray.read_bytes() == b"weights"
    stray.unlink()
    export_to(run.clean, out, other, workers=1)
    (out / "dataset.json").write_text("{")
    with pytest.raises(BadInput, match="does not tell which files are its own"):
        export_to(run.clean, out, wanted(form), workers=1)
