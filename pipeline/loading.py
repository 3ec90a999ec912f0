"""Batches of crops for training: shuffled, the same for the same (seed, epoch), from any step on, in bounded memory.

The order is made of shard numbers and offsets, not of pixels: shards are shuffled, taken in windows of `shuffle_buffer` samples, and each
window is shuffled. Skipping to step n therefore decodes nothing. Decoded pixels stay in memory when all of them fit in `cache_bytes`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shards import CropReader, decode_crop

_DECODERS = 4


@dataclass(frozen=True)
class _Rows:
    shard_N: NDArray[np.int32]
    place_N: NDArray[np.int64]
    """Row in the whole selection: the slot in the cache."""
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int32]
    class_N: NDArray[np.int64]


class CropStream:
    """The samples of a selection folder (a Parquet file per raw shard: crop_offset, crop_size, class_index) as batches."""

    def __init__(
        self, selection: Path, raw: Path, *, input_px: int, batch_size: int, seed: int, shuffle_buffer: int, cache_bytes: int
    ) -> None:
        self._files = sorted(selection.glob("raw-*.parquet"))
        self._raw = raw
        self._seed = seed
        self._input_px = input_px
        self._window = shuffle_buffer
        counts = [int(pq.read_metadata(file).num_rows) for file in self._files]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.samples = int(self._starts[-1])
        self.batch_size = min(batch_size, self.samples)
        needed = self.samples * input_px * input_px * 3
        self._cache = np.empty((self.samples, input_px, input_px, 3), np.uint8) if needed <= cache_bytes else None
        self._cached = np.zeros(self.samples, bool)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; the rest of an epoch is left to the next one's shuffle."""
        return self.samples // self.batch_size

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 [B, 3, H, W], int64 [B]) of one epoch, without its first `skip` batches."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(_DECODERS))
            ahead = stack.enter_context(ThreadPoolExecutor(1))
            readers: dict[int, CropReader] = {}
            stack.callback(_close, readers)
            pending = None
            for number, rows in enumerate(self._order(epoch)):
                if number < skip:
                    continue
                nxt = ahead.submit(self._load, rows, readers, pool)
                if pending is not None:
                    yield pending.result()
                pending = nxt
            if pending is not None:
                yield pending.result()

    def _order(self, epoch: int) -> Iterator[_Rows]:
        rng = np.random.default_rng([self._seed, epoch])
        held: list[_Rows] = []
        count = 0
        shards = rng.permutation(len(self._files))
        for position, shard in enumerate(shards):
            held.append(self._rows(int(shard)))
            count += len(held[-1].shard_N)
            last = position == len(shards) - 1
            if count < self._window and not last:
                continue
            window = _joined(held)
            window = _taken(window, rng.permutation(count))
            full = count // self.batch_size
            for number in range(full):
                yield _taken(window, np.arange(number * self.batch_size, (number + 1) * self.batch_size))
            held = [_taken(window, np.arange(full * self.batch_size, count))]
            count -= full * self.batch_size

    def _rows(self, shard: int) -> _Rows:
        table = pq.read_table(self._files[shard], columns=["crop_offset", "crop_size", "class_index"])
        count = table.num_rows
        return _Rows(
            np.full(count, shard, np.int32),
            np.arange(self._starts[shard], self._starts[shard] + count),
            table["crop_offset"].to_numpy(),
            table["crop_size"].to_numpy(),
            table["class_index"].to_numpy().astype(np.int64),
        )

    def _load(self, rows: _Rows, readers: dict[int, CropReader], pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
        for shard in np.unique(rows.shard_N):
            if int(shard) not in readers:
                readers[int(shard)] = CropReader((self._raw / self._files[shard].name).with_suffix(".tar"))
        pixels = np.empty((len(rows.shard_N), self._input_px, self._input_px, 3), np.uint8)

        def one(index: int) -> None:
            place = rows.place_N[index]
            if self._cache is not None and self._cached[place]:
                pixels[index] = self._cache[place]
                return
            content = readers[int(rows.shard_N[index])].read(int(rows.offset_N[index]), int(rows.size_N[index]))
            pixels[index] = decode_crop(content, self._input_px)
            if self._cache is not None:
                self._cache[place] = pixels[index]
                self._cached[place] = True

        list(pool.map(one, range(len(pixels)), chunksize=16))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(rows.class_N)


def _close(readers: dict[int, CropReader]) -> None:
    for reader in readers.values():
        reader.close()


def _joined(parts: list[_Rows]) -> _Rows:
    return _Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Rows.__dataclass_fields__))


def _taken(rows: _Rows, index: NDArray[np.int64]) -> _Rows:
    return _Rows(*(getattr(rows, name)[index] for name in _Rows.__dataclass_fields__))
