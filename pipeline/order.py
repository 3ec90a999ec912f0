"""Which sample comes when: the order of training as shard numbers and offsets, a function of (seed, epoch) alone.

Shards are shuffled and joined into windows of `shuffle_buffer` samples or more, each window is shuffled and cut into global batches. No pixel is touched, so any
batch can be gone to at once. Every process of a training walks the same order and takes its own rows of each batch: how many processes and loader workers
there are changes neither the batches nor their sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Samples, by where their crops are."""

    shard_N: NDArray[np.int32]
    place_N: NDArray[np.int64]
    """Row in the whole selection."""
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int32]
    class_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard_N)

    def taken(self, index: NDArray[np.int64] | slice) -> "Rows":
        """These of the rows."""
        return Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class SampleOrder:
    """The global batches of every epoch over a selection folder: a Parquet file per raw shard, of `crop_offset`, `crop_size`, `class_index`, and
    with `samples_C` also `class_place`, the sample's number within its class.

    Without `samples_C` an epoch has each sample once, but for those that do not fill a last batch: other ones every epoch, as the order is another.
    With it (balanced) an epoch has `round(N / C)` samples of every class, each sample equally often but for one: of a large class other ones every epoch.
    """

    def __init__(
        self, selection: Path, *, batch_size: int, seed: int, shuffle_buffer: int, samples_C: NDArray[np.int64] | None = None
    ) -> None:
        self._files = sorted(selection.glob("raw-*.parquet"))
        self._seed, self._window, self._samples_C = seed, shuffle_buffer, samples_C
        counts = [int(pq.read_metadata(file).num_rows) for file in self._files]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.samples = int(self._starts[-1])
        """In the selection."""
        self._of_class = 0 if samples_C is None else max(1, round(self.samples / len(samples_C)))
        in_epoch = self.samples if samples_C is None else self._of_class * len(samples_C)
        self.batch_size = min(batch_size, in_epoch)
        self.steps_per_epoch = in_epoch // self.batch_size if in_epoch else 0
        """Full global batches in an epoch."""

    @property
    def shard_names(self) -> list[str]:
        """File names of the selection, by shard number."""
        return [file.name for file in self._files]

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The global batches of one epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        held: list[Rows] = []
        count = 0
        shards = rng.permutation(len(self._files))
        turn_C = None if self._samples_C is None else rng.integers(0, self._samples_C)
        for position, shard in enumerate(shards):
            held.append(self._rows(int(shard), turn_C))
            count += len(held[-1])
            last = position == len(shards) - 1
            if count < self._window and not last:
                continue
            window = _joined(held).taken(rng.permutation(count))
            full = count // self.batch_size
            for number in range(full):
                yield window.taken(slice(number * self.batch_size, (number + 1) * self.batch_size))
            held = [window.taken(slice(full * self.batch_size, count))]
            count -= full * self.batch_size

    def _rows(self, shard: int, turn_C: NDArray[np.int64] | None) -> Rows:
        columns = ["crop_offset", "crop_size", "class_index"]
        table = pq.read_table(self._files[shard], columns=columns if turn_C is None else [*columns, "class_place"])
        rows = Rows(
            np.full(table.num_rows, shard, np.int32),
            np.arange(self._starts[shard], self._starts[shard] + table.num_rows),
            table["crop_offset"].to_numpy(),
            table["crop_size"].to_numpy(),
            table["class_index"].to_numpy().astype(np.int64),
        )
        if turn_C is None or self._samples_C is None:
            return rows
        # `_of_class` draws, spread evenly over the class after a turn by a number of the epoch's: sample p gets those that fall into [p, p + 1).
        samples_N = self._samples_C[rows.class_N]
        turned_N = (table["class_place"].to_numpy().astype(np.int64) + turn_C[rows.class_N]) % samples_N
        copies_N = (turned_N + 1) * self._of_class // samples_N - turned_N * self._of_class // samples_N
        return rows.taken(np.repeat(np.arange(len(rows)), copies_N))


def _joined(parts: list[Rows]) -> Rows:
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__dataclass_fields__))
