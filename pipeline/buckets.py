"""All embeddings of one identity in one place: a copy of a round's embeddings, split over buckets by a hash of the identity.

Raw shards follow the crawl, so one person may lie in a thousand of them. Evidence within an identity is gathered bucket by bucket; a bucket
fits in memory. Since the hash is blind, the first buckets are also a fair sample of the identities.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.embed import read_embeddings

BYTES_PER_BUCKET = 1 << 28


@dataclass(frozen=True)
class Bucket:
    """Samples of some identities. `row_N`: number of each sample in the round, counted over the shards in order; `class_N`: its identity."""

    row_N: NDArray[np.int64]
    class_N: NDArray[np.int64]
    unit_ND: NDArray[np.float32]


@dataclass(frozen=True)
class Buckets:
    """The buckets of one round, on disk."""

    folder: Path
    count: int
    dim: int
    first_row: dict[str, int]
    """Number of the first sample of each shard."""
    samples: int
    bucket_of_C: NDArray[np.int64]
    """Of each identity."""

    def __iter__(self) -> Iterator[Bucket]:
        return (self.read(number) for number in range(self.count))

    def read(self, number: int) -> Bucket:
        """One bucket, whole."""
        return read_bucket(self.folder, number, self.dim)


class BucketWriter:
    """Appends samples to the buckets of a folder, which it makes anew, for `read_bucket`.

    No file stays open: a crawl of 10^8 has more buckets than a process may open files.
    """

    def __init__(self, folder: Path, bucket_of_C: NDArray[np.int64], count: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._folder, self._bucket_of_C = folder, bucket_of_C
        for number in range(count):
            for kind in ("rows", "f32"):
                (folder / f"{number:05d}.{kind}").touch()

    def add(self, row_N: NDArray[np.int64], class_N: NDArray[np.int64], unit_ND: NDArray[np.float32]) -> None:
        """Put each sample into the bucket of its class."""
        if not len(class_N):
            return
        bucket_N = self._bucket_of_C[class_N]
        order_N = bucket_N.argsort(kind="stable")
        present_P, first_P = np.unique(bucket_N[order_N], return_index=True)
        for number, chosen_N in zip(present_P, np.split(order_N, first_P[1:]), strict=True):
            with (self._folder / f"{number:05d}.rows").open("ab") as rows, (self._folder / f"{number:05d}.f32").open("ab") as vectors:
                np.stack([row_N[chosen_N], class_N[chosen_N]], axis=1).tofile(rows)
                unit_ND[chosen_N].tofile(vectors)


def read_bucket(folder: Path, number: int, dim: int) -> Bucket:
    """One bucket that a BucketWriter wrote, whole."""
    facts = np.fromfile(folder / f"{number:05d}.rows", np.int64).reshape(-1, 2)
    vectors = np.fromfile(folder / f"{number:05d}.f32", np.float32).reshape(-1, dim)
    return Bucket(np.ascontiguousarray(facts[:, 0]), np.ascontiguousarray(facts[:, 1]), vectors)


def new_array(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory-mapped array of zeros in a new file. Its room is taken now: on a disk that fills later, writing to it would kill the process."""
    with path.open("wb") as file:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
    return np.memmap(path, kind, "r+", shape=shape)


Claims = Callable[[str, list[str], list[str]], list[str | None]]
"""Of a shard, the source_uri of its samples and their identities as crawled: the identity that each counts for, or None."""


def split(
    embeddings: Path,
    stems: list[str],
    index: dict[str, int],
    folder: Path,
    *,
    claims: Claims | None = None,
    bytes_per_bucket: int = BYTES_PER_BUCKET,
) -> Buckets:
    """The buckets of `embeddings`, written to `folder`. `index`: class index of every identity that occurs.

    With `claims` a sample stands in the bucket of the identity that it counts for, and is left out when that is None or not in `index`.
    """
    sizes = {stem: int(pq.read_metadata(embeddings / f"{stem}.parquet").num_rows) for stem in stems}
    samples = sum(sizes.values())
    dim = int(pq.read_schema(embeddings / f"{stems[0]}.parquet").field("embedding").type.list_size)
    count = max(1, -(-samples * dim * 4 // bytes_per_bucket))
    names = list(index)
    bucket_of_C = np.fromiter((_hash(name) % count for name in names), np.int64, len(names))
    first_row: dict[str, int] = {}
    row = 0
    writer = BucketWriter(folder, bucket_of_C, count)
    for stem in stems:
        first_row[stem] = row
        uris, identities, _, vectors_ND = read_embeddings(embeddings / f"{stem}.parquet")
        if claims is None:
            class_N = np.fromiter((index[name] for name in identities), np.int64, len(identities))
        else:
            claimed = claims(stem, uris, identities)
            class_N = np.fromiter((-1 if name is None else index.get(name, -1) for name in claimed), np.int64, len(claimed))
        there_N = class_N >= 0
        writer.add(np.arange(row, row + len(class_N))[there_N], class_N[there_N], vectors_ND[there_N])
        row += len(class_N)
    return Buckets(folder, count, dim, first_row, samples, bucket_of_C)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "big")
