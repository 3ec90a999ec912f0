"""Facts of every sample that only its identity as a whole can tell, in files by number of the sample in the round.

Workers find them out bucket by bucket; the caller alone puts them into these files, so that nobody writes where another one maps.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.files import new_array


def kind_of_sample(subcenters: int) -> np.dtype[np.void]:
    """What is known of a sample. Angles in degrees, NaN where there is nothing to compare with.

    row, class     number of the sample in the round, and its identity
    subcenters     angle to each sub-center of its identity
    angle          to the consensus of the others of its identity
    density        to its nearest others (`Consensus.density_Gn`)
    stand_in       number of the near duplicate that stands for the sample; its own when it stands for itself
    """
    facts: list[Any] = [("row", "<i8"), ("class", "<i8"), ("subcenters", "<f4", (subcenters,)), ("angle", "<f4"), ("density", "<f4")]
    return np.dtype([*facts, ("stand_in", "<i8")])


def put_together(path: Path, parts: Iterable[Path], kind: np.dtype[np.void], samples: int) -> None:
    """The facts of all samples in their order, out of files of some each, which are removed."""
    whole = new_array(path, kind, (samples,)) if samples else np.zeros(0, kind)
    for part in parts:
        facts_N = np.load(part)
        whole[facts_N["row"]] = facts_N
        part.unlink()
    if isinstance(whole, np.memmap):
        whole.flush()


def salts(key_N: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """A pseudo-random number >= 0 for each sample_id."""
    first_N = np.ascontiguousarray(key_N).view("<u8").reshape(len(key_N), key_N.itemsize // 8)[:, 0]
    return (first_N * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)).astype(np.int64)


def worth_of(twin: Path, uris: pa.ChunkedArray) -> NDArray[np.float64]:
    """Which of two near duplicates is to be kept: area of the face as crawled in whole pixels, then sharpness, as a fraction below 1."""
    columns = ("width_px", "height_px", "face_width_px", "face_height_px", "sharpness")
    table = pq.read_table(twin, columns=["source_uri", *columns])
    width, height, face_width, face_height, sharpness = (pc.fill_null(table[name].cast(pa.float64()), 0.0).to_numpy() for name in columns)
    face = face_width * face_height
    worth = np.rint(np.where(face > 0, face, width * height)) + sharpness / (1 + sharpness)
    place = pc.index_in(uris, value_set=table["source_uri"].combine_chunks())
    found: NDArray[np.float64] = pc.fill_null(pa.array(worth).take(place.combine_chunks()), 0.0).to_numpy(zero_copy_only=False)
    return found
