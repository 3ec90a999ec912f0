"""Ingest, embed, isolate and export on other task runners: the same bytes as in one process."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.purify import purify
from flows.workers import RunnerName, fanned
from pipeline.errors import BadConfig
from tests.flows.small_run import config


@pytest.fixture(scope="module")
def finished(server: None, tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(crawl, a run of it in one process)."""
    run = tmp_path_factory.mktemp("alone") / "run"
    purify(tiny_crawl[0], run, config("rounds=1", "train.epochs=2", "ingest.samples_per_shard=20", "export.samples_per_shard=10"))
    return tiny_crawl[0], run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "_receipt.json"}


@pytest.mark.filterwarnings("ignore")  # of the clusters, at their end
@pytest.mark.parametrize("runner", ["processes", "threads", "dask", "ray"])
def test_the_same_bytes_on_every_task_runner(finished: tuple[Path, Path], tmp_path: Path, runner: RunnerName) -> None:
    if runner in ("dask", "ray") and importlib.util.find_spec({"dask": "distributed", "ray": "ray"}[runner]) is None:
        pytest.skip(f"the extra `{runner}` is not installed")
    crawl, alone = finished
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    made = ("raw", "rounds/1/embeddings", "rounds/1/noise", "clean")
    for name in made:
        shutil.rmtree(run / name)
    settings = config("rounds=1", "train.epochs=2", "ingest.samples_per_shard=20", "export.samples_per_shard=10", "workers=2")
    record: Any = purify(crawl, run, settings, task_runner=runner)
    done = {stage["stage"] for stage in record["stages"] if not stage["reused"]}
    assert done == {"ingest", "round 1 embed", "round 1 isolate", "export"}
    for name in made:
        assert bytes_of(run / name) == bytes_of(alone / name)


def test_an_address_is_of_a_cluster() -> None:
    with pytest.raises(BadConfig, match="Give --task-runner dask or ray"), fanned("threads", "tcp://x", 1):
        pass
