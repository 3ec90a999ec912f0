"""What a model says of many crops, part by part on all cores, and the same to the bit on any number of them.

How a convolution or a product is split over threads can change how its sums are rounded. So a part is computed by one thread, and threads have
different parts.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from torch import Tensor

_PIXELS_AT_A_TIME = 200_000
"""16 crops of 112 pixels. More at a time leave the processor's cache: of a MobileFaceNet by onnxruntime 256 took a quarter longer, and 1.2 GB more."""


def by_parts(run: Callable[[Tensor], Tensor], images_BCHW: Tensor, size: int | None = None) -> Tensor:
    """`run(images)` [B, D], of parts of `size` crops, by default as many as fit a processor's cache, and joined. B is at least 1.

    `run` is called in several threads at once, in which torch has no threads of its own.
    """
    parts = torch.split(images_BCHW, size or max(1, _PIXELS_AT_A_TIME // images_BCHW[0, 0].numel()))
    with _threads(min(len(parts), torch.get_num_threads())) as pool:
        return torch.cat(list(pool.map(run, parts)))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[Executor]:
    """Threads that compute alone. Setting torch's number of threads sets it for the caller and for threads to come: it is set back when all have begun."""
    before = torch.get_num_threads()
    begun = threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        begun.wait()

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(begin)
        begun.wait()
        torch.set_num_threads(before)
        yield pool
