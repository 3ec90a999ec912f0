"""All embeddings of one identity in one place: a copy of a round's embeddings, split over buckets by a hash of the identity.

Raw shards follow the crawl, so one person may lie in a thousand of them. Evidence within an identity is gathered bucket by bucket; a bucket
fits in memory. Since the hash is blind, the first buckets are also a fair sample of the identities.

It is written as a shuffle is: a run of shards is sorted by bucket into one piece, a whole file that any worker can make, and a bucket is read as one
stretch of every piece.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import shards
from pipeline.embed import vectors_of
from pipeline.errors import PurifyError
from pipeline.files import mapped, save_array
from pipeline.names import Names
from pipeline.receipts import atomic
from pipeline.within import salts, worth_of

BYTES_PER_BUCKET = 1 << 26
"""At most."""
_LEAST_BYTES = 1 << 23
_PARTS_TO_SHARE = 16
"""A round is cut into so many buckets, where they are not too small or too large: work for several workers."""
_MOST_PIECES = 512
"""So many stretches a bucket is read in, at most; beyond a crawl of 32 GB the pieces grow."""
FACTS = np.dtype([("row", "<i8"), ("class", "<i8"), ("salt", "<i8"), ("worth", "<f8")])
_VECTORS_AT_ONCE = 4096

Claims = Callable[[str, list[str], list[str]], list[str | None]]
"""Of a shard, the source_uri of its samples and their identities as crawled: the identity that each counts for, or None. Sent to workers."""


@dataclass(frozen=True)
class Bucket:
    """Samples of some identities, by rising number.

    row_N      number of each sample in the round, counted over the shards in order
    class_N    its identity
    salt_N     a pseudo-random number >= 0 that follows the sample everywhere
    worth_N    which of two near duplicates is to be kept
    """

    row_N: NDArray[np.int64]
    class_N: NDArray[np.int64]
    salt_N: NDArray[np.int64]
    worth_N: NDArray[np.float64]
    unit_ND: NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """A run of shards. `first_row`: number of its first sample in the round; `samples`: how many there are."""

    number: int
    stems: tuple[str, ...]
    first_row: int
    samples: int


@dataclass(frozen=True)
class Buckets:
    """Where buckets lie on disk, and how many: all that is needed to fill and to read them."""

    folder: Path
    count: int
    dim: int

    def write(self, piece: int, facts_N: NDArray[np.void], unit_ND: NDArray[np.float32], bucket_N: NDArray[np.int64]) -> None:
        """One piece; `bucket_N` says where each sample goes."""
        order_N = bucket_N.argsort(kind="stable")
        with atomic(self.folder / f"{piece:05d}.facts") as temporary:
            facts_N[order_N].tofile(temporary)
        with atomic(self.folder / f"{piece:05d}.f32") as temporary, temporary.open("wb") as file:
            for first in range(0, len(order_N), _VECTORS_AT_ONCE):
                unit_ND[order_N[first : first + _VECTORS_AT_ONCE]].tofile(file)
        with atomic(self.folder / f"{piece:05d}.ends") as temporary:
            np.bincount(bucket_N, minlength=self.count).cumsum().astype("<i8").tofile(temporary)

    def seal(self) -> NDArray[np.int64]:
        """How many samples each bucket has, after all pieces are there and before the first bucket is read."""
        ends = [np.fromfile(path, "<i8") for path in sorted(self.folder.glob("*.ends"))]
        ends_PB = np.stack(ends) if ends else np.zeros((0, self.count), np.int64)
        starts_PB = np.pad(ends_PB[:, :-1], ((0, 0), (1, 0)))
        save_array(self.folder / "stretches.npy", np.stack([starts_PB, ends_PB]))
        sizes: NDArray[np.int64] = (ends_PB - starts_PB).sum(axis=0)
        return sizes

    def read(self, number: int) -> Bucket:
        """One bucket, whole."""
        starts_P, ends_P = mapped(self.folder / "stretches.npy")[:, :, number]
        places_P = np.concatenate([[0], np.cumsum(ends_P - starts_P)])
        facts_N = np.empty(places_P[-1], FACTS)
        unit_ND = np.empty((places_P[-1], self.dim), np.float32)
        for piece, start in enumerate(starts_P.tolist()):
            stretch = slice(places_P[piece], places_P[piece + 1])
            if stretch.start < stretch.stop:
                _fill(self.folder / f"{piece:05d}.facts", start * FACTS.itemsize, facts_N[stretch])
                _fill(self.folder / f"{piece:05d}.f32", start * self.dim * 4, unit_ND[stretch])
        row_N, class_N, salt_N, worth_N = (np.ascontiguousarray(facts_N[name]) for name in FACTS.names or ())
        return Bucket(row_N, class_N, salt_N, worth_N, unit_ND)


def _fill(path: Path, offset: int, array: NDArray[np.generic]) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        view = memoryview(array.view(np.uint8).reshape(-1).data)
        while view and (size := file.readinto(view)):
            view = view[size:]
    if view:
        raise PurifyError(f"{path} ends early. Remove its folder and run again: it will be made anew.")


@dataclass(frozen=True)
class Split:
    """A round's embeddings before they are split: what pieces there will be, and of how many buckets."""

    pieces: list[Piece]
    first_row: dict[str, int]
    """Number of the first sample of each shard."""
    size: dict[str, int]
    """How many samples each shard has."""
    samples: int
    dim: int
    buckets: int

    def rows_of(self, stem: str) -> slice:
        """Numbers of a shard's samples in the round."""
        first = self.first_row[stem]
        return slice(first, first + self.size[stem])


def plan(embeddings: Path, stems: Sequence[str]) -> Split:
    """How the embeddings of a round are to be split."""
    sizes = [int(pq.read_metadata(embeddings / f"{stem}.parquet").num_rows) for stem in stems]
    first_row = dict(zip(stems, np.cumsum([0, *sizes])[:-1].tolist(), strict=True))
    dim = int(pq.read_schema(embeddings / f"{stems[0]}.parquet").field("embedding").type.list_size)
    size = sum(sizes) * dim * 4
    per_bucket = min(BYTES_PER_BUCKET, max(_LEAST_BYTES, size // _PARTS_TO_SHARE))
    most = max(per_bucket, size // _MOST_PIECES) // (dim * 4)
    pieces: list[Piece] = []
    for stem, samples in zip(stems, sizes, strict=True):
        last = pieces.pop() if pieces else Piece(0, (), 0, 0)
        if last.stems and last.samples + samples > most:
            pieces.append(last)
            last = Piece(len(pieces), (), first_row[stem], 0)
        pieces.append(replace(last, stems=(*last.stems, stem), samples=last.samples + samples))
    return Split(pieces, first_row, dict(zip(stems, sizes, strict=True)), sum(sizes), dim, max(1, -(-size // per_bucket)))


def buckets_of(names: Iterable[str], count: int) -> NDArray[np.int32]:
    """The bucket of each identity."""
    return np.fromiter((_hash(name) % count for name in names), np.int32)


@dataclass(frozen=True)
class PieceOfSamples:
    """A part: to put the samples of a run of shards into buckets. `keys`: the file that their sample_ids go to, as 64 bytes each, or None.

    With `claims` a sample stands in the bucket of the identity that it counts for, and is left out when that is None or unknown.
    """

    piece: Piece
    raw: Path
    embeddings: Path
    names: Names
    bucket_of_C: Path
    buckets: Buckets
    keys: Path | None = None
    claims: Claims | None = None


def write_samples(part: PieceOfSamples) -> None:
    """Write one piece."""
    facts_N = np.zeros(part.piece.samples, FACTS)
    key_N = np.zeros(part.piece.samples, "S64")
    unit_ND = np.empty((part.piece.samples, part.buckets.dim), np.float32)
    facts_N["row"] = np.arange(part.piece.first_row, part.piece.first_row + part.piece.samples)
    first = 0
    for stem in part.piece.stems:
        table = pq.read_table(part.embeddings / f"{stem}.parquet", columns=["sample_id", "identity", "source_uri", "embedding"])
        here = slice(first, first := first + table.num_rows)
        key_N[here] = table["sample_id"].to_pylist()
        facts_N["class"][here] = _classes(part, stem, table)
        facts_N["worth"][here] = worth_of(part.raw / f"{stem}.parquet", table["source_uri"])
        unit_ND[here] = vectors_of(table["embedding"])
    facts_N["salt"] = salts(key_N)
    if part.keys is not None:
        with atomic(part.keys) as temporary:
            key_N.tofile(temporary)
    there_N = facts_N["class"] >= 0
    if not there_N.all():
        facts_N, unit_ND = facts_N[there_N], unit_ND[there_N]
    part.buckets.write(part.piece.number, facts_N, unit_ND, mapped(part.bucket_of_C)[facts_N["class"]])


def split(raw: Path, embeddings: Path, names: pa.ChunkedArray, folder: Path, *, claims: Claims | None = None) -> Buckets:
    """The buckets of the embeddings of a round, for one process. `names`: all identities; their order counts them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    planned = plan(embeddings, shards.shard_stems(embeddings))
    buckets = Buckets(folder, planned.buckets, planned.dim)
    held, bucket_of_C = Names.write(folder / "names.arrow", names), folder / "bucket_of.npy"
    save_array(bucket_of_C, buckets_of(names.to_pylist(), buckets.count))
    for piece in planned.pieces:
        write_samples(PieceOfSamples(piece, raw, embeddings, held, bucket_of_C, buckets, claims=claims))
    buckets.seal()
    return buckets


def _classes(part: PieceOfSamples, stem: str, table: pa.Table) -> NDArray[np.int64]:
    if part.claims is not None:
        claimed = part.claims(stem, table["source_uri"].to_pylist(), table["identity"].to_pylist())
        return part.names.classes(pa.array(claimed, pa.string()))
    class_N = part.names.classes(table["identity"])
    if (class_N < 0).any():
        raise PurifyError(f"{part.embeddings} has identities that {part.raw} has not. Remove it and run again: it will be made anew.")
    return class_N


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "big")
