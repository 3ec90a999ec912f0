"""All is well with what was just written; and each thing that is then done to it, to any file of any form, is found and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from flows import cli
from pipeline.errors import BadInput, StaleInput
from pipeline.exporters import EXPORTERS
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.layout import RunLayout
from pipeline.run_folder import claimed
from pipeline.shards import read_facts, write_twin
from pipeline.verify import verify
from tests.pipeline.clean_run import write_clean_run

KINDS = ["raw", "clean", *EXPORTERS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("verify")
    run: RunLayout = write_clean_run(root / "run")
    for form in EXPORTERS:
        export_to(run.clean, root / form, Wanted(form=form, samples_per_shard=9, val=0.4), workers=1)
    return {"raw": run.raw, "clean": run.clean, **{form: root / form for form in EXPORTERS}}


@pytest.fixture
def copied(whole: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    shutil.copytree(whole[request.param], tmp_path / "it")
    return tmp_path / "it"


def wrong(place: Path) -> dict[str, str]:
    return {one.name: one.what for one in verify(place, workers=1).findings}


def files_of(place: Path) -> list[Path]:
    """All but the receipt, whose seconds nothing depends on."""
    return sorted(path for path in place.rglob("*") if path.is_file() and path.name not in {"_receipt.json", "dataset.json"})


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_with_what_was_just_written(whole: dict[str, Path], kind: str) -> None:
    found = verify(whole[kind], workers=1)
    assert found.findings == []
    told = [path for path in files_of(whole[kind]) if kind != "clean" or path.name != "identities.parquet"]
    assert (found.files, found.bytes) == (len(told), sum(path.stat().st_size for path in told))


def test_a_run_is_its_raw_its_clean_shards_and_its_tables_and_processes_find_the_same(whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["raw"].parent, tmp_path / "run")
    for name in ("raw/raw-000001.tar", "clean/clean-000002.tar"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    [table, *_] = sorted((tmp_path / "run" / "manifest").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-1])
    found = verify(tmp_path / "run", workers=2)
    assert {one.name for one in found.findings} == {"raw/raw-000001.tar", "clean/clean-000002.tar", f"manifest/{table.name}"}
    assert found == verify(tmp_path / "run", workers=1)


def test_models_and_records_of_a_run_are_whole_by_their_own_words(whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["raw"].parent, tmp_path / "run")
    trained = tmp_path / "run" / "rounds" / "2" / "train"
    trained.mkdir(parents=True)
    save_file({"a": np.ones(9, np.float32), "b": np.ones(2, np.float32)}, trained / "whole.safetensors", {"told": "of"})
    content = (trained / "whole.safetensors").read_bytes()
    for name, damaged in {
        "short": content[:-1],
        "long": content + b"x",
        "header": content[:20],
        "none": b"",
        "text": b"\2" + bytes(7) + b"hi",
    }.items():
        (trained / f"{name}.safetensors").write_bytes(damaged)
    (trained / "model.json").write_text('{"half": ')
    assert wrong(tmp_path / "run") == {
        "rounds/2/train/header.safetensors": "cannot be read: ends within its header, at 20 bytes",
        "rounds/2/train/long.safetensors": f"cannot be read: it has {len(content) + 1} bytes, and {len(content)} by its header",
        "rounds/2/train/model.json": "cannot be read: Expecting value: line 1 column 10 (char 9)",
        "rounds/2/train/none.safetensors": "cannot be read: its header is none of safetensors (Expecting value: line 1 column 1 (char 0))",
        "rounds/2/train/short.safetensors": f"cannot be read: it has {len(content) - 1} bytes, and {len(content)} by its header",
        "rounds/2/train/text.safetensors": "cannot be read: its header is none of safetensors (Expecting value: line 1 column 1 (char 0))",
    }


def test_a_run_whose_record_is_damaged_is_gone_on_with_by_the_advice_of_both_commands(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, crawl = RunLayout(tmp_path / "run"), tmp_path / "crawl"
    shutil.copytree(whole["raw"].parent, run.root)
    run.run_json.write_text('{"crawl": "/da')
    code, told = said(capsys, "verify", str(run.root))
    assert code == 1 and 'write {"crawl": "/the/absolute/path"} into run.json' in told
    with pytest.raises(StaleInput, match=r'write {"crawl": "/the/absolute/path"} into'), claimed(crawl, run):
        pass
    run.run_json.write_text(json.dumps({"crawl": str(crawl)}))
    with claimed(crawl, run):
        assert verify(run.root, workers=1).findings == []


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(argv))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), " ".join((printed.out + printed.err).split())


def test_of_an_unfinished_run_it_is_said_what_is_there_and_what_is_not(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["raw"].parent, run)
    (run / ".status.json").write_text("{}")  # of a `purify run` that was begun again, and stopped
    found = verify(run, workers=1)
    assert found.is_unfinished and found.there == ["raw/", "rounds/1/noise/", "manifest/", "clean/"] and found.findings == []
    (run / ".status.json").unlink()
    shutil.rmtree(run / "clean")
    assert wrong(run) == {"clean/": "is not there"}, "of a finished run nothing may be gone"
    shutil.rmtree(run / "manifest")
    (run / "run.json").write_text('{"crawl": "x", "finished": false}')
    found = verify(run, workers=1)
    assert (found.there, found.findings) == (["raw/", "rounds/1/noise/"], [])
    assert found.missing == ["rounds/1/train/", "rounds/1/embeddings/", "manifest/", "clean/", "evaluation/", "audit/"]
    code, text = said(capsys, "verify", str(run), "--workers", "1")
    assert code == 0 and "not finished" in text and "was checked: raw/, rounds/1/noise/. Not there yet: rounds/1/train/" in text
    assert "what is there is as it should be" in text and "all as they should be" not in text
    (run / "raw" / "raw-000000.tar").write_bytes(b"")
    code, text = said(capsys, "verify", str(run), "--workers", "1")
    assert code == 1 and "not finished" in text and "raw/raw-000000.tar: ends without the mark of its end" in text
    for name in ("raw", "rounds"):
        shutil.rmtree(run / name)
    code, text = said(capsys, "verify", str(run), "--workers", "1")
    assert code == 0 and "no stage is finished, so there was nothing to check" in text
    (run / "run.json").write_text("{")
    assert "cannot be read" in wrong(run)["run.json"]


def test_a_half_done_forget_comes_first(whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "[run]"
    shutil.copytree(whole["raw"].parent, run)
    (run / "forgotten").mkdir()
    (run / "forgotten" / "pending.json").write_text('{"by": "Cleo"}')
    (run / "raw" / "raw-000000.tar").write_bytes(b"half")
    told = f"stopped half way, or goes on. To finish it: purify forget {run} --yes"
    for argv, wanted in ((["verify", str(run)], 1), (["verify", str(run / "clean")], 1), (["status", str(run)], 0)):
        code, text = said(capsys, *argv)
        assert code == wanted and told in text and "Finished" not in text and "Remove" not in text and "Cleo" not in text, text
    code, text = said(capsys, "status", str(run), "--format", "json")
    assert json.loads(text)["state"] == "stopped" and told in json.loads(text)["half_forgotten"]


@pytest.mark.parametrize("copied", KINDS, indirect=True)
def test_every_flipped_bit_is_found(copied: Path) -> None:
    for path in files_of(copied):
        before = path.read_bytes()
        for place in {0, len(before) // 2, len(before) - 1}:
            path.write_bytes(before[:place] + bytes([before[place] ^ 4]) + before[place + 1 :])
            found = wrong(copied)
            if path.name == "identities.parquet" and not found:  # it has no hash
                continue
            name = path.relative_to(copied).as_posix()
            names = {name, path.with_suffix(".parquet").name} if path.suffix == ".sha256" else {name}
            assert names & set(found), (path, place, found)
        path.write_bytes(before)
    assert wrong(copied) == {}


@pytest.mark.parametrize("copied", KINDS, indirect=True)
def test_what_is_cut_gone_or_too_much_is_found(copied: Path) -> None:
    for path in files_of(copied):
        name = path.relative_to(copied).as_posix()
        names = {name, path.with_suffix(".tar").name, path.with_suffix(".parquet").name}
        before = path.read_bytes()
        if path.name != "identities.parquet" or copied.joinpath("dataset.json").exists():
            path.write_bytes(before[:-3])
            assert names & set(wrong(copied)), name
            path.unlink()
            assert names & set(wrong(copied)) or path.suffix == ".parquet", name
            path.write_bytes(before)
    (copied / "notes.txt").write_text("mine")
    (copied / "extra").mkdir()
    (copied / "extra" / ("a\nb" + ".jpg")).touch()
    (copied / "link").symlink_to("notes.txt")
    strange = "is there, and nothing tells of it"
    assert wrong(copied) == {"notes.txt": strange, "extra/a\\x0ab.jpg": strange, "link": strange}


@pytest.mark.parametrize("copied", ["webdataset"], indirect=True)
def test_a_tar_whose_twin_tells_otherwise_is_found(copied: Path) -> None:
    twin = copied / "train-000000.parquet"
    table, facts = pq.read_table(twin), read_facts(twin)
    key = table["sample_id"][0].as_py()
    swapped = table.take([1, 0, *range(2, table.num_rows)])

    def holding(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
        place = table.schema.get_field_index(name)
        return rows.set_column(place, table.schema.field(place), values)

    for changed, message in (
        (table.slice(0, 8), "holds"),
        (holding(swapped, "crop_offset", table["crop_offset"]), "holds"),
        (holding(table, "class_index", pa.array([99] * 9, pa.int32())), f"has class b'0' for '{key}.cls', its twin 99"),
        (pa.concat_tables([table, holding(table.slice(0, 1), "crop_offset", pa.array([10**9], pa.int64()))]), "ends before"),
    ):
        write_twin(twin, changed, facts)
        found = wrong(copied)
        assert message in found["train-000000.tar"] or "holds" in found["train-000000.tar"], found
        assert "SHA-256" in found["train-000000.parquet"] or "bytes" in found["train-000000.parquet"]


@pytest.mark.parametrize("copied", ["imagefolder"], indirect=True)
def test_pictures_of_a_folder_are_told_one_by_one(copied: Path) -> None:
    first, second, third = sorted((copied / "train" / "Ada").iterdir())[:3]
    first.write_bytes(first.read_bytes() + b"x")
    content = second.read_bytes()
    second.unlink()
    (copied / "train" / "Ada" / "stranger.jpg").write_bytes(content)
    third.unlink()
    third.symlink_to("stranger.jpg")
    found = wrong(copied)
    assert found[f"train/Ada/{first.name}"] == "has other bytes than its row tells of"
    assert found[f"train/Ada/{second.name}"] == "is not there"
    assert found["train/Ada/stranger.jpg"] == "is there, and nothing tells of it"
    assert "link" in found[f"train/Ada/{third.name}"] and len(found) == 4


@pytest.mark.parametrize("copied", ["parquet"], indirect=True)
def test_what_is_told_of_may_be_wrong_itself(copied: Path, tmp_path: Path) -> None:
    page = copied / "dataset.json"
    told = json.loads(page.read_text())
    (tmp_path / "secret").write_text("x")
    first = told["files"][0]
    page.write_text(
        json.dumps(told | {"files": [first | {"samples": 1}, {"name": "../secret", "bytes": 1, "sha256": "0"}, *told["files"][1:]]})
    )
    assert wrong(copied) == {first["name"]: "has 9 rows, 1 samples are told of", "../secret": "leads out of the folder"}
    page.write_text(json.dumps(told | {"splits": {"train": {"identities": 1, "samples": 1}}}))
    assert "are told of" in wrong(copied)["identities.json"]
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "tells of no files"),
        ('{"files": [{}]}', "does not tell of files"),
        ('{"format": "x", "files": 3}', "does not"),
    ):
        page.write_text(text)
        with pytest.raises(BadInput, match=message):
            verify(copied, workers=1)


def test_what_tells_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no folder at"):
        verify(tmp_path / "none")
    with pytest.raises(BadInput, match=r"neither dataset.json nor raw shards"):
        verify(tmp_path)


@pytest.mark.parametrize("copied", ["clean"], indirect=True)
def test_the_command_prints_what_is_wrong_and_ends_with_1(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.app(["verify", str(copied), "--workers", "1"])
    assert not ended.value.code and "all as they should be" in " ".join(capsys.readouterr().out.split())
    (copied / "[red]x").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", str(copied), "--workers", "1"])
    said = capsys.readouterr()
    assert ended.value.code == 1 and "[red]x: is there, and nothing tells of it" in said.out
    assert "1 finding in 21 files" in " ".join(said.err.split()) and "give the command again that wrote it" in " ".join(said.err.split())
