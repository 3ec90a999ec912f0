"""Exports that are shared out, killed, and made of damage: the same bytes in the end, and no part that is half."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import BadShard
from pipeline.exporters import EXPORTERS, stream
from pipeline.exporters.stage import export_to
from pipeline.layout import RunLayout
from tests.pipeline.clean_run import write_clean_run
from tests.pipeline.export_readers import content, wanted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return write_clean_run(tmp_path_factory.mktemp("exports") / "a run [1]")


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
