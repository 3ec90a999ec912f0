"""A folder per identity, `train/Jane Doe/<sample_id>.jpg`, as torchvision's ImageFolder reads it; and `metadata/train-000000.parquet` ..., with
a row and the SHA-256 of every file.

Names of folders are made safe by `names.folder_names`; identities.json has them beside the identities.
"""

import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exporters.base import FACTS, Crops, FileFacts, Job, Split
from pipeline.exporters.stream import write_parts
from pipeline.hashed import HashedFile
from pipeline.receipts import Progress

ABOUT = "train/<identity>/<sample_id>.jpg, as torchvision's ImageFolder reads it, and tables of all files"
SAMPLE_BYTES = "(size + 4095) // 4096 * 4096 + 200"
TABLE = pa.schema(
    [
        pa.field("file_name", pa.string(), False),
        pa.field("bytes", pa.int32(), False),
        pa.field("sha256", pa.string(), False),
        *FACTS,
    ]
)


class Folders:
    """The files of one part, and their table."""

    def __init__(self, job: Job, split: Split, number: int) -> None:
        self._root = job.folder
        self._split = split.name
        self._name = f"metadata/{split.name}-{number:06d}.parquet"
        rows = pq.read_table(job.plan / "identities.parquet", columns=["folder"], filters=[("split", "=", split.name)])
        self._folders = rows["folder"]
        self._made: set[int] = set()
        self._rows: list[pa.Table] = []

    def add(self, rows: pa.Table, crops: Crops) -> None:
        names, digests = [], []
        for key, class_index, crop in zip(rows["sample_id"].to_pylist(), rows["class_index"].to_pylist(), crops, strict=True):
            folder = f"{self._split}/{self._folders[class_index].as_py()}"
            if class_index not in self._made:
                (self._root / folder).mkdir(parents=True, exist_ok=True)
                self._made.add(class_index)
            names.append(f"{folder}/{key}.jpg")
            digests.append(hashlib.sha256(crop).hexdigest())
            with open(f"{self._root}/{names[-1]}", "wb", buffering=0) as file:  # noqa: PTH123 - one of millions
                file.write(crop)
        facts = [pa.array(names), pa.array([len(crop) for crop in crops], pa.int32()), pa.array(digests)]
        self._rows.append(pa.Table.from_arrays([*facts, *rows.columns], schema=TABLE))

    def close(self) -> list[FileFacts]:
        table = pa.concat_tables(self._rows).combine_chunks()
        path = self._root / self._name
        path.parent.mkdir(exist_ok=True)
        with HashedFile(path) as file:
            pq.write_table(table, file, compression="zstd")
        os.sync()  # the small files, which are not flushed one by one
        return [FileFacts.of(file, self._name, table.num_rows)]


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The tables of an export; its pictures are told of in them."""
    return write_parts(Folders, job, progress)
