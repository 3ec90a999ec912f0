"""A table of evidence per raw shard: all that is known of its samples before anybody judges, and the histograms of it."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.noise.calibration import AngleHistogram
from arcface_core.noise.centers import angle_of, nearest_of
from arcface_core.noise.rivals import RivalSearch
from arcface_core.noise.rules import sweep
from pipeline import tables
from pipeline.embed import vectors_of
from pipeline.gathered import RoundFiles, loaded, samples_of
from pipeline.receipts import atomic
from pipeline.rivals import open_rivals
from pipeline.threads import one_thread
from pipeline.within import kind_of_sample, salts

SWEEP_DEG = range(60, 91)
EVIDENCE_ONLY = {"null_angle_deg": pa.float32(), "next_other_angle_deg": pa.float32(), "class": pa.int64(), "other_class": pa.int64()}
"""Columns of a table of evidence that the noise table leaves out: the angle to a random other identity, and to the second nearest other; the classes
of the identity and of the nearest other one, -1 where there is none."""


@dataclass(frozen=True)
class EvidencePart:
    """A raw shard; `first_row`: number of its first sample in the round."""

    files: RoundFiles
    stem: str
    first_row: int
    out: Path


@dataclass(frozen=True)
class Seen:
    """Counts over all samples: own and null angles, the same of identities held out, and how many each cut of `SWEEP_DEG` keeps. Additive over parts."""

    own: NDArray[np.int64]
    null: NDArray[np.int64]
    held_out_own: NDArray[np.int64]
    held_out_null: NDArray[np.int64]
    kept_at: NDArray[np.int64]

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


def sum_of(parts: Iterable[Seen]) -> Seen:
    """The counts of all parts."""
    return reduce(operator.add, parts)


@one_thread()
def write_evidence(part: EvidencePart) -> Seen:
    """Write the evidence of one raw shard, in the order of its embeddings, unless it stands; and count it."""
    if not part.out.exists():
        _write(part)
    table = pq.read_table(part.out, columns=["class", "angle_deg", "consensus_angle_deg", "null_angle_deg"])
    own_N, null_N = numbers(table, "consensus_angle_deg"), numbers(table, "null_angle_deg")
    is_out_N = loaded(part.files.is_held_out)[numbers(table, "class")]
    return Seen(
        own=_counted(own_N),
        null=_counted(null_N),
        held_out_own=_counted(own_N[is_out_N]),
        held_out_null=_counted(null_N[is_out_N]),
        kept_at=sweep(numbers(table, "angle_deg"), SWEEP_DEG).numpy(),
    )


def numbers(table: pa.Table, name: str) -> Tensor:
    """A column without nulls."""
    return torch.from_numpy(table[name].to_numpy().copy())


def _counted(angle_N: Tensor) -> NDArray[np.int64]:
    histogram = AngleHistogram()
    histogram.add(angle_N)
    counts: NDArray[np.int64] = histogram.counts.numpy()
    return counts


def _write(part: EvidencePart) -> None:
    files, device = part.files, part.files.device
    table = pq.read_table(files.embeddings / f"{part.stem}.parquet")
    facts_N = samples_of(files, kind_of_sample(files.subcenters), slice(part.first_row, part.first_row + table.num_rows))
    class_N = torch.from_numpy(facts_N["class"].copy())
    angle_NK = torch.from_numpy(facts_N["subcenters"].copy())
    unit_ND = torch.from_numpy(vectors_of(table["embedding"]).copy()).to(device)
    nearest_N, nearest_deg_N = nearest_of(angle_NK)
    dominant_N = loaded(files.dominant)[class_N]
    search = open_rivals(files.rivals, device)
    other_N2, other_deg_N2 = (found.cpu() for found in search.nearest(unit_ND, class_N.to(device), 2))
    salt_N = torch.from_numpy(salts(np.array(table["sample_id"].to_pylist(), "S64"))).to(device)
    null_N = _null_angle_deg(unit_ND, class_N.to(device), salt_N, search, loaded(files.is_held_out).to(device))
    columns = {
        "sample_id": table["sample_id"],
        "identity": table["identity"],
        "source_uri": table["source_uri"],
        "nearest_subcenter": nearest_N.numpy().astype(np.int16),
        "dominant_subcenter": dominant_N.numpy().astype(np.int16),
        "nearest_angle_deg": nearest_deg_N.numpy(),
        "angle_deg": angle_of(angle_NK, dominant_N).numpy(),
        "consensus_angle_deg": facts_N["angle"],
        "density_angle_deg": facts_N["density"],
        "other_identity": files.names.of(other_N2[:, 0].numpy()),
        "other_angle_deg": other_deg_N2[:, 0].numpy(),
        "quality": table["quality"],
        "near_duplicate_of": _stand_ins(files, facts_N),
        "subcenter_angles_deg": _lists(angle_NK.nan_to_num(nan=90.0)),
        "null_angle_deg": null_N.cpu().numpy(),
        "next_other_angle_deg": other_deg_N2[:, 1].numpy(),
        "class": class_N.numpy(),
        "other_class": other_N2[:, 0].numpy(),
    }
    arrays = {
        name: values
        if isinstance(values, pa.Array | pa.ChunkedArray)
        else pa.array(values, EVIDENCE_ONLY.get(name) or tables.NOISE.field(name).type)
        for name, values in columns.items()
    }
    with atomic(part.out) as temporary:
        pq.write_table(pa.table(arrays), temporary)


def _lists(values_NK: Tensor) -> pa.ListArray:
    count, width = values_NK.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * width), pa.array(values_NK.numpy().reshape(-1)))


def _stand_ins(files: RoundFiles, facts_N: NDArray[np.void]) -> pa.Array:
    """sample_id of the near duplicate that stands for each sample; null where it stands for itself."""
    is_copy_N = facts_N["stand_in"] != facts_N["row"]
    return keys_where(files, facts_N["stand_in"], is_copy_N)


def keys_where(files: RoundFiles, row_N: NDArray[np.int64], there_N: NDArray[np.bool_]) -> pa.Array:
    """sample_id of the samples of these numbers; null where not `there`."""
    found = np.full(len(row_N), None, object)
    found[there_N] = files.key_of(row_N[there_N])
    return pa.array(found, pa.string())


def _null_angle_deg(unit_ND: Tensor, class_N: Tensor, salt_N: Tensor, search: RivalSearch, is_out_C: Tensor) -> Tensor:
    """Angle to a random other identity; of a held-out one to another held-out one, for no training has pushed those apart."""
    null_N = search.to_random_other(unit_ND, class_N, salt_N)
    among_N = search.to_random_other(unit_ND, class_N, salt_N, among_C=is_out_C)
    return torch.where(is_out_C[class_N] & ~among_N.isnan(), among_N, null_N)
