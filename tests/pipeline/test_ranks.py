"""A training over two processes (gloo): the losses of one process, what happens when a process dies, and that none outlives the stage."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import distributed as dist

from pipeline.config import Config, as_dict, load
from pipeline.errors import BadCheckpoint, BadConfig, TrainingFailed
from pipeline.fit import Job, fit
from pipeline.follow import follow
from pipeline.ingest import ingest
from pipeline.ranks import _what_went_wrong, job_file, main
from pipeline.receipts import write_json
from pipeline.train import _select, train

SMALL = ["train.epochs=2", "train.input_px=16", "train.embedding_dim=16", "train.batch_size=16", "train.checkpoint_steps=2"]


def config(*changed: str) -> Config:
    return load(preset="demo", overrides=[*SMALL, "device=cpu", "workers=1", "ingest.samples_per_shard=20", *changed])


@pytest.fixture(scope="module")
def raw(tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "raw"
    ingest(tiny_crawl[0], folder, config())
    return folder


def losses(folder: Path) -> list[float]:
    values: list[float] = pq.read_table(folder / "metrics.parquet")["loss"].to_pylist()
    return values


def processes_of(folder: Path) -> list[int]:
    """Ids of the running processes that were started for a training below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pipeline.ranks" in words and any(word.startswith(os.fsencode(folder)) for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("margin", ["arcface", "adaface"])
def test_a_process_is_killed_and_one_alone_ends_with_the_losses_of_one(raw: Path, tmp_path: Path, margin: str) -> None:
    """The head is spread over two processes and draws its identities, pictures are augmented; then the training goes on with one process.

    The rate is low, and no angle is filtered: where rounding moves a sample from one sub-center to another, or over a threshold, losses differ by more.
    """
    # What AdaFace remembers goes from two processes to the one.
    options = [f"train.margin={margin}", "train.sample_rate=0.6", "train.augment=['crop','occlusion']", "train.learning_rate=0.01"]
    train(raw, tmp_path / "one", config("train.processes=1", *options))
    told = []

    def progress(done: int, _: int) -> None:
        told.append(done)
        if done >= 6:  # early: what is told of was done a while ago
            workers = [pid for pid in processes_of(tmp_path) if "torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(workers[0], signal.SIGKILL)

    with pytest.raises(TrainingFailed, match=r"Process \d of the training ended with code -9.*goes on from the last checkpoint"):
        train(raw, tmp_path / "two", config("train.processes=2", *options), progress=progress)
    assert not processes_of(tmp_path)
    told.clear()
    receipt = train(raw, tmp_path / "two", config("train.processes=1", *options), progress=lambda done, _: told.append(done))
    alone, shared = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert told[0] > 4 and receipt.counts["steps"] == len(alone) == told[-1]
    assert shared == pytest.approx(alone, rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())


_STAGE = """
import sys
from pathlib import Path
from pipeline.train import train
from tests.pipeline.test_ranks import config
train(Path(sys.argv[1]), Path(sys.argv[2]), config("train.processes=2", "train.epochs=1000"), progress=lambda done, _: print(done, flush=True))
"""


def test_no_process_outlives_a_stage_that_was_killed(raw: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _STAGE, str(raw), str(tmp_path / "t")], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        stage.stdout.readline()
        assert len(processes_of(tmp_path)) == 3
        stage.kill()
    until = time.monotonic() + 60
    while processes_of(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes_of(tmp_path)


def test_what_a_process_refuses_is_raised_by_the_stage(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process, played by this one, leaves its error beside the job; the stage raises it."""
    job = Job(raw, tmp_path, config("train.init=nowhere.pt"), 3)
    _select(raw, None, None, tmp_path, job.selection, job.config)
    told = {"raw": str(raw), "folder": str(tmp_path), "config": as_dict(job.config), "subcenters": 3}
    write_json(job_file(tmp_path), told)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.ranks._end_with_the_stage", lambda: None)
    try:
        with pytest.raises(SystemExit):
            main(job_file(tmp_path))
    finally:
        dist.destroy_process_group()
    raised = _what_went_wrong(job, tmp_path / "ranks.log")
    assert isinstance(raised, BadCheckpoint) and "There are no weights at nowhere.pt" in str(raised)
    with pytest.raises(BadConfig, match="A batch of 15 samples cannot be shared by 2 processes"):
        fit(Job(raw, tmp_path, config("train.batch_size=15"), 3), torch.device("cpu"), ranks=2)


def test_two_machines(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launchers that find each other by torchrun's variables, as on two machines; the second follows the run of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "pipeline.follow", str(tmp_path)]
    told: list[int] = []
    with subprocess.Popen(command, env=os.environ | {"PET_NODE_RANK": "1"}) as follower:
        monkeypatch.setenv("PET_NODE_RANK", "0")
        options = config("rounds=1", "train.epochs=1", "train.learning_rate=0.01")
        train(raw, tmp_path / "rounds" / "1" / "train", options, progress=lambda done, _: told.append(done))
        assert follower.wait(60) == 0
    assert told and not processes_of(tmp_path)
    monkeypatch.delenv("PET_NNODES")
    train(raw, tmp_path / "one", options)
    assert losses(tmp_path / "rounds" / "1" / "train") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    with pytest.raises(BadConfig, match="PET_NNODES says how many machines"):
        follow(tmp_path)
