"""What may happen to a run besides being killed: each is caused, the run ends as it should, goes on, and is compared with an undisturbed one."""

import contextlib
import dataclasses
import errno
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

from pipeline.layout import RunLayout
from pipeline.receipts import partials
from tests.faults.harness import Attempt, Fault, Scene, attempt, differences, on_change
from tests.faults.kills import Play
from tests.pipeline.store_server import leads_to


def disk_full_somewhere(play: Play, folder: Path) -> list[str]:
    """A disk that is full at each quarter of the changes that a run makes, by an error put in at that point and ever after."""
    return _each_quarter(play, folder, errno.ENOSPC, "is full. Make room and run the same command again")


def permission_lost(play: Play, folder: Path) -> list[str]:
    """A run folder that may not be written any more, from each quarter of the changes on."""
    return _each_quarter(play, folder, errno.EACCES, "Let this user read and write it")


def disk_full(play: Play, folder: Path) -> list[str]:
    """A real file system (tmpfs, so only as root) with room for a part of the run, which is given more afterwards."""
    if os.geteuid() != 0:
        return ["skipped: mounting a small file system needs root"]
    disk = folder / "disk"
    disk.mkdir()
    whole = sum(path.stat().st_size for path in play.scene.run.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={whole // 8}", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return ["skipped: no tmpfs can be mounted here"]
    wrong: list[str] = []
    try:
        scene = play.scene.in_folder(disk / "run")
        for eighths in range(1, 40):
            subprocess.run(["mount", "-o", f"remount,size={whole // 8 * eighths}", str(disk)], check=True)
            one = attempt(scene)
            if one.code == 0:
                return wrong + differences(scene.run, play.wanted)
            wrong += _ended_so(one, 1, "is full. Make room and run the same command again")
        return [*wrong, "five times the room was not enough"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def worker_killed(play: Play, folder: Path, out: Callable[[RunLayout], Path]) -> list[str]:
    """A worker process is killed once, while it writes a file of the output `out`: its part is done again, and the run ends well by itself."""
    scene = _with_workers(play, folder)
    one = attempt(scene, partial(_kill_a_writer, out=out))
    return _ended_so(one, 0, "Its part is done again") + differences(scene.run, play.wanted)


def caller_killed(play: Play, folder: Path) -> list[str]:
    """The process is killed while its workers work, and started again at once: no worker of the dead one writes beside it."""
    scene = _with_workers(play, folder)
    noted = scene.log.with_suffix(".worker")

    def kill_all(worker: int) -> None:
        noted.write_text(str(worker))
        os.kill(os.getpid(), signal.SIGKILL)

    wrong = _ended_so(attempt(scene, lambda _: _when_workers_work(kill_all)), -signal.SIGKILL, "")
    wrong += _ended_so(attempt(scene), 0, "") + differences(scene.run, play.wanted)
    return wrong + ([f"worker {noted.read_text()} outlives its caller"] if _lives(int(noted.read_text())) else [])


def machine_lost(play: Play, folder: Path) -> list[str]:
    """Machines die one after another, each with its disk, and each time another goes on from the copy in a store."""
    with _store() as url:
        if url is None:
            return ["skipped: there is no moto, or no s3fs"]
        chance, wrong = random.Random(0), list[str]()
        scene = dataclasses.replace(play.begin(folder / "run"), mirror=url)
        for _ in range(6):
            one = attempt(
                scene, partial(on_change, number=chance.randint(10, play.changes), act=lambda: os.kill(os.getpid(), signal.SIGKILL))
            )
            wrong += [] if one.code == -signal.SIGKILL else _ended_so(one, 0, "")
            shutil.rmtree(scene.run)
        last = attempt(scene)
        wrong += _ended_so(last, 0, "TAKEN ") + differences(scene.run, play.wanted)
        return wrong + (["nothing was taken from the copy"] if "TAKEN 0\n" in last.said else [])


TROUBLES: dict[str, Callable[[Play, Path], list[str]]] = {
    "disk full, at four points": disk_full_somewhere,
    "disk full, a real one": disk_full,
    "permission lost, at four points": permission_lost,
    "a worker is killed in ingest": partial(worker_killed, out=lambda run: run.raw),
    "a worker is killed in embed": partial(worker_killed, out=lambda run: run.round(1).embeddings),
    "a worker is killed in isolate": partial(worker_killed, out=lambda run: run.round(1).noise),
    "a worker is killed in export": partial(worker_killed, out=lambda run: run.clean),
    "the caller of workers is killed": caller_killed,
    "machines are lost": machine_lost,
}
"""Name -> cause it and compare: what is wrong, empty when nothing is; `skipped: why` where it cannot be caused."""


def _each_quarter(play: Play, folder: Path, number: int, message: str) -> list[str]:
    wrong: list[str] = []
    for quarter in range(4):
        scene = play.begin(folder / f"{number}-{quarter}")
        at = max(8, play.changes * quarter // 4)  # after the folder is claimed
        wrong += _ended_so(attempt(scene, _failing(at, number)), 1, message)
        wrong += _ended_so(attempt(scene), 0, "") + differences(scene.run, play.wanted)
    return wrong


def _failing(at: int, number: int) -> Fault:
    def fail() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return lambda scene: on_change(scene, at, fail, ever_after=True)


def _ended_so(one: Attempt, code: int, message: str) -> list[str]:
    if one.code == code and message in one.said:
        return []
    return [f"in {one.stage}: exit code {one.code}, wanted {code} and {message!r}; said:\n{one.said[-3000:]}"]


def _with_workers(play: Play, folder: Path) -> Scene:
    return dataclasses.replace(play.begin(folder / "run"), config=dataclasses.replace(play.scene.config, workers=2))


def _when_workers_work(act: Callable[[int], Any]) -> None:
    threading.Thread(target=partial(_watch, act), daemon=True).start()


def _kill_a_writer(scene: Scene, out: Callable[[RunLayout], Path]) -> None:
    threading.Thread(target=_watch_for_writers, args=(out(RunLayout(scene.run)),), daemon=True).start()


def _watch_for_writers(out: Path) -> None:
    """Kill the first worker that has half a file where `out` is made."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # what was just listed has its name by now
            for half in (half for partial in partials(out) for half in partial.rglob(".*.tmp")):
                worker = int(half.name.split(".")[-2])
                if worker != os.getpid():
                    os.kill(worker, signal.SIGKILL)
                    return
        time.sleep(0.0005)


def _watch(act: Callable[[int], Any]) -> None:
    """Call `act` with a worker's process once, as soon as one has a part."""
    while True:
        server = forkserver._forkserver._forkserver_pid
        for worker in _children(server) if server else []:
            time.sleep(0.1)
            act(worker)
            return
        time.sleep(0.001)


def _children(parent: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


@contextlib.contextmanager
def _store() -> Iterator[str | None]:
    """The URL of an empty prefix on an S3 server in a process of its own, since this one forks; None where there is none."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        yield None
        return
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer  # noqa: F401 - its requirements are there, too

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = dict(os.environ)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=before
    )
    try:
        os.environ.update(leads_to(f"http://127.0.0.1:{port}"))
        boto3.client("s3", config=Config(retries={"max_attempts": 30, "mode": "standard"})).create_bucket(Bucket="runs")
        yield "s3://runs/faults"
    finally:
        server.kill()
        server.wait()
        os.environ.clear()
        os.environ.update(before)


def _lives(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
