"""Exports in the order of the clean shards: each worker reads a stretch of them from end to end, and writes its parts one after the other.

A part counts as written when the file of its facts is there, and that is written when the clean shards it was made of have been read to their
end and proven. So a killed export goes on with the parts that lack one, and nothing is made of damage.
"""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import tables
from pipeline.exporters.base import FACTS, FileFacts, Job, OpenPart, Split, hand_over
from pipeline.exporters.base import Part as OpenedPart
from pipeline.fanout import fan_out, worker_count
from pipeline.proven import proven_crops
from pipeline.receipts import Progress, write_json

_PER_WORKER = 4
"""Stretches for each worker, so that none waits long for the last one."""


@dataclass(frozen=True)
class _Stretch:
    job: Job
    open_part: OpenPart
    split: Split
    first: int
    last: int


def write_parts(open_part: OpenPart, job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The files of all parts, each written by what `open_part` gives."""
    todo = [stretch for split in job.splits for stretch in _stretches(job, open_part, split)]
    fan_out(_write_stretch, todo, workers=job.workers, progress=progress)
    return [file for split in job.splits for number in range(split.parts) for file in _facts(job, split, number)]


def _stretches(job: Job, open_part: OpenPart, split: Split) -> list[_Stretch]:
    many = -(-split.parts // (_PER_WORKER * worker_count(job.workers)))
    found: list[_Stretch] = []
    for number in range(split.parts):
        if _facts_file(job, split, number).exists():
            continue
        if found and found[-1].last == number - 1 and number - found[-1].first < many:
            found[-1] = _Stretch(job, open_part, split, found[-1].first, number)
        else:
            found.append(_Stretch(job, open_part, split, number, number))
    return found


def _write_stretch(stretch: _Stretch) -> None:
    job, split = stretch.job, stretch.split
    wanted = [("split", "=", split.name), ("part", ">=", stretch.first), ("part", "<=", stretch.last)]
    rows = pq.read_table(job.plan / "samples.parquet", columns=["part", "shard", "row", "class_index"], filters=wanted)
    part_N, shard_N, row_N = (rows[name].to_numpy() for name in ("part", "shard", "row"))
    opened: OpenedPart | None = None
    written: list[tuple[int, list[FileFacts]]] = []
    edges = [0, *(np.flatnonzero(np.diff(shard_N)) + 1).tolist(), len(shard_N)]
    for first, last in itertools.pairwise(edges):
        stem = job.clean / f"clean-{shard_N[first]:06d}"
        facts, offset_N, size_N = read_facts(f"{stem}.parquet", row_N[first:last], rows["class_index"][first:last])
        at = first
        for crops in proven_crops(stem.with_suffix(".tar"), offset_N, size_N):
            taken = 0
            while taken < len(crops):
                part = int(part_N[at])
                opened = opened or stretch.open_part(job, split, part)
                end = int(np.searchsorted(part_N, part, side="right"))
                count = min(len(crops) - taken, end - at)
                opened.add(facts.slice(at - first, count), crops[taken : taken + count])
                taken, at = taken + count, at + count
                if at == end:
                    written.append((part, opened.close()))
                    opened = None
        for number, files in written:  # all shards that they are made of are proven
            hand_over(job, files)
            write_json(_facts_file(job, split, number), [asdict(file) for file in files])
        written.clear()


def read_facts(twin: str, row_N: NDArray[np.int64], class_N: pa.ChunkedArray) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
    """(rows of the schema FACTS, offsets, sizes) of rows of a clean twin."""
    tables.check(twin, tables.CLEAN)
    table = pq.read_table(twin).take(row_N)
    facts = table.append_column(FACTS.field("class_index"), class_N.cast(pa.int32())).select(FACTS.names)
    return facts, table["crop_offset"].to_numpy(), table["crop_size"].to_numpy().astype(np.int64)


def _facts_file(job: Job, split: Split, number: int) -> Path:
    return job.parts / f"{split.name}-{number:06d}.json"


def _facts(job: Job, split: Split, number: int) -> list[FileFacts]:
    return [FileFacts(**one) for one in json.loads(_facts_file(job, split, number).read_text("utf-8"))]
