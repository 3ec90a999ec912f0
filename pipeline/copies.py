"""The same photograph under two names, by embedding. One photograph is of one person: it stays where its evidence is better.

Only a sample that lies within another identity can be a photograph of that identity, so each is compared with the samples of its nearest
other identity and with nobody else: for that, such samples are split over the buckets of the identities that they are near to.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from arcface_core.angles import cos_of_deg
from pipeline.buckets import BucketWriter, new_array, read_bucket
from pipeline.embed import read_embeddings
from pipeline.evidence import Gathered

_ROWS = 4096
"""Samples compared at once."""


@dataclass(frozen=True)
class Copies:
    """On disk, by number of the sample in the round.

    copy_N     number of the same photograph under the nearest other identity; -1 when there is none
    noise_N    noise probability, 0..1; 1 where there is none
    """

    copy_N: NDArray[np.int64]
    noise_N: NDArray[np.float32]

    def is_better_elsewhere(self, rows: slice) -> NDArray[np.bool_]:
        """Of each sample: there is a copy, and that is less probably noise; of equal ones the first is better."""
        copy_N = np.asarray(self.copy_N[rows])
        has_N = copy_N >= 0
        own_N, other_N = np.asarray(self.noise_N[rows]), np.asarray(self.noise_N[np.where(has_N, copy_N, 0)])
        found: NDArray[np.bool_] = has_N & ((other_N < own_N) | ((other_N == own_N) & (copy_N < np.arange(rows.start, rows.stop))))
        return found


def find_copies(
    embeddings: Path, evidence: Path, stems: list[str], gathered: Gathered, folder: Path, *, near_deg: float, duplicate_angle_deg: float
) -> Copies:
    """The copies of a round; `noise_N` is still to be filled in.

    near_deg              a sample this near to another identity's consensus is compared with that identity's samples
    duplicate_angle_deg   two samples within this angle (inclusive) are one photograph; the nearest one counts
    """
    buckets = gathered.buckets
    writer = BucketWriter(folder, buckets.bucket_of_C, buckets.count)
    for stem in stems:
        table = pq.read_table(evidence / f"{stem}.parquet", columns=["other_identity", "other_angle_deg"])
        near_N = table["other_angle_deg"].to_numpy() <= near_deg
        if near_N.any():
            class_N = np.array([gathered.identities.index.get(name, 0) for name in table["other_identity"].to_pylist()], np.int64)
            row_N = np.arange(buckets.first_row[stem], buckets.first_row[stem] + table.num_rows)
            writer.add(row_N[near_N], class_N[near_N], read_embeddings(embeddings / f"{stem}.parquet")[3][near_N])
    samples = max(1, buckets.samples)
    copy_N = new_array(folder / "copy", np.int64, (samples,))
    copy_N[:] = -1
    least = cos_of_deg(duplicate_angle_deg)
    for number in range(buckets.count):
        near = read_bucket(folder, number, buckets.dim)
        if len(near.row_N) == 0:
            continue
        held = buckets.read(number)
        members = _by_class(held.class_N)
        for target, places in _by_class(near.class_N).items():
            there = members.get(target)
            if there is None:
                continue
            inside_DM = torch.from_numpy(held.unit_ND[there]).T
            for at in range(0, len(places), _ROWS):
                some = places[at : at + _ROWS]
                cosine_n, place_n = (torch.from_numpy(near.unit_ND[some]) @ inside_DM).max(dim=1)
                same_n = (cosine_n >= least).numpy()
                copy_N[near.row_N[some[same_n]]] = held.row_N[there[place_n.numpy()[same_n]]]
    return Copies(copy_N, new_array(folder / "noise", np.float32, (samples,)))


def _by_class(class_N: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Places of each class."""
    order_N = class_N.argsort(kind="stable")
    values, starts = np.unique(class_N[order_N], return_index=True)
    return dict(zip(values.tolist(), np.split(order_N, starts[1:]), strict=True))
