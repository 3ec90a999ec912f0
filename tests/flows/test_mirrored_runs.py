"""`purify run --mirror`: the machine is lost, and another goes on from the copy; what is forgotten is forgotten in the copy, too."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import cli
from pipeline.mirroring.files import look
from pipeline.mirroring.push import Mirror
from pipeline.stores import names
from tests.flows.small_run import OPTIONS, manifest
from tests.pipeline.store_server import SECRET, s3_server

pytestmark = pytest.mark.usefixtures("server")
SETTINGS = ["--preset", "demo", *(word for option in (*OPTIONS, "rounds=1", "train.epochs=3") for word in ("--set", option))]
URL, EARLIER = "s3://runs/nightly", "s3://runs/earlier"


@pytest.fixture(scope="module", autouse=True)
def store() -> Iterator[None]:
    with s3_server("runs"):
        yield


def said(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    printed = capfd.readouterr()
    os.environ.pop("PURIFY_LOG", None)
    return int(stop.value.code or 0), printed.out + printed.err


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_another_machine_goes_on_and_nothing_is_done_twice(
    tiny_crawl: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["run", str(tiny_crawl[0]), str(run), *SETTINGS, "--mirror", URL, "--log", "json"]
    code, words = said(capfd, *command)
    assert code == 0
    assert [line["sent_files"] for line in lines(words) if line["event"] == "mirror"] == [len(names(f"{URL}/objects"))]
    before = manifest(run)
    files = look(run)

    shutil.rmtree(run)
    code, words = said(capfd, *command, "--dry-run")
    assert code == 0 and f"copy at {URL}: {len(files)} files would be taken from it first" in " ".join(words.split()) and not run.exists()
    code, words = said(capfd, *command)
    assert code == 0 and SECRET not in words
    assert all(line["reused"] for line in lines(words) if line["event"] == "stage")
    assert [line["files"] for line in lines(words) if line["event"] == "pull"] and manifest(run).equals(before)

    code, words = said(capfd, "run", str(tiny_crawl[0]), str(tmp_path / "second"), *SETTINGS, "--mirror", "s3://nobucket/x")
    assert code == 1 and "s3://nobucket/x" in words and not (tmp_path / "second").exists(), "before any work"

    name = str(before["identity"].iloc[0])
    its = before[(before["identity"] == name) & before["shard"].notna()]
    tars = {hashlib.sha256((run / "raw" / f"{shard}.tar").read_bytes()).hexdigest() for shard in its["shard"].unique()}
    assert tars <= names(f"{URL}/objects")
    for place in (EARLIER, URL):
        assert said(capfd, "push", str(run), place)[0] == 0
    with Mirror(run, URL):
        code, words = said(capfd, "forget", str(run), "--identity", name, "--yes")
    assert code == 1 and f"still in the copy at {URL}: Another process copies" in " ".join(words.split())
    code, words = said(capfd, "forget", str(run), "--identity", name, "--yes")
    assert code == 0 and f"The copy at {URL} has it no more either" in " ".join(words.split())
    assert not tars & names(f"{URL}/objects")
    assert f"An earlier copy at {EARLIER} has it still" in " ".join(words.split()) and tars <= names(f"{EARLIER}/objects")
    assert said(capfd, "push", str(run), EARLIER)[0] == 0
    assert not tars & names(f"{EARLIER}/objects")
    code, words = said(capfd, "run", str(tiny_crawl[0]), str(tmp_path / "new"), *SETTINGS, "--mirror", f"{URL}2", "--dry-run")
    assert code == 0 and f"copy at {URL}2: nothing to take from it" in " ".join(words.split())
    shutil.rmtree(run)
    code, words = said(capfd, "pull", URL, str(run))
    assert code == 0 and name not in set(manifest(run)["identity"])
