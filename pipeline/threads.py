"""How many threads a stage computes with: one, so that no sum is split in another way where other parts run beside it.

Matrix products and sums over several threads add up in an order that depends on how many there are. Processes are what cores are used by. And
the fits of the judge are thousands of operations of microseconds, which threads make slower: several times where other programs run, too.
"""

import contextlib
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import torch

_lock = threading.Lock()
_inside = 0
_before = 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, torch and faiss compute in the calling thread alone. Parts may be in it side by side, in threads of one process."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
    _set(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(_before)


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Within `one_thread`, what there was before, for a large task that runs beside no part."""
    if _inside:
        _set(_before)
    try:
        yield
    finally:
        if _inside:
            _set(1)


def _set(count: int) -> None:
    torch.set_num_threads(count)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(count)
