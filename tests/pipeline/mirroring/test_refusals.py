"""Stores, indices, objects and folders that are not what a copy wants: refused in words, and nothing is lost."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, BadInput, NoSpace, StaleInput
from pipeline.mirroring.pull import begin, pull
from pipeline.verify import verify
from tests.pipeline.mirroring.copies import contents, push, put
from tests.pipeline.store_server import Faulty


@pytest.mark.parametrize(
    "content", ["", "[]", "7", '{"url": 7}', '{"url": URL, "sent": [[1]]}', '{"url": URL, "sent": 3}', '{"url": URL, "sent": []}']
)
def test_a_damaged_memory_is_refused(run: Path, url: str, s3: Faulty, content: str) -> None:
    (run / ".mirror.json").write_text(content.replace("URL", json.dumps(url)))
    with pytest.raises(StaleInput, match=r"mirror.json is damaged, so nothing was done"):
        push(run, url)
    (run / ".mirror.json").unlink()
    push(run, url)


def test_places_that_take_no_copy(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    for place, message in (
        (str(tmp_path / "copy"), "is no URL of a store"),
        ("https://host/x", "cannot be written by http"),
        ("s3://key:secret@runs/x", "Credentials do not belong into a URL"),
    ):
        with pytest.raises(BadConfig, match=message) as raised:
            push(run, place)
        assert "secret" not in str(raised.value)
    put(url, "dataset.json", b"{}")
    with pytest.raises(BadInput, match=r"holds something else than the copy of a run: dataset.json. Give an empty prefix"):
        push(run, url)
    with pytest.raises(BadInput, match="There is no copy of a run"):
        pull(url, tmp_path / "other")
    put(url, "index.json", b'{"what": "ever"}')
    for act in (lambda: push(run, url), lambda: pull(url, tmp_path / "other"), lambda: begin(tmp_path / "other", url)):
        with pytest.raises(BadInput, match=r"index.json is not the index of a copy"):
            act()
    with pytest.raises(BadInput, match=r"s3://nobucket/\S+ cannot be used: .* Make the bucket first"):
        begin(tmp_path / "other", "s3://nobucket/x")
    s3.fault = lambda method, _path: 403 if method == "PUT" else None
    with pytest.raises(BadInput, match="Set AWS_PROFILE"):
        begin(tmp_path / "other", f"{url}-other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../out",
        "/out",
        "a/../../out",
        "",
        ".",
        "a//b",
        "raw/.hidden/x",
        ".mirror.json",
        ".lock",
        "a\\b",
        "a\0b",
        "raw/",
        "a\nb",
        "\x1b[31m",
        "\ud800",
        "a" * 256,
    ],
)
def test_an_index_cannot_lead_out_of_the_folder(url: str, s3: Faulty, tmp_path: Path, path: str) -> None:
    content = b"foreign"
    sha256 = hashlib.sha256(content).hexdigest()
    put(url, f"objects/{sha256}", content)
    told = {"format": "copy of a purify run", "version": 1, "writer": "w", "number": 1, "written": "now"}
    put(url, "index.json", json.dumps({**told, "files": {path: [sha256, len(content), False]}}).encode())
    with pytest.raises(BadInput, match="is damaged, or not ours"):
        pull(url, tmp_path / "deep" / "run")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"a": ["../../etc/passwd", 7, False]},
        {"a": ["0" * 64, -1, False]},
        {"a": ["0" * 64, 7]},
        {"a": 7},
        ["a"],
        {},
        {"a": ["0" * 64, 7, False]},
        {"run.json": ["0" * 64, 7, False], "run.json/x": ["0" * 64, 7, False]},
        {"a": ["0" * 64, "7", False]},
    ],
)
def test_an_index_of_nonsense_is_refused(url: str, s3: Faulty, tmp_path: Path, files: Any) -> None:
    told = {"format": "copy of a purify run", "version": 1, "writer": "w", "number": 1, "written": "now", "files": files}
    put(url, "index.json", json.dumps(told).encode())
    with pytest.raises(BadInput, match="is damaged, or not ours"):
        pull(url, tmp_path / "run")


def test_an_index_that_is_too_much_is_refused(url: str, s3: Faulty, tmp_path: Path) -> None:
    told = {"format": "copy of a purify run", "version": 1, "writer": "w", "written": "now", "files": {"run.json": ["0" * 64, 1, False]}}
    for content in (json.dumps({**told, "number": float("inf")}), json.dumps({**told, "number": 1, "written": None}), "[" * 100_000):
        put(url, "index.json", content.encode())
        with pytest.raises(BadInput, match=r"is damaged, or not ours|is no JSON"):
            pull(url, tmp_path / "run")


@pytest.mark.parametrize("place", ["s3://", "S3://bucket/x", "s3:///x", "s3://bucket/x?X-Amz-Signature=abc"])
def test_urls_that_name_no_place(run: Path, place: str) -> None:
    with pytest.raises(BadConfig, match="names no place in a store") as told:
        push(run, place)
    assert "abc" not in str(told.value)


def test_objects_that_are_not_what_they_say(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    sha256 = hashlib.sha256((run / "clean" / "dataset.json").read_bytes()).hexdigest()
    assert verify(url, workers=1).findings == []
    for wrong, message in ((b"x", "is not what its name says"), (b"x" * 10**6, "is not what its name says"), (None, "is gone: the copy")):
        if wrong is None:
            import boto3

            client = boto3.client("s3")
            client.delete_object(Bucket="runs", Key=f"{url.removeprefix('s3://runs/')}/objects/{sha256}")
            client.close()
        else:
            put(url, f"objects/{sha256}", wrong)
        with pytest.raises(BadInput, match=message):
            pull(url, tmp_path / "other")
        assert not (tmp_path / "other" / "clean" / "dataset.json").exists()
        assert {one.name for one in verify(url, workers=1).findings} == {f"clean/dataset.json, objects/{sha256}"}
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run), "a push sends what is gone again"


def test_a_disk_without_room_is_seen_first(url: str, s3: Faulty, tmp_path: Path) -> None:
    told = {"format": "copy of a purify run", "version": 1, "writer": "w", "number": 1, "written": "now"}
    put(url, "index.json", json.dumps({**told, "files": {"run.json": ["0" * 64, 10**18, False]}}).encode())
    with pytest.raises(NoSpace, match="GB are free"):
        pull(url, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_takes_no_copy(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StaleInput, match="is not an empty folder"):
        pull(url, tmp_path / "other")
    with pytest.raises(StaleInput, match="holds files that are no run"):
        begin(tmp_path / "other", url)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_places_that_are_in_the_way_of_a_pull(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place in ("file", "dangling", "file/below"):
        with pytest.raises(StaleInput, match=r"is not an empty folder|cannot be made"):
            pull(url, tmp_path / place)
