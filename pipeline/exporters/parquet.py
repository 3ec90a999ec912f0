"""Parquet files with the pictures in them: a binary column `jpg` beside what is known of each sample. Read by pandas, Polars, DuckDB, Spark, Ray."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exporters.base import FACTS, Crops, FileFacts, HashedFile, Job, Split
from pipeline.exporters.stream import write_parts
from pipeline.receipts import Progress

ABOUT = "Parquet files with the pictures in a binary column `jpg`"
SAMPLE_BYTES = "size + 160"
SCHEMA = pa.schema([*FACTS, pa.field("jpg", pa.binary(), False)])
_GROUP = 1000


class ParquetPart:
    """One file, in row groups of 1,000 samples. Pictures, which are compressed already, are stored as they are."""

    def __init__(self, path_name: str, job: Job, schema: pa.Schema, picture: str) -> None:
        self._name = path_name
        self._schema = schema
        self._file = HashedFile(job.folder / path_name)
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
        self._waiting: list[pa.Table] = []
        self._count = self._samples = 0

    def add_table(self, table: pa.Table) -> None:
        """Append rows of the file's schema."""
        self._waiting.append(table)
        self._count += table.num_rows
        self._samples += table.num_rows
        while self._count >= _GROUP:
            self._write(_GROUP)

    def _write(self, count: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=_GROUP)
        self._waiting = [table.slice(count)]
        self._count -= count

    def close(self) -> list[FileFacts]:
        if self._count:
            self._write(self._count)
        self._writer.close()
        self._file.close()
        return [self._file.facts(self._name, self._samples)]


class _Plain(ParquetPart):
    def __init__(self, job: Job, split: Split, number: int) -> None:
        super().__init__(f"data/{split.name}-{number:06d}.parquet", job, SCHEMA, "jpg")

    def add(self, rows: pa.Table, crops: Crops) -> None:
        self.add_table(pa.Table.from_arrays([*rows.columns, pa.array(crops, pa.binary())], schema=SCHEMA))


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The files of an export."""
    return write_parts(_Plain, job, progress)
