"""What a round knows before it judges: where its parts find it on disk, and what the caller holds of every identity."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram
from pipeline.buckets import Buckets, Split
from pipeline.fanout import each_of
from pipeline.files import mapped, new_array
from pipeline.names import Names
from pipeline.receipts import Progress

P = TypeVar("P")
R = TypeVar("R")

CALIBRATION_SAMPLES = 1_000_000
SURELY_CLEAN = 0.1
"""Noise probability up to which a sample is well inside an identity."""
LEAST_SECOND = 3.0
"""Samples from which a second person in an identity counts."""
SPLIT_SHARE = 0.3
"""... and the share of the first person's samples that it must have."""


@dataclass(frozen=True)
class RoundFiles:
    """Where the parts of a round find what they work on. Each file is written whole before a part is sent that reads it, and never again."""

    raw: Path
    train: Path
    embeddings: Path
    folder: Path
    device: str
    subcenters: int
    buckets: Buckets
    names: Names

    @property
    def bucket_of(self) -> Path:
        return self.folder / "bucket_of.npy"

    @property
    def head_row(self) -> Path:
        """Row of each identity in the head of this round; -1 where it has none."""
        return self.folder / "head_row.npy"

    @property
    def is_held_out(self) -> Path:
        """Kept out of a training, so that no head has learned its noise. None is where nothing was trained."""
        return self.folder / "is_held_out.npy"

    @property
    def dominant(self) -> Path:
        return self.folder / "dominant.npy"

    def starts(self, bucket: int) -> Path:
        """Sub-centers of the identities of a bucket, their votes counted."""
        return self.folder / f"starts-{bucket:05d}.safetensors"

    @property
    def samples(self) -> Path:
        """Facts of all samples (`kind_of_sample`)."""
        return self.folder / "samples"

    @property
    def keys(self) -> Path:
        """sample_id of all samples."""
        return self.folder / "keys"

    @property
    def rivals(self) -> Path:
        """The search among all consensus centers, when they are final."""
        return self.folder / "rivals"

    def key_of(self, row_N: NDArray[np.int64]) -> list[str]:
        """sample_id of some samples, by their number in the round."""
        if not len(row_N):
            return []
        keys: list[bytes] = np.memmap(self.keys, "S64", "r")[row_N].tolist()
        return [key.decode() for key in keys]


@dataclass(frozen=True)
class Identities:
    """All identities that have a sample, and what the caller knows of each, on files of its own. C identities, D dimensions."""

    names: Names
    size_C: Tensor
    dominant_C: Tensor
    dominant_CD: Tensor
    consensus_CD: Tensor
    mass_C: Tensor
    second_CD: Tensor
    second_mass_C: Tensor
    gave_up_C: Tensor
    """Its first person stands under another name in greater number, so its consensus is its second person."""

    @classmethod
    def new(cls, folder: Path, names: Names, size_C: Tensor, dim: int) -> "Identities":
        """Of which nothing is known yet."""
        count = len(size_C)

        def centers(name: str) -> Tensor:
            return torch.from_numpy(new_array(folder / name, np.float32, (count, dim)))

        return cls(
            names=names,
            size_C=size_C,
            dominant_C=torch.full((count,), -1),
            dominant_CD=centers("dominant"),
            consensus_CD=centers("consensus"),
            mass_C=torch.zeros(count),
            second_CD=centers("second"),
            second_mass_C=torch.zeros(count),
            gave_up_C=torch.zeros(count, dtype=torch.bool),
        )


@dataclass(frozen=True)
class Gathered:
    """Everything but the tables of evidence."""

    files: RoundFiles
    identities: Identities
    split: Split
    recall: float
    """Of the search for rivals."""
    head_own: AngleHistogram
    head_null: AngleHistogram
    """Angles to the head's dominant sub-centers, of a sample of the identities: what tells whether the head has learned."""
    pair_same: AngleHistogram
    pair_other: AngleHistogram
    """Angles of blind pairs of samples, of one identity and of two: what tells whether a model that was given sees identities."""


@dataclass
class Crew:
    """Who does the parts of one isolation, phase after phase: workers; on a GPU, of which there is one, this process. Tells how far all of it is."""

    workers: int
    device: str
    progress: Progress | None = None
    total: int = 0
    """Parts in all, as far as is known."""
    done: int = 0

    def each(self, part: Callable[[P], R], parts: Sequence[P]) -> Iterator[R]:
        """The result of each part, in order. Has to be used up."""
        results = each_of(part, parts, workers=self.workers) if self.device == "cpu" else map(part, parts)
        for result in results:
            yield result
            self.done += 1
            if self.progress:
                self.progress(self.done, max(self.done, self.total))

    def all(self, part: Callable[[P], R], parts: Sequence[P]) -> list[R]:
        """The results of parts that come to little."""
        return list(self.each(part, parts))


def samples_of(files: RoundFiles, kind: np.dtype[np.void], rows: slice) -> NDArray[np.void]:
    """Facts of some samples, copied from the file of all."""
    if rows.start == rows.stop:
        return np.zeros(0, kind)
    return np.array(np.memmap(files.samples, kind, "r", offset=rows.start * kind.itemsize, shape=(rows.stop - rows.start,)))


def histogram_of(counts: NDArray[np.int64]) -> AngleHistogram:
    """The histogram of what a part has counted. Parts send no tensors, which torch would do by shared memory; Ray's arrays may not be written to."""
    return AngleHistogram(torch.tensor(counts))


def loaded(path: Path) -> Tensor:
    """A small array of every identity, as a tensor."""
    return torch.from_numpy(mapped(path))
