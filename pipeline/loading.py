"""Decoded batches for training, read at their offsets out of the raw shards: in bounded memory, from any step on, for any process of a training.

Two ways, of the same batches. Threads, where decoded pixels of the whole selection may be kept (they fit in `cache_bytes`) or where the processor trains
and decodes anyway. Worker processes (torch's DataLoader), where shards are streamed to a GPU: many decoding threads would take the interpreter from the loop.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.order import Rows, SampleOrder
from pipeline.shards import CropReader, decode_crop

_THREADS = 4
_OPEN_SHARDS = 256
_AHEAD = 4
Batch = tuple[Tensor, Tensor]
"""uint8 [B, 3, H, W] and class indices int64 [B]."""


class CropStream:
    """The batches of one process of a training: of each global batch the rows `rank`, `rank + ranks`, `rank + 2 * ranks`, ...

    Raises ValueError when the global batch cannot be divided by `ranks`.
    """

    def __init__(self, order: SampleOrder, raw: Path, *, input_px: int, cache_bytes: int, rank: int = 0, ranks: int = 1) -> None:
        if order.batch_size % ranks:
            raise ValueError(f"A batch of {order.batch_size} samples cannot be divided among {ranks} processes.")
        self._order, self._raw, self._input_px = order, raw, input_px
        self._rank, self._ranks = rank, ranks
        needed = order.samples * input_px * input_px * 3
        self.is_cached = needed <= cache_bytes
        """All decoded pixels are kept in memory, by every process."""
        self._cache = np.empty((order.samples, input_px, input_px, 3), np.uint8) if self.is_cached else None
        self._cached = np.zeros(order.samples if self.is_cached else 0, bool)

    def batches(self, epochs: int, *, done: int = 0, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
        """The batches of all epochs, without the first `done`: by threads of this process, or with `workers` by so many processes."""
        if not workers or self.is_cached:
            yield from self._threaded(epochs, done, _THREADS)
            return
        context = multiprocessing.get_context("forkserver")  # not fork: torch and Arrow hold threads and locks in this process
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            _Work(self, epochs, done),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            pin_memory=pin,
            multiprocessing_context=context,
        )
        yield from loader

    def rows(self, epochs: int, done: int) -> Iterator[Rows]:
        """What this process takes of each global batch."""
        first, skip = divmod(done, max(self._order.steps_per_epoch, 1))
        for epoch in range(first, epochs):
            for rows in islice(self._order.batches(epoch), skip if epoch == first else 0, None):
                yield rows.taken(slice(self._rank, None, self._ranks))

    def _threaded(self, epochs: int, done: int, threads: int, *, every: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """One batch ahead of who asks. `every` = (w, W): only the batches w, w + W, w + 2 W, ..."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            ahead = stack.enter_context(ThreadPoolExecutor(1))
            readers: dict[int, CropReader] = {}
            stack.callback(_close, readers)
            pending = None
            for rows in islice(self.rows(epochs, done), every[0], None, every[1]):
                coming = ahead.submit(self._load, rows, readers, pool, threads)
                if pending is not None:
                    yield pending.result()
                pending = coming
            if pending is not None:
                yield pending.result()

    def _load(self, rows: Rows, readers: dict[int, CropReader], pool: ThreadPoolExecutor, threads: int) -> Batch:
        self._open(rows, readers)
        pixels = np.empty((len(rows), self._input_px, self._input_px, 3), np.uint8)
        list(pool.map(lambda first: self._decode(rows, readers, pixels, range(first, len(rows), threads)), range(threads)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(rows.class_N)

    def _open(self, rows: Rows, readers: dict[int, CropReader]) -> None:
        """Open the shards of these rows; beyond `_OPEN_SHARDS` those of earlier batches are closed, or a large crawl would have too many open files."""
        wanted = [int(shard) for shard in np.unique(rows.shard_N)]
        idle = [shard for shard in readers if shard not in wanted]
        for shard in idle[: max(0, len(idle) + len(wanted) - max(_OPEN_SHARDS, len(wanted)))]:
            readers.pop(shard).close()
        for shard in wanted:
            if shard not in readers:
                readers[shard] = CropReader((self._raw / self._order.shard_names[shard]).with_suffix(".tar"))

    def _decode(self, rows: Rows, readers: dict[int, CropReader], pixels: NDArray[np.uint8], indices: range) -> None:
        for index in indices:
            place = rows.place_N[index]
            if self._cache is not None and self._cached[place]:
                pixels[index] = self._cache[place]
                continue
            content = readers[int(rows.shard_N[index])].read(int(rows.offset_N[index]), int(rows.size_N[index]))
            pixels[index] = decode_crop(content, self._input_px)
            if self._cache is not None:
                self._cache[place] = pixels[index]
                self._cached[place] = True


class _Work(IterableDataset[Batch]):
    """What a loader worker makes: worker w of W the batches w, w + W, ..., which DataLoader asks for in turn."""

    def __init__(self, stream: CropStream, epochs: int, done: int) -> None:
        self._stream, self._epochs, self._done = stream, epochs, done

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        every = (worker.id, worker.num_workers) if worker else (0, 1)
        return self._stream._threaded(self._epochs, self._done, 1, every=every)


def _close(readers: dict[int, CropReader]) -> None:
    for reader in readers.values():
        reader.close()
