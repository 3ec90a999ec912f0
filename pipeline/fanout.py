"""Parts of a stage over local processes. Results come back in the order of the parts, whatever order they finish in.

A part writes its files whole or not at all, and the same files however often it is done. So a worker may die at any point: its part is
done again, by fewer workers, since what kills workers is memory.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import WorkerLost
from pipeline.receipts import Progress

P = TypeVar("P")
R = TypeVar("R")
_log = logging.getLogger("purify.fanout")


_STARTS = 2
"""How often it is tried to start workers of which none comes so far as to wait for parts: one killed by chance is not one that never will."""
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Called with (part, parts): the results in the order of the parts."""
_mapper: ContextVar[Mapper | None] = ContextVar("mapper", default=None)


@contextlib.contextmanager
def mapped_by(mapper: Mapper) -> Iterator[None]:
    """While it lasts, `fan_out` leaves the parts to `mapper`: a cluster that the caller knows and no stage does."""
    before = _mapper.set(mapper)
    try:
        yield
    finally:
        _mapper.reset(before)


def worker_count(workers: int) -> int:
    """Processes to use: `workers`, or one per usable core when it is 0."""
    return workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or os.cpu_count() or 1


def prepare(modules: Sequence[str], *, workers: int) -> None:
    """Start the process that workers are forked from, with `modules` imported in it once for all of them and all stages. Does not wait for it.

    A worker is there in some 0.1 s then; to import torch and Arrow in each takes seconds of a core. Nothing is done for one worker, or when that process runs.
    """
    if worker_count(workers) == 1:
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    before = os.environ.get("OMP_NUM_THREADS")  # libraries read it when they are loaded
    os.environ["OMP_NUM_THREADS"] = before or _threads(worker_count(workers))
    resource_tracker.ensure_running()  # by which a thread ends with nothing blocked
    # Ctrl-C goes to all processes of a terminal. The caller stops, and these with it: what a thread has blocked its child has, and theirs.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def fan_out(part: Callable[[P], R], parts: Sequence[P], *, workers: int, progress: Progress | None = None) -> list[R]:
    """`[part(p) for p in parts]` over processes, or over what `mapped_by` was given. `part` is a top-level function: it is sent by name.

    Raises WorkerLost when processes die even one at a time, or none can start.
    """
    return list(each_of(part, parts, workers=workers, progress=progress))


def each_of(part: Callable[[P], R], parts: Sequence[P], *, workers: int, progress: Progress | None = None) -> Iterator[R]:
    """The results of `fan_out` one after another, for who folds them and holds none."""
    count = min(worker_count(workers), len(parts))
    mapper = _mapper.get()
    results = mapper(part, parts) if mapper else map(part, parts) if count <= 1 else _over_processes(part, parts, count)
    for done, result in enumerate(results, start=1):
        yield result
        if progress:
            progress(done, len(parts))


@contextlib.contextmanager
def workers_kept(workers: int) -> Iterator[None]:
    """While it lasts, the processes of one `fan_out` do the next one too."""
    with contextlib.ExitStack() as stack:
        token = _kept.set(_Processes(worker_count(workers), stack))
        try:
            yield
        finally:
            _kept.reset(token)


@dataclass
class _Processes:
    """Worker processes, started when they are first wanted; they end with `stack`."""

    count: int
    stack: contextlib.ExitStack
    pool: ProcessPoolExecutor | None = None
    large: str = ""
    """Where results are left that are too large to be sent at once."""
    started: tuple[Connection, Connection] = field(default_factory=lambda: multiprocessing.get_context("forkserver").Pipe(duplex=False))
    """A pipe, into which a worker writes when it has come as far as to wait for parts. No lock, with which one could be killed."""

    def map(self, part: Callable[[P], R], parts: Sequence[P]) -> Iterator[R]:
        if self.pool is None:
            prepare([name for name in [getattr(part, "__module__", "__main__")] if name != "__main__"], workers=self.count)
            self.large = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="purify-"))
            self.pool = self.stack.enter_context(_pool(self.count, self.started[1]))
        try:
            return map(_received, self.pool.map(partial(_sent, part, self.large), parts))
        except (EOFError, ConnectionError) as error:  # of a process that was killed while it was started
            raise BrokenProcessPool(str(error)) from error

    def begin_anew(self, count: int) -> None:
        self.stack.close()
        self.pool = None
        self.count = count


_kept: ContextVar[_Processes | None] = ContextVar("kept", default=None)


def _over_processes(part: Callable[[P], R], parts: Sequence[P], count: int) -> Iterator[R]:
    done = starts = 0
    with contextlib.ExitStack() as stack:
        processes = _kept.get() or _Processes(count, stack)
        while done < len(parts):
            try:
                for result in processes.map(part, parts[done:]):
                    done += 1
                    yield result
            except BrokenProcessPool as error:
                starts += 1
                if not processes.started[0].poll():
                    if starts < _STARTS:
                        processes.begin_anew(processes.count)
                        continue
                    raise WorkerLost(
                        'No worker process could start. If a script of yours called this, put the call under `if __name__ == "__main__":`, since each '
                        "worker reads the script too; or let one process do it (workers=1). Otherwise what is printed above tells why."
                    ) from error
                if processes.count == 1:
                    raise WorkerLost(
                        "A worker process was killed, also when it worked alone. Most often the memory was full (see `dmesg`): give the machine more, "
                        "or smaller shards (--set ingest.samples_per_shard=2000). The same command goes on where it stopped."
                    ) from error
                processes.begin_anew(processes.count // 2)
                _log.warning("A worker process was killed. Its part is done again, now with %d at a time.", processes.count)


@contextlib.contextmanager
def _pool(count: int, started: Connection) -> Iterator[ProcessPoolExecutor]:
    # Not fork: torch and Arrow hold threads and locks in this process.
    context = multiprocessing.get_context("forkserver")
    watched, held = context.Pipe(duplex=False)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or _threads(count)}
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(environment, watched, started)) as pool:
        # All workers are started before the executor's thread that watches them: one that is started while that ends the others, for the death of
        # one, is left out, and waited for, for ever.
        pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
        try:
            yield pool
        except BaseException:  # also a signal: what is half done is discarded, not waited for
            held.close()
            raise
    held.close()
    watched.close()


def _sent(part: Callable[[P], R], large: str, one: P) -> bytes | Path:
    """The result, in so few bytes that they are written at once or not at all; or the file that holds it.

    All workers write to one pipe. Of a worker that was killed half way through a result the rest would be waited for, for ever.
    """
    result = pickle.dumps(part(one), pickle.HIGHEST_PROTOCOL)
    if len(result) <= select.PIPE_BUF // 2:  # what the executor adds is a few hundred
        return result
    path = Path(large, uuid.uuid4().hex)
    path.write_bytes(result)
    return path


def _received(sent: bytes | Path) -> Any:
    result = sent if isinstance(sent, bytes) else sent.read_bytes()
    if isinstance(sent, Path):
        sent.unlink()
    return pickle.loads(result)  # noqa: S301, what a worker of ours has just made


def _threads(count: int) -> str:
    """The share of the cores of one of `count` workers."""
    return str(max(1, worker_count(0) // count))


def _start(environment: dict[str, str], watched: Connection, started: Connection) -> None:
    """The caller's environment, credentials of stores among it: that of the fork server is as old as its first use. And an end with the caller.

    OMP_NUM_THREADS, a worker's share of the cores, is read when torch is loaded; where the fork server has done that already, torch is told.
    """
    os.environ.clear()
    os.environ.update(environment)
    if torch := sys.modules.get("torch"):
        asked = environment["OMP_NUM_THREADS"].split(",")[0]  # further numbers are for threads within threads
        torch.set_num_threads(int(asked) if asked.isdecimal() and int(asked) else 1)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    started.send_bytes(b"")


def _end_with(caller: Connection) -> None:
    """Nothing is ever sent: the pipe ends when the caller does, or gives up. A worker that outlived a killed caller would write beside its heir."""
    caller.poll(None)
    os._exit(1)
