"""A stage's output is complete, proven by its receipt, or it is not there.

A stage writes into `.<name>.partial-<fingerprint>`, puts `_receipt.json` in it and renames the folder. A killed stage leaves the
partial folder; the same stage with the same fingerprint goes on in it, any other removes it. Every file is flushed to the disk before it gets
its name, and the receipt after all others: what has a name has its content, even when the power fails.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import NoSpace, NotWritable, PurifyError

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Counts = dict[str, int | float | str | bool | None]
NAME = "_receipt.json"


@dataclass(frozen=True)
class Receipt:
    """Proof that an output is complete, and of what it was made."""

    stage: str
    fingerprint: str
    counts: Counts
    seconds: float
    reused: bool = False
    """True when the stage was skipped because this receipt already stood."""


@dataclass(frozen=True)
class Step:
    """What a run would do about one output."""

    mark: str
    """The fingerprint that it would have."""
    state: Literal["stands", "changed", "begun", "missing"]
    """`changed`: it stands, and was made of something else; `begun`: a stage that was stopped would be gone on with."""
    redone: tuple[Path, ...]
    """Of its inputs, those that would be made before it."""


@dataclass
class Plan:
    """What stages say, while `planning`, that they would do; by output, in order."""

    steps: dict[Path, Step] = field(default_factory=dict)
    _asked: list[Path] = field(default_factory=list)

    def asked_of(self, folder: Path) -> bool:
        """Notes that a stage asks for this input's mark; True when a stage before it has said what it would be."""
        self._asked.append(folder)
        return folder in self.steps

    def note(self, out: Path, mark: str, standing: Receipt | None) -> None:
        """A stage would make `out` with this mark, of the inputs that were asked for since the stage before."""
        redone = tuple(path for path in dict.fromkeys(self._asked) if path in self.steps and self.steps[path].state != "stands")
        self._asked.clear()
        if standing is not None:
            self.steps[out] = Step(mark, "stands" if standing.fingerprint == mark else "changed", redone)
        else:
            self.steps[out] = Step(mark, "begun" if _partial(out, mark).is_dir() else "missing", redone)


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def planning() -> Iterator[Plan]:
    """Within it `run_stage` does no work and writes nothing, but notes in the plan what it would do; the mark of an output is what it would be."""
    plan = Plan()
    token = _plan.set(plan)
    try:
        yield plan
    finally:
        _plan.reset(token)


def fingerprint(stage: str, version: int, settings: Mapping[str, Any], **inputs: str) -> str:
    """Hex digest of all that an output depends on: stage, its version, its settings, and the fingerprints of its inputs."""
    text = json.dumps([stage, version, settings, inputs], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> Receipt | None:
    """The receipt of a folder; None when there is none or it is damaged, which means that the stage has to be done."""
    try:
        return Receipt(**json.loads((folder / NAME).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def mark_of(folder: Path) -> str:
    """The fingerprint of a finished output. Raises PurifyError when the folder is not finished."""
    plan = _plan.get()
    if plan is not None and plan.asked_of(folder):
        return plan.steps[folder].mark
    receipt = read(folder)
    if receipt is None:
        raise PurifyError(f"{folder} is not finished. Run the same command again: it goes on where it stopped.")
    return receipt.fingerprint


def run_stage(out: Path, *, stage: str, mark: str, work: Callable[[Path], Counts]) -> Receipt:
    """The receipt of `out`, after `work(partial folder)` has filled it; `work` is skipped when a matching receipt stands.

    Raises NoSpace when the disk is full, NotWritable when it may not be written. What was finished before stays in the partial folder for the
    next attempt.
    """
    standing = read(out)
    plan = _plan.get()
    if plan is not None:
        plan.note(out, mark, standing)
    if standing is not None and standing.fingerprint == mark:
        return Receipt(**{**asdict(standing), "reused": True})
    if plan is not None:
        return Receipt(stage, mark, {}, 0.0)
    with disk_watched(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(out, mark)
        for other in (*partials(out), _old(out)):
            if other != partial and other.is_dir():
                remove(other)
        partial.mkdir(exist_ok=True)
        receipt = read(partial)  # killed between the receipt and the rename
        if receipt is None or receipt.fingerprint != mark:
            receipt = _fill(partial, stage, mark, work)
        if out.exists():
            old = _old(out)
            out.rename(old)
            partial.rename(out)
            flush([out.parent])
            remove(old)
        else:
            partial.rename(out)
            flush([out.parent])
    return receipt


def _fill(partial: Path, stage: str, mark: str, work: Callable[[Path], Counts]) -> Receipt:
    _clear(partial)  # of a stage that was killed
    started = time.perf_counter()
    try:
        counts = work(partial)
    finally:
        _clear(partial)  # of workers that were killed, or end with the stage wherever they are
    flush([partial, *partial.rglob("*")])
    receipt = Receipt(stage, mark, counts, round(time.perf_counter() - started, 3))
    write_json(partial / NAME, {key: value for key, value in asdict(receipt).items() if key != "reused"})
    flush([partial])
    return receipt


def _clear(partial: Path) -> None:
    """Remove files that are half written."""
    for leftover in partial.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _partial(out: Path, mark: str) -> Path:
    return out.parent / f".{out.name}.partial-{mark[:16]}"


def partials(out: Path) -> list[Path]:
    """The folders in which an output of this name was begun and not finished."""
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.partial-*"))


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def remove(folder: Path) -> None:
    """Remove a folder, its receipt first: killed half way, it is not finished any more."""
    (folder / NAME).unlink(missing_ok=True)
    flush([folder])
    shutil.rmtree(folder)


def settle(parent: Path) -> None:
    """End the swaps of two outputs in `parent` whose process was killed: what had been moved away stands again, or is removed if the new one stands."""
    for old in parent.glob(".*.old"):
        out = parent / old.name.removeprefix(".").removesuffix(".old")
        if out.exists():
            remove(old)
        else:
            old.rename(out)


def flush(paths: Iterable[Path]) -> None:
    """Bring files and folders to the disk (fsync); several at a time, which costs a journal a tenth of one after another."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_flush_one, paths))


def _flush_one(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed and renamed onto it when the block ends well, and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush_one(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """`target` as a second name of the finished file `source`, or as a copy where the disk has no links. Nothing is done when it is there."""
    if target.exists():
        return
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)  # our files are never written to, only replaced
        except OSError:
            shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def disk_watched(out: Path) -> Iterator[None]:
    """Turns errors of the disk that `out` is on into NoSpace and NotWritable, which tell the next step."""
    try:
        yield
    except PurifyError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        # DuckDB and safetensors tell it in words only
        if number in _FULL or "No space left on device" in str(error):
            raise NoSpace(
                f"The disk of {out.parent} is full. Make room and run the same command again: finished parts are kept."
            ) from error
        if number in _FORBIDDEN:
            what = getattr(error, "filename", None) or out.parent
            raise NotWritable(
                f"{what}: {os.strerror(number)}. Let this user read and write it, and run the same command again: finished parts are kept."
            ) from error
        raise


def require_space(folder: Path, wanted: int) -> None:
    """Raise NoSpace when the disk of `folder` has less than `wanted` bytes free, before any work is done."""
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise NoSpace(f"{folder} needs about {_in_words(wanted)}, and {_in_words(free)} are free. Make room or give another run folder.")


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
