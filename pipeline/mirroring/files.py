"""Which files of a run folder its copy has, and what tells one content of a file from another."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.errors import StaleInput

J = TypeVar("J")
R = TypeVar("R")
_AT_ONCE = 4
_PATIENCE_S = 60.0
_BLINK_S = 1.0
"""A signal wakes nobody who waits without an end, when it comes just before, or to another thread."""
_LONGEST = 255
"""Bytes of a name on a disk."""
_BEGUN = re.compile(r"\.(raw|train|embeddings)\.partial-[0-9a-f]{16}")
"""Half-made folders that are gone on with: hours are in them. Others are made anew."""
_WORK = ".work"
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.EACCES}


@dataclass(frozen=True)
class Seen:
    """A file at one moment. Files of a run are never written to, only replaced: the same length, time and inode are the same bytes, whatever its name is."""

    size: int
    mtime_ns: int
    inode: int
    is_private: bool
    """Nobody but the owner may read it."""


def is_copied(path: str) -> bool:
    """True for a path inside of a run folder that a copy has: finished files, and those of half-made folders that are gone on with."""
    parts = path.split("/")
    return not path.endswith(".log") and all(part[:1] != "." or part == _WORK or _BEGUN.fullmatch(part) for part in parts)


def is_inside(path: str) -> bool:
    """True for a relative path, as it comes from a store, that leads to a file inside of a folder."""
    parts = path.split("/")
    is_plain = path.isprintable() and "\\" not in path and all(len(part.encode()) <= _LONGEST for part in parts)
    return is_plain and path == str(PurePosixPath(path)) and path[:1] not in {"/", ""} and ".." not in parts


def seen(path: Path) -> Seen:
    """What the file is now. Raises FileNotFoundError."""
    facts = path.stat()
    return Seen(facts.st_size, facts.st_mtime_ns, facts.st_ino, not facts.st_mode & 0o077)


def look(run: Path) -> dict[str, Seen]:
    """The files of a run folder that a copy has, by path with `/`. Links are followed. What goes away meanwhile is left out."""
    found: dict[str, Seen] = {}
    folders, entered = [""], set[tuple[int, int]]()
    while folders:
        below = folders.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(run / below) as entries:
            facts = (run / below).stat()
            if (facts.st_dev, facts.st_ino) in entered:  # by a link back
                continue
            entered.add((facts.st_dev, facts.st_ino))
            for entry in entries:
                path = below + entry.name
                if not is_copied(path):
                    continue
                if entry.is_dir():
                    folders.append(f"{path}/")
                elif entry.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        found[path] = seen(run / path)
    return found


def hold(path: Path, held: Path) -> None:
    """`held` as a second name of the file, which stays when the first one is given to another; a copy where the disk has no links."""
    try:
        held.hardlink_to(path.resolve())
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(path, held)


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder with nothing in it, gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds a lock of the kernel. Raises StaleInput, with these words, when another process has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StaleInput(otherwise) from error
        yield


def several(work: Callable[[J], R], jobs: Iterable[J], over: threading.Event) -> Iterator[R]:
    """What `work` gives for each job, in their order, four at a time.

    When one fails, or this thread is stopped, `over` tells it to the others. They are daemons: a store that hangs keeps no process that was told to end.
    """
    todo = [(Future[R](), job) for job in jobs]
    left, turn = iter(todo), threading.Lock()

    def work_on() -> None:
        while not over.is_set():
            with turn:
                one = next(left, None)
            if one is None:
                return
            try:
                one[0].set_result(work(one[1]))
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                one[0].set_exception(error)

    threads = [threading.Thread(target=work_on, name=f"mirror-{number}", daemon=True) for number in range(min(_AT_ONCE, len(todo)))]
    try:
        for thread in threads:
            thread.start()
        for future, _ in todo:
            while not wait([future], _BLINK_S).done:
                pass
            yield future.result()
    except Exception:
        over.set()
        for thread in threads:
            thread.join(_PATIENCE_S)
        raise
    except BaseException:
        over.set()
        raise
