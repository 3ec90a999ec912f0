"""A run folder, and a faulty S3 server for its copies."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import patience
from tests.pipeline.clean_run import config, planted, write_clean_run
from tests.pipeline.store_server import Faulty, faulty_server


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    with faulty_server("runs") as faulty:
        yield faulty


@pytest.fixture
def s3(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr(patience, "WAIT_S", 0.001)
    server.asked.clear()
    yield server
    server.fault = lambda _method, _path: None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_clean_run(tmp_path_factory.mktemp("mirror") / "run", planted(each=2), config("export.samples_per_shard=20"))
    shutil.rmtree(run.manifest / "_answers")
    begun = run.root / "rounds" / "2" / ".train.partial-0123456789abcdef" / ".work"
    begun.mkdir(parents=True)
    (begun / "checkpoint.safetensors").write_bytes(b"one state" * 1000)
    run.forgotten.mkdir(exist_ok=True)
    (run.forgotten / "key").write_bytes(b"k" * 32)
    (run.forgotten / "key").chmod(0o600)
    return run.root


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "run")


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://runs/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
