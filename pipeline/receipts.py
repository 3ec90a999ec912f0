"""A stage's output is complete, proven by its receipt, or it is not there.

A stage writes into `.<name>.partial-<fingerprint>`, puts `_receipt.json` in it and renames the folder. A killed stage leaves the
partial folder; the same stage with the same fingerprint goes on in it, any other removes it.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import NoSpace, PurifyError

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
    receipt = read(folder)
    if receipt is None:
        raise PurifyError(f"{folder} is not finished. Run the same command again: it goes on where it stopped.")
    return receipt.fingerprint


def run_stage(out: Path, *, stage: str, mark: str, work: Callable[[Path], Counts]) -> Receipt:
    """The receipt of `out`, after `work(partial folder)` has filled it; `work` is skipped when a matching receipt stands.

    Raises NoSpace when the disk is full. What was finished before stays in the partial folder for the next attempt.
    """
    standing = read(out)
    if standing is not None and standing.fingerprint == mark:
        return Receipt(**{**asdict(standing), "reused": True})
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{mark[:16]}"
    for other in (*out.parent.glob(f".{glob.escape(out.name)}.partial-*"), out.parent / f".{out.name}.old"):
        if other != partial and other.is_dir():
            shutil.rmtree(other)
    with _space_watched(out):
        partial.mkdir(exist_ok=True)
        started = time.perf_counter()
        counts = work(partial)
        receipt = Receipt(stage, mark, counts, round(time.perf_counter() - started, 3))
        write_json(partial / NAME, {key: value for key, value in asdict(receipt).items() if key != "reused"})
    if out.exists():
        old = out.parent / f".{out.name}.old"
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        partial.rename(out)
    return receipt


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
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
    """Write a JSON file whole or not at all, flushed to the disk."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _space_watched(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoSpace(f"The disk of {where.parent} is full. Make room and run the same command again: finished parts are kept.") from error


def require_space(folder: Path, wanted: int) -> None:
    """Raise NoSpace when the disk of `folder` has less than `wanted` bytes free, before any work is done."""
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise NoSpace(
            f"{folder} needs about {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Make room or give another run folder."
        )
