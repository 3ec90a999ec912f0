"""Parquet files with the pictures in them: a binary column `jpg` beside what is known of each sample. Read by pandas, Polars, DuckDB, Spark, Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exporters.base import FACTS, Crops, FileFacts, Job, Split
from pipeline.exporters.stream import write_parts
from pipeline.hashed import HashedFile
from pipeline.receipts import Progress

ABOUT = "Parquet files with the pictures in a binary column `jpg`"
SAMPLE_BYTES = "size + 160"
SCHEMA = pa.schema([*FACTS, pa.field("jpg", pa.binary(), False)])
_GROUP = 1000


Layout = Callable[[pa.Table, pa.Array], pa.Table]
"""Rows of the schema FACTS and their pictures, as rows of the file."""


class ParquetPart:
    """One file, in row groups of 1,000 samples. Pictures, which are compressed already, are stored as they are.

    A row group is written as one piece, however its samples came, since Arrow ends pages by the pieces that it is given.
    """

    def __init__(self, path: Path, name: str, schema: pa.Schema, picture: str, layout: Layout) -> None:
        self._name = name
        self._layout = layout
        path.parent.mkdir(exist_ok=True)
        self._file = HashedFile(path)
        others = [name for name in FACTS.names if name not in {"sample_id", "source_uri"}]
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression={field.name: "none" for field in schema if field.name == picture}
            | {f"{picture}.bytes": "none", f"{picture}.path": "none"}
            | {name: "zstd" for name in schema.names if name != picture},
            use_dictionary=[name for name in others if name in schema.names],
            write_statistics=[name for name in schema.names if name != picture],
        )
        self._rows: list[pa.Table] = []
        self._pictures = memoryview(b"")
        """Of the row group; its memory serves the next one, too."""
        self._ends = [0]
        self._samples = 0

    def add(self, rows: pa.Table, crops: Crops) -> None:
        """Append samples: rows of the schema FACTS and their pictures."""
        first = 0
        while first < len(crops):
            taken = crops[first : first + _GROUP + 1 - len(self._ends)]
            self._rows.append(rows.slice(first, len(taken)))
            self._copy(taken)
            first += len(taken)
            if len(self._ends) > _GROUP:
                self._write()

    def _copy(self, crops: Crops) -> None:
        ends = (self._ends[-1] + np.cumsum([len(crop) for crop in crops])).tolist()
        if ends[-1] > len(self._pictures):
            before, self._pictures = self._pictures, memoryview(bytearray(2 * ends[-1]))
            self._pictures[: len(before)] = before
        for start, end, crop in zip([self._ends[-1], *ends], ends, crops, strict=False):
            self._pictures[start:end] = crop
        self._ends += ends

    def _write(self) -> None:
        count = len(self._ends) - 1
        places = [None, pa.py_buffer(np.array(self._ends, np.int32)), pa.py_buffer(self._pictures[: self._ends[-1]])]
        rows = pa.concat_tables(self._rows).combine_chunks()
        self._writer.write_table(self._layout(rows, pa.Array.from_buffers(pa.binary(), count, places)), row_group_size=_GROUP)
        self._samples += count
        self._rows, self._ends = [], [0]

    def close(self) -> list[FileFacts]:
        if self._rows:
            self._write()
        self._writer.close()
        self._file.close()
        return [FileFacts.of(self._file, self._name, self._samples)]


def _open(job: Job, split: Split, number: int) -> ParquetPart:
    name = f"data/{split.name}-{number:06d}.parquet"
    return ParquetPart(job.folder / name, name, SCHEMA, "jpg", _laid_out)


def _laid_out(rows: pa.Table, pictures: pa.Array) -> pa.Table:
    return pa.Table.from_arrays([*rows.columns, pictures], schema=SCHEMA)


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The files of an export."""
    return write_parts(_open, job, progress)
