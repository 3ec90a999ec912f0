"""Parts of a stage over local processes. Results come back in the order of the parts, whatever order they finish in."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from pipeline.receipts import Progress

P = TypeVar("P")
R = TypeVar("R")


def worker_count(workers: int) -> int:
    """Processes to use: `workers`, or one per usable core when it is 0."""
    return workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or os.cpu_count() or 1


def fan_out(part: Callable[[P], R], parts: Sequence[P], *, workers: int, progress: Progress | None = None) -> list[R]:
    """`[part(p) for p in parts]` over processes. `part` is a top-level function: it is sent by name."""
    results: list[R] = []
    count = min(worker_count(workers), len(parts))
    if count <= 1:
        for number, one in enumerate(parts):
            results.append(part(one))
            if progress:
                progress(number + 1, len(parts))
        return results
    # Not fork: torch and Arrow hold threads and locks in this process.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_adopt, initargs=(dict(os.environ),)) as pool:
        for number, result in enumerate(pool.map(part, parts)):
            results.append(result)
            if progress:
                progress(number + 1, len(parts))
    return results


def _adopt(environment: dict[str, str]) -> None:
    """The caller's environment, credentials of stores among it: that of the fork server is as old as its first use."""
    os.environ.clear()
    os.environ.update(environment)
