"""Facts of every sample that only its identity as a whole can tell, in memory-mapped files by number of the sample in the round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.buckets import new_array


@dataclass(frozen=True)
class WithinIdentity:
    """Angles in degrees, float32; NaN where there is nothing to compare with."""

    subcenter_deg_NK: NDArray[np.float32]
    angle_deg_N: NDArray[np.float32]
    density_deg_N: NDArray[np.float32]
    stand_in_N: NDArray[np.int64]
    """Number of the near duplicate that stands for the sample; its own when it stands for itself."""
    worth_N: NDArray[np.float64]
    """Which of two near duplicates is to be kept: area of the face as crawled in whole pixels, then sharpness, as a fraction below 1."""
    key_N: NDArray[np.bytes_]


def open_arrays(folder: Path, samples: int, subcenters: int, raw: Path, embeddings: Path, stems: list[str]) -> WithinIdentity:
    """New arrays in `folder`, empty but for keys and worth."""
    folder.mkdir(exist_ok=True)

    def array(name: str, kind: str, *width: int) -> NDArray[Any]:
        return new_array(folder / name, kind, (samples, *width)) if samples else np.zeros((0, *width), kind)

    within = WithinIdentity(
        array("subcenters", "<f4", subcenters),
        array("angle", "<f4"),
        array("density", "<f4"),
        array("stand_in", "<i8"),
        array("worth", "<f8"),
        array("key", "S64"),
    )
    row = 0
    for stem in stems:
        table = pq.read_table(embeddings / f"{stem}.parquet", columns=["sample_id", "source_uri"])
        rows = slice(row, row + table.num_rows)
        within.key_N[rows] = table["sample_id"].to_pylist()
        within.worth_N[rows] = _worth(raw / f"{stem}.parquet", table["source_uri"].to_pylist())
        row += table.num_rows
    return within


def _worth(twin: Path, uris: list[str]) -> list[float]:
    columns = ("width_px", "height_px", "face_width_px", "face_height_px", "sharpness")
    table = pq.read_table(twin, columns=["source_uri", *columns])
    worth = {}
    for uri, width, height, face_width, face_height, sharpness in zip(*table.to_pydict().values(), strict=True):
        area = face_width * face_height if face_width and face_height else (width or 0) * (height or 0)
        worth[uri] = round(area) + (sharpness or 0.0) / (1 + (sharpness or 0.0))
    return [worth.get(uri, 0.0) for uri in uris]
