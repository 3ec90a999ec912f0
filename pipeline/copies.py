"""The same photograph under two names, by embedding. One photograph is of one person: it stays where its evidence is better.

Only a sample that lies within another identity can be a photograph of that identity, so each is compared with the samples of its nearest
other identity and with nobody else: for that, such samples are split over the buckets of the identities that they are near to.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from arcface_core.angles import cos_of_deg
from pipeline.buckets import FACTS, Buckets, Piece, Split
from pipeline.duck import every, fetch
from pipeline.embed import vectors_of
from pipeline.files import mapped, new_array, save_array
from pipeline.gathered import Crew, Gathered, RoundFiles
from pipeline.threads import one_thread

_ROWS = 4096
"""Samples compared at once."""


@dataclass(frozen=True)
class Copies:
    """In two files, by number of the sample in the round.

    copy    number of the same photograph under the nearest other identity; -1 when there is none
    noise   noise probability, 0..1; 1 where there is none
    """

    folder: Path

    def copy_of(self, rows: slice) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.array(np.memmap(self.folder / "copy", np.int64, "r")[rows])
        return found

    def noise_of(self, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.array(np.memmap(self.folder / "noise", np.float32, "r")[row_N])
        return found

    def is_better_elsewhere(self, rows: slice) -> NDArray[np.bool_]:
        """Of each sample: there is a copy, and that is less probably noise; of equal ones the first is better."""
        copy_N = self.copy_of(rows)
        has_N = copy_N >= 0
        own_N, other_N = self.noise_of(np.arange(rows.start, rows.stop)), self.noise_of(np.where(has_N, copy_N, 0))
        found: NDArray[np.bool_] = has_N & ((other_N < own_N) | ((other_N == own_N) & (copy_N < np.arange(rows.start, rows.stop))))
        return found

    def write_noise(self, samples: int, parts: Iterable[tuple[slice, NDArray[np.float32]]]) -> None:
        """Put the noise probability of all samples into its file, some rows after the other."""
        noise_N = new_array(self.folder / "noise", np.float32, (max(1, samples),))
        for rows, some_N in parts:
            noise_N[rows] = some_N


@dataclass(frozen=True)
class NearPart:
    """Samples of some shards that may be photographs of another identity, to be put into the buckets of those."""

    files: RoundFiles
    piece: Piece
    evidence: Path
    near: Buckets
    near_deg: float


@dataclass(frozen=True)
class ComparePart:
    """A bucket, and the samples of others that are near to its identities."""

    files: RoundFiles
    number: int
    near: Buckets
    duplicate_angle_deg: float
    out: Path


def find_copies(evidence: Path, gathered: Gathered, folder: Path, crew: Crew, *, near_deg: float, duplicate_angle_deg: float) -> Copies:
    """The copies of a round; the noise is still to be written.

    near_deg              a sample this near to another identity's consensus is compared with that identity's samples
    duplicate_angle_deg   two samples within this angle (inclusive) are one photograph; the nearest one counts
    """
    files = gathered.files
    near = Buckets(folder / "near", files.buckets.count, files.buckets.dim)
    near.folder.mkdir(parents=True)
    crew.all(write_near, [NearPart(files, piece, evidence, near, near_deg) for piece in gathered.split.pieces])
    near.seal()
    copy_N = new_array(folder / "copy", np.int64, (max(1, gathered.split.samples),))
    copy_N[:] = -1
    parts = [ComparePart(files, number, near, duplicate_angle_deg, folder / f"{number:05d}.npy") for number in range(near.count)]
    for part, _ in zip(parts, crew.each(compare, parts), strict=True):
        row_N, other_N = np.load(part.out)
        copy_N[row_N] = other_N
        part.out.unlink()
    return Copies(folder)


def write_near(part: NearPart) -> None:
    """Write one piece of such samples."""
    bucket_of_C = mapped(part.files.bucket_of)
    facts, vectors, first = [np.zeros(0, FACTS)], [np.zeros((0, part.near.dim), np.float32)], part.piece.first_row
    for stem in part.piece.stems:
        table = pq.read_table(part.evidence / f"{stem}.parquet", columns=["other_class", "other_angle_deg"])
        place_N = (table["other_angle_deg"].to_numpy() <= part.near_deg).nonzero()[0]
        if len(place_N):
            facts_N = np.zeros(len(place_N), FACTS)
            facts_N["row"], facts_N["class"] = first + place_N, table["other_class"].to_numpy()[place_N]
            facts.append(facts_N)
            vectors.append(
                vectors_of(pq.read_table(part.files.embeddings / f"{stem}.parquet", columns=["embedding"])["embedding"])[place_N]
            )
        first += table.num_rows
    all_N = np.concatenate(facts)
    part.near.write(part.piece.number, all_N, np.concatenate(vectors), bucket_of_C[all_N["class"]])


@one_thread()
def compare(part: ComparePart) -> None:
    """Write numbers of samples, and of the same photographs under the identities of one bucket, [2, n]."""
    near = part.near.read(part.number)
    found = [np.zeros((2, 0), np.int64)]
    if len(near.row_N):
        held = part.files.buckets.read(part.number)
        members, least = _by_class(held.class_N), cos_of_deg(part.duplicate_angle_deg)
        for target, places in _by_class(near.class_N).items():
            there = members.get(target)
            if there is None:
                continue
            inside_DM = torch.from_numpy(held.unit_ND[there]).T
            for at in range(0, len(places), _ROWS):
                some = places[at : at + _ROWS]
                cosine_n, place_n = (torch.from_numpy(near.unit_ND[some]) @ inside_DM).max(dim=1)
                same_n = (cosine_n >= least).numpy()
                found.append(np.stack([near.row_N[some[same_n]], held.row_N[there[place_n.numpy()[same_n]]]]))
    save_array(part.out, np.concatenate(found, axis=1))


def same_bytes_elsewhere(raw: Path, files: RoundFiles, split: Split, copies: Copies) -> NDArray[np.int64]:
    """Numbers, rising, of the samples whose bytes stand under another identity with better evidence; of equal evidence the first source_uri is better."""
    with duckdb.connect() as db:
        db.execute("SET temp_directory = ?", [str(copies.folder / ".spill")])
        found = fetch(
            db,
            """SELECT i.duplicate_set, e.filename, e.file_row_number
               FROM read_parquet($embeddings, filename = true, file_row_number = true) e
               JOIN (SELECT source_uri, duplicate_set FROM read_parquet($raw)
                     WHERE duplicate_set IN (SELECT duplicate_set FROM read_parquet($raw) WHERE duplicate_set IS NOT NULL
                                             GROUP BY duplicate_set HAVING count(DISTINCT identity) > 1)) i ON i.source_uri = e.source_uri
               ORDER BY e.source_uri""",
            {"embeddings": every(files.embeddings, "raw-*.parquet"), "raw": every(raw, "raw-*.parquet")},
        )
    if found.num_rows == 0:
        return np.zeros(0, np.int64)
    first_N = np.array([split.first_row[Path(name).stem] for name in found["filename"].to_pylist()])
    row_N = first_N + found["file_row_number"].to_numpy()
    set_N = found["duplicate_set"].combine_chunks().dictionary_encode().indices.to_numpy()
    order_N = np.lexsort((np.arange(len(row_N)), copies.noise_of(row_N), set_N))
    is_best_N = np.diff(set_N[order_N], prepend=-1) != 0
    return np.sort(row_N[order_N[~is_best_N]])


def have_different_pictures(raw: Path) -> bool:
    """True when an identity has two samples whose pictures differ: in their bytes, and by more than a near perceptual hash."""
    with duckdb.connect() as db:
        found = fetch(
            db,
            """SELECT 1 FROM read_parquet($raw) WHERE status = 'ok' GROUP BY identity
               HAVING count(DISTINCT coalesce(near_duplicate_set, duplicate_set, source_uri)) > 1 LIMIT 1""",
            {"raw": every(raw, "raw-*.parquet")},
        )
    return bool(found.num_rows)


def _by_class(class_N: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Places of each class."""
    order_N = class_N.argsort(kind="stable")
    values, starts = np.unique(class_N[order_N], return_index=True)
    return dict(zip(values.tolist(), np.split(order_N, starts[1:]), strict=True))
