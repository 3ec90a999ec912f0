"""A data set as Hugging Face `datasets` loads it from a folder: `data/train-00000-of-00003.parquet` with a column `image`, and a card, README.md.

`image` is a struct of bytes and path, and the features stand in the file's metadata, so that `load_dataset` decodes pictures without being told.
`label` is a plain number: with a million names a ClassLabel would not fit into a file's header. identities.json has the names.
"""

import json

import pyarrow as pa

from pipeline.exporters.base import FACTS, FileFacts, Job, Split, write_whole
from pipeline.exporters.parquet import ParquetPart
from pipeline.exporters.stream import write_parts
from pipeline.receipts import Progress

ABOUT = "a folder that Hugging Face's load_dataset reads: Parquet with an `image` column, and a card"
SAMPLE_BYTES = "size + 200"
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_REST = [field for field in FACTS if field.name != "class_index"]
_FEATURES = {
    "image": {"_type": "Image"},
    "label": {"dtype": "int64", "_type": "Value"},
    **{field.name: {"dtype": {"float": "float32"}.get(str(field.type), str(field.type)), "_type": "Value"} for field in _REST},
}
SCHEMA = pa.schema(
    [pa.field("image", _IMAGE), pa.field("label", pa.int64()), *(pa.field(field.name, field.type) for field in _REST)],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def _open(job: Job, split: Split, number: int) -> ParquetPart:
    name = f"data/{split.name}-{number:05d}-of-{split.parts:05d}.parquet"
    return ParquetPart(job.folder / name, name, SCHEMA, "image", _laid_out)


def _laid_out(rows: pa.Table, pictures: pa.Array) -> pa.Table:
    paths = pa.array([f"{key}.jpg" for key in rows["sample_id"].to_pylist()])
    image = pa.StructArray.from_arrays([pictures, paths], fields=list(_IMAGE))
    rest = [rows[field.name] for field in _REST]
    return pa.Table.from_arrays([image, rows["class_index"].cast(pa.int64()), *rest], schema=SCHEMA)


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The files of an export, and its card."""
    return [*write_parts(_open, job, progress), write_whole(job, "README.md", _card(job).encode())]


def _card(job: Job) -> str:
    files = "".join(f"  - split: {split.name}\n    path: data/{split.name}-*\n" for split in job.splits)
    rows = "".join(f"| {split.name} | {split.identities:,} | {split.samples:,} |\n" for split in job.splits)
    return f"""---
configs:
- config_name: default
  data_files:
{files}---

Aligned faces, 112 x 112 JPEG. `label` counts the identities of a split from 0; identities.json has their names.

| split | identities | samples |
|---|---|---|
{rows}"""
