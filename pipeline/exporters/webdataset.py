"""WebDataset shards: `train-000000.tar` of .jpg, .cls and .json, and a Parquet twin of each that tells the same, and where the crops begin."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.exporters.base import FACTS, Crops, FileFacts, Job, Split
from pipeline.exporters.stream import write_parts
from pipeline.hashed import HashedFile
from pipeline.receipts import Progress
from pipeline.shards import ShardWriter, json_rows

ABOUT = "tars of .jpg, .cls and .json that bare WebDataset reads, each with a Parquet twin"
SAMPLE_BYTES = "(size + 511) // 512 * 512 + 2560 + 120"
_TOLD = ("identity", "crawled_identity", "sample_id", "source_uri", "source_url", "license")
_TWIN = pa.schema([*FACTS, tables.CLEAN.field("crop_offset"), tables.CLEAN.field("crop_size")])


class Shard:
    """One tar and its twin."""

    def __init__(self, job: Job, split: Split, number: int) -> None:
        self._stem = f"{split.name}-{number:06d}"
        self._twin = HashedFile(job.folder / f"{self._stem}.parquet")
        self._tar = ShardWriter(job.folder / f"{self._stem}.tar")
        self._rows: list[pa.Table] = []

    def add(self, rows: pa.Table, crops: Crops) -> None:
        offsets = []
        facts = {name: rows[name].to_pylist() for name in _TOLD}
        for key, class_index, told, crop in zip(facts["sample_id"], rows["class_index"].to_pylist(), json_rows(facts), crops, strict=True):
            offsets.append(self._tar.add(key, {"jpg": crop, "cls": b"%d" % class_index, "json": told})["jpg"])
        self._tar.flush()
        places = [pa.array(offsets, pa.int64()), pa.array([len(crop) for crop in crops], pa.int32())]
        self._rows.append(pa.Table.from_arrays([*rows.columns, *places], schema=_TWIN))

    def close(self) -> list[FileFacts]:
        self._tar.close()
        facts = self._tar.sidecar
        table = pa.concat_tables(self._rows).replace_schema_metadata(facts).combine_chunks()
        pq.write_table(table, self._twin, compression="zstd")
        self._twin.close()
        samples = self._tar.samples
        return [
            FileFacts(f"{self._stem}.tar", int(facts["tar_bytes"]), facts["tar_sha256"], samples),
            FileFacts.of(self._twin, f"{self._stem}.parquet", samples),
        ]


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The tars and twins of an export."""
    return write_parts(Shard, job, progress)
