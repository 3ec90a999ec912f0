"""Exports into a real S3 server on loopback, which throttles, fails and hangs up: the same objects as on a disk, dataset.json last, no secrets told."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import cli
from pipeline import patience, stores
from pipeline.errors import BadConfig, BadInput
from pipeline.exporters import EXPORTERS
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.layout import RunLayout
from pipeline.verify import verify
from tests.pipeline.clean_run import write_clean_run
from tests.pipeline.store_server import SECRET, Faulty, faulty_server

STORED = [form for form, exporter in EXPORTERS.items() if not exporter.is_many_files]


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    """A server with an empty bucket `exports`."""
    with faulty_server("exports") as faulty:
        yield faulty


@pytest.fixture
def s3(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr(patience, "WAIT_S", 0.001)
    server.asked.clear()
    yield server
    server.fault = lambda _method, _path: None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return write_clean_run(tmp_path_factory.mktemp("stores") / "run")


def wanted(form: str = "webdataset") -> Wanted:
    return Wanted(form=form, samples_per_shard=7, val=0.4)


def objects(prefix: str) -> dict[str, str]:
    """Key below the prefix -> SHA-256."""
    import boto3

    client = boto3.client("s3")
    found = {}
    for one in client.list_objects_v2(Bucket="exports", Prefix=f"{prefix}/").get("Contents", []):
        content = client.get_object(Bucket="exports", Key=one["Key"])["Body"].read()
        found[one["Key"].removeprefix(f"{prefix}/")] = hashlib.sha256(content).hexdigest()
    client.close()
    return found


def on_disk(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "_receipt.json"]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("form", STORED)
def test_objects_are_the_files_of_an_export_on_a_disk(run: RunLayout, s3: Faulty, form: str, tmp_path: Path) -> None:
    export_to(run.clean, tmp_path / "out", wanted(form), workers=1)
    receipt = export_to(run.clean, f"s3://exports/{form}/", wanted(form), workers=1, work=tmp_path / "work")
    assert objects(form) == on_disk(tmp_path / "out") and not list((tmp_path / "work").iterdir())
    puts = [path for method, path in s3.asked if method == "PUT"]
    assert puts[-1].startswith(f"/exports/{form}/dataset.json"), "what tells of all files comes after them"
    again = export_to(run.clean, f"s3://exports/{form}", wanted(form), workers=1, work=tmp_path / "work")
    assert again.reused and again.counts == receipt.counts
    assert verify(f"s3://exports/{form}", workers=1).findings == []


def test_processes_share_the_work(run: RunLayout, s3: Faulty, tmp_path: Path) -> None:
    export_to(run.clean, tmp_path / "out", wanted(), workers=1)
    export_to(run.clean, "s3://exports/two", wanted(), workers=2, work=tmp_path / "work")
    assert objects("two") == on_disk(tmp_path / "out")


@pytest.mark.parametrize("status", [503, 500])
def test_a_store_that_is_busy_is_asked_again(run: RunLayout, s3: Faulty, status: int, tmp_path: Path) -> None:
    met: set[tuple[str, str]] = set()

    def first_time(method: str, path: str) -> int | None:
        is_new = (method, path) not in met
        met.add((method, path))
        return status if is_new else None

    s3.fault = first_time
    url = f"s3://exports/busy-{status}"
    export_to(run.clean, url, wanted("parquet"), workers=1, work=tmp_path / "work")
    assert verify(url, workers=1).findings == []
    assert len(met) > 10
    s3.fault = lambda _method, _path: None
    export_to(run.clean, tmp_path / "out", wanted("parquet"), workers=1)
    assert objects(f"busy-{status}") == on_disk(tmp_path / "out")


def test_a_store_that_stays_away_is_told_and_then_gone_on_with(
    run: RunLayout, s3: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "_told_at", float("-inf"))
    puts = 0

    def breaks(method: str, _: str) -> int | None:
        nonlocal puts
        puts += method == "PUT"
        return 500 if puts > 5 else None

    s3.fault = breaks
    with pytest.raises(BadInput, match=r"s3://exports/away/\S+ cannot be used"):
        export_to(run.clean, "s3://exports/away", wanted(), workers=1, work=tmp_path / "work")
    assert caplog.messages == ["A store is busy, or does not answer (OSError). It is asked again for about a minute."]
    s3.fault = lambda _method, _path: None
    first = objects("away")
    assert len(first) == 5 and "dataset.json" not in first, "an export that is not finished says nothing of itself"
    with pytest.raises(BadInput, match="is not empty, and what is in it was not begun from here"):
        export_to(run.clean, "s3://exports/away", wanted(), workers=1, work=tmp_path / "other")
    s3.asked.clear()
    export_to(run.clean, "s3://exports/away", wanted(), workers=1, work=tmp_path / "work")
    export_to(run.clean, tmp_path / "out", wanted(), workers=1)
    assert objects("away") == on_disk(tmp_path / "out") and not list((tmp_path / "work").iterdir())
    sent = [path.partition("?")[0].rpartition("/")[2] for method, path in s3.asked if method == "PUT"]
    assert len(set(first) & set(sent)) <= 1, "a part that is proven and moved is not made again"


def test_what_is_forbidden_is_told_at_once(run: RunLayout, s3: Faulty, tmp_path: Path) -> None:
    s3.fault = lambda method, _path: 403 if method == "PUT" else None
    with pytest.raises(BadInput, match=r"PermissionError.* Set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        export_to(run.clean, "s3://exports/forbidden", wanted(), workers=1, work=tmp_path / "work")
    assert len([1 for method, _ in s3.asked if method == "PUT"]) == 1


def test_large_objects_go_in_parts(s3: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MULTIPART_BYTES", 5 * 2**20)
    content = b"0123456789abcdef" * (700 * 1024)
    (tmp_path / "large").write_bytes(content)
    parts = 0

    def second_part_fails_once(method: str, path: str) -> int | None:
        nonlocal parts
        parts += method == "PUT" and "partNumber=2" in path
        return 500 if method == "PUT" and "partNumber=2" in path and parts == 1 else None

    s3.fault = second_part_fails_once
    stores.upload(tmp_path / "large", "s3://exports/large/large")
    assert objects("large") == {"large": hashlib.sha256(content).hexdigest()}
    assert {path.partition("partNumber=")[2][0] for method, path in s3.asked if "partNumber=" in path and method == "PUT"} == {
        "1",
        "2",
        "3",
    }
    import boto3

    client = boto3.client("s3")
    assert not client.list_multipart_uploads(Bucket="exports").get("Uploads"), "what failed is not left to be paid for"
    client.close()


def test_what_is_published_is_not_changed(run: RunLayout, s3: Faulty, tmp_path: Path) -> None:
    export_to(run.clean, "s3://exports/fixed", wanted("parquet"), workers=1, work=tmp_path / "work")
    before = objects("fixed")
    for other in (Wanted(form="parquet", val=0.1), wanted("hf")):
        with pytest.raises(BadInput, match=r"holds another data set. Give an empty prefix"):
            export_to(run.clean, "s3://exports/fixed", other, workers=1, work=tmp_path / "work")
    assert objects("fixed") == before


def test_places_that_take_no_export(run: RunLayout, s3: Faulty, tmp_path: Path) -> None:
    for url, form, message in (
        ("https://host/x", "parquet", "cannot be written by http"),
        ("s3://key:secret@exports/x", "parquet", "Credentials do not belong into a URL"),
        ("s3://exports/x", "imagefolder", "a file for every picture, which no store is made for"),
    ):
        with pytest.raises(BadConfig, match=message) as told:
            export_to(run.clean, url, wanted(form), workers=1, work=tmp_path / "work")
        assert "secret" not in str(told.value)
    with pytest.raises(BadInput, match="cannot be used"):
        export_to(run.clean, "nonsense://exports/x", wanted(), workers=1, work=tmp_path / "work")
    with pytest.raises(BadInput, match=r"cannot be used: .*bucket"):
        export_to(run.clean, "s3://nobucket/x", wanted(), workers=1, work=tmp_path / "work")


def test_damage_in_a_store_is_found(run: RunLayout, s3: Faulty, tmp_path: Path) -> None:
    import boto3

    export_to(run.clean, "s3://exports/damaged", wanted(), workers=1, work=tmp_path / "work")
    client = boto3.client("s3")
    whole = client.get_object(Bucket="exports", Key="damaged/train-000001.tar")["Body"].read()
    client.put_object(Bucket="exports", Key="damaged/train-000001.tar", Body=whole[:2000] + b"x" + whole[2001:])
    client.delete_object(Bucket="exports", Key="damaged/val-000000.parquet")
    client.put_object(Bucket="exports", Key="damaged/more/stranger.tar", Body=b"x")
    client.close()
    found = {one.name: one.what for one in verify("s3://exports/damaged", workers=1).findings}
    assert set(found) == {"train-000001.tar", "val-000000.parquet", "val-000000.tar", "more/stranger.tar"}
    assert found["val-000000.parquet"] == "is not there"


def test_no_secret_is_told(
    run: RunLayout, s3: Faulty, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--to", "parquet", "--out", "s3://exports/told", "--workers", "1"]
    s3.fault = lambda method, _path: 403 if method == "PUT" else None
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 1
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix == ".json"]
    assert any(".export.partial-" in str(path) for path in written)
    s3.fault = lambda _method, _path: None
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        cli.app(words)
    said = capfd.readouterr()
    assert not ended.value.code and "s3://exports/told" in said.out and "cannot be used" in said.err
    for text in (said.out, said.err, caplog.text, *(path.read_text() for path in written if path.exists())):
        assert SECRET not in text
