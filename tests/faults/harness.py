"""The stages in a forked process that something happens to, and what is left of the run folder afterwards.

The recipe is that of flows/purify.py with each Prefect task replaced by its function, so that an attempt costs what the stages cost and not
the start of a server. The parent imports everything and computes nothing: then a fork is safe, and takes milliseconds.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch._dynamo  # an optimizer imports it, in seconds: once here instead of in every child

from flows import progress, tasks
from pipeline import gather, isolate
from pipeline.config import Config, load
from pipeline.layout import RunLayout
from pipeline.mirroring.pull import begin
from pipeline.mirroring.push import kept
from pipeline.run_folder import claimed, write_record

recipe = importlib.import_module("flows.purify")  # `flows.purify.purify` is the flow
SETTINGS = (
    "train.epochs=4 train.input_px=32 train.embedding_dim=32 train.batch_size=16 train.learning_rate=0.05 train.checkpoint_steps=2 workers=1 "
    "isolate.judge_anyway=true isolate.rule=angle isolate.max_angle_deg=180 evaluate.holdout=0.2 evaluate.pairs=20 evaluate.folds=2 "
    "audit.identities=2 audit.inversion_steps=2 ingest.samples_per_shard=20 export.samples_per_shard=15"
).split()
_WRITES = os.O_WRONLY | os.O_RDWR
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def settings(*changed: str) -> Config:
    """Settings under which the whole pipeline takes seconds."""
    return load(preset="demo", overrides=[*SETTINGS, *changed])


@dataclass(frozen=True)
class Scene:
    """What is purified, where, and where the log of the attempts goes (outside of the run folder)."""

    crawl: Path
    run: Path
    log: Path
    config: Config
    mirror: str | None = None
    """Where a copy of the run folder is kept."""

    def in_folder(self, run: Path) -> "Scene":
        """The same with another run folder."""
        return dataclasses.replace(self, run=run)


@dataclass(frozen=True)
class Attempt:
    """How one process ended: its exit code, or minus the signal that killed it; the stage it was in; all it said."""

    code: int
    stage: str
    said: str
    seconds: float


Fault = Callable[[Scene], None]
"""Called in the child before the stages start; it arranges for something to happen."""


def attempt(scene: Scene, fault: Fault | None = None, *, kill_after_s: float | None = None) -> Attempt:
    """Run all stages in a child process, which `fault` may disturb, and which is killed after a time when one is given."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _be_the_child(scene, fault)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if kill_after_s is not None and time.perf_counter() - started > kill_after_s:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    said = scene.log.read_text("utf-8", "replace")
    stage = said.rpartition("STAGE ")[2].partition("\n")[0] if "STAGE " in said else "start"
    return Attempt(os.waitstatus_to_exitcode(status), stage, said, time.perf_counter() - started)


def _be_the_child(scene: Scene, fault: Fault | None) -> None:
    code = 1
    try:
        file = os.open(scene.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        without_prefect()
        fits_remembered(scene.log.parent / "fits")
        if fault is not None:
            fault(scene)
        purify(scene)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def without_prefect() -> None:
    """Replace the tasks by their functions, and say which stage is entered."""
    for name, value in list(vars(tasks).items()):
        if hasattr(value, "fn"):
            setattr(tasks, name, value.fn)
    inner = tasks._run

    def told(name: str, *inputs: Any, **options: Any) -> Any:
        os.write(1, f"STAGE {name.replace(',', '')}\n".encode())
        return inner(name, *inputs, **options)

    tasks._run = told
    progress._PREFECT_EVERY_S = float("inf")


def fits_remembered(folder: Path) -> None:
    """Take the fits of the judge, four fifths of the time, from an earlier attempt with the same numbers. They touch no file."""
    folder.mkdir(exist_ok=True)
    for module, name in ((gather, "fit_calibration"), (isolate, "fit_calibration"), (isolate, "fit_fusion")):
        setattr(module, name, _remembered(getattr(module, name), folder))


def _remembered(fit: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    def found(*numbers: Any, **more: Any) -> Any:
        path = folder / f"{fit.__name__}-{hashlib.sha256(_bytes_of((numbers, more))).hexdigest()[:32]}"
        if path.exists():
            return pickle.loads(path.read_bytes())
        result = fit(*numbers, **more)
        beside = path.with_suffix(".new")
        beside.write_bytes(pickle.dumps(result))
        beside.replace(path)
        return result

    return found


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    if dataclasses.is_dataclass(value):
        return b"".join(_bytes_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return _bytes_of(tuple(value.items()))
    return b"".join(map(_bytes_of, value)) if isinstance(value, tuple) else repr(value).encode()


def purify(scene: Scene) -> None:
    """What the flow does."""
    layout = RunLayout(scene.run)
    if scene.mirror is not None:
        os.write(1, f"TAKEN {begin(scene.run, scene.mirror)}\n".encode())
    with claimed(scene.crawl, layout), kept(scene.run, scene.mirror, progress.say, every_s=0.05), progress.told_in(scene.run):
        write_record(scene.crawl, layout, scene.config, recipe._stages(scene.crawl, layout, scene.config), 0.0)


def on_change(scene: Scene, number: int, act: Callable[[], None], *, ever_after: bool = False) -> None:
    """Call `act` before the `number`-th change (opening to write, rename, removal, new folder) in the run folder, and after it if wanted."""
    inside, seen = str(scene.run), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _CHANGES and not (event == "open" and isinstance(args[2], int) and args[2] & _WRITES):
            return
        if not any(isinstance(arg, str | os.PathLike) and os.fspath(arg).startswith(inside) for arg in args[:2]):
            return
        seen += 1
        if seen == number or (ever_after and seen > number):
            act()

    sys.addaudithook(hook)


def changes_of(scene: Scene) -> tuple[int, Attempt]:
    """How many changes an undisturbed run makes, and how it went."""
    counted = scene.log.with_suffix(".changes")

    def count(scene: Scene) -> None:
        on_change(scene, 1, lambda: os.close(os.open(counted, os.O_WRONLY | os.O_CREAT)) or _grow(counted), ever_after=True)

    done = attempt(scene, count)
    return counted.stat().st_size, done


def _grow(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(file, b".")
    os.close(file)


def all_is_flushed(scene: Scene) -> None:
    """From here on, `cut_power` takes nothing of what now stands in the run folder."""
    stands = (path.stat() for path in scene.run.rglob("*") if path.is_file())
    scene.log.with_suffix(".flushed").write_text("".join(f"{one.st_ino} {one.st_mtime_ns}\n" for one in stands))


def watch_flushes(scene: Scene) -> None:
    """Note each file that is brought to the disk (inode and time of its content), for `cut_power`."""
    real = os.fsync
    noted = os.open(scene.log.with_suffix(".flushed"), os.O_WRONLY | os.O_APPEND)

    def fsync(number: int) -> None:
        real(number)
        facts = os.fstat(number)
        os.write(noted, f"{facts.st_ino} {facts.st_mtime_ns}\n".encode())

    os.fsync = fsync


def cut_power(scene: Scene, chance: random.Random) -> int:
    """Truncate every file of the run whose content was not brought to the disk; returns how many lost something.

    Names survive in order, as with a journal of metadata (ext4, xfs): so the folder is as it was when the process was killed.
    """
    flushed = set(scene.log.with_suffix(".flushed").read_text().splitlines())
    lost = 0
    for path in sorted(scene.run.rglob("*")):
        facts = path.lstat()
        if path.is_file() and facts.st_size and f"{facts.st_ino} {facts.st_mtime_ns}" not in flushed:
            os.truncate(path, chance.choice([0, facts.st_size // 2, facts.st_size - 1]))
            lost += 1
    return lost


def contents(run: Path) -> dict[str, str]:
    """Every file and folder of a run with the SHA-256 of its bytes; seconds and rates, and the number of workers, are left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "_receipt.json" or name == "run.json" or name.startswith("history/"):
            found[name] = json.dumps(_timeless(json.loads(path.read_text("utf-8"))), sort_keys=True)
        elif name.endswith("train/metrics.parquet"):
            found[name] = str(pq.read_table(path).drop_columns(["images_per_s", "wait_share"]).to_pydict())
        elif name != ".lock" and not name.startswith(".mirror."):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(one) for key, one in value.items() if key not in {"seconds", "per_second", "reused", "workers", "finished_at"}
        }
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def differences(run: Path, wanted: dict[str, str]) -> list[str]:
    """What differs from the contents of an undisturbed run, in words; empty when nothing does."""
    found = contents(run)
    return [
        f"{name}: {'is missing' if name not in found else 'is too much' if name not in wanted else 'differs'}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
