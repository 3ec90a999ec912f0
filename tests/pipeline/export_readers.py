"""Exports read without our code, and what is to stand in them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import webdataset as wds

from pipeline import recordio
from pipeline.exporters.base import Wanted
from pipeline.layout import RunLayout
from pipeline.shards import CropReader

Sample = tuple[str, str, str, bytes]
"""(split, identity, sample_id, picture)"""


def wanted(form: str, **changed: Any) -> Wanted:
    return Wanted(form=form, **{"samples_per_shard": 4, "val": 0.4, **changed})


def kept(run: RunLayout) -> dict[str, tuple[str, bytes]]:
    """sample_id -> (identity, picture), read from manifest and raw shards, past all that is tested."""
    found = {}
    places = {row["source_uri"]: row for path in run.raw.glob("raw-*.parquet") for row in pq.read_table(path).to_pylist()}
    for row in pq.read_table(run.manifest).to_pylist():
        if row["clean_identity"] is not None:
            place = places[row["source_uri"]]
            with CropReader(run.raw / f"{place['shard']}.tar") as crops:
                found[row["sample_id"]] = row["clean_identity"], crops.read(place["crop_offset"], place["crop_size"])
    return found


# --- what stands in an export, read without our code


def names_of(out: Path) -> dict[tuple[str, int], str]:
    told = json.loads((out / "identities.json").read_text())
    assert all([row["class_index"] for row in rows] == list(range(len(rows))) for rows in told.values()), "class indices are dense"
    return {(split, row["class_index"]): row["identity"] for split, rows in told.items() for row in rows}


def from_webdataset(out: Path) -> list[Sample]:
    names = names_of(out)
    found = []
    for split in ("train", "val"):
        for tar in sorted(out.glob(f"{split}-*.tar")):
            for one in wds.WebDataset(str(tar), shardshuffle=False):
                told = json.loads(one["json"])
                assert told["identity"] == names[split, int(one["cls"])] and told["sample_id"] == one["__key__"] and told["source_uri"]
                found.append((split, told["identity"], one["__key__"], one["jpg"]))
            twin = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
            content = tar.read_bytes()
            crops = [content[row["crop_offset"] : row["crop_offset"] + row["crop_size"]] for row in twin]
            assert crops == [one[3] for one in found[-len(twin) :]]
    return found


def from_imagefolder(out: Path) -> list[Sample]:
    folders = {row["folder"]: row for rows in json.loads((out / "identities.json").read_text()).values() for row in rows}
    rows = {row["file_name"]: row for path in (out / "metadata").glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    found = []
    for split in ("train", "val"):
        # the order in which torchvision's ImageFolder counts: sorted names of folders
        for number, folder in enumerate(sorted(path.name for path in (out / split).iterdir())):
            assert folders[folder]["class_index"] == number and unquote(folder) == folders[folder]["identity"]
            for path in (out / split / folder).iterdir():
                row = rows.pop(f"{split}/{folder}/{path.name}")
                assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"] and row["class_index"] == number
                found.append((split, folders[folder]["identity"], path.stem, path.read_bytes()))
    assert not rows, "a row without a file"
    return found


def from_recordio(out: Path) -> list[Sample]:
    names = names_of(out)
    found = []
    for split, folder in (("train", out), ("val", out / "val")):
        lines = [line.split("\t") for line in (folder / "train.lst").read_text().splitlines()]
        listed = {int(key): name.removesuffix(".jpg") for key, _, name in lines}
        path = folder / "train.rec"
        with path.open("rb") as file:
            for record in recordio.read(file, 0, path.stat().st_size, path.stat().st_size, limit=10**9):
                one = recordio.image_record(record.content)
                assert record.problem is None and one is not None
                if not one.has_vector:
                    found.append((split, names[split, int(one.labels[0])], listed.pop(one.number), one.content))
        assert not listed
        assert (folder / "property").read_text() == f"{sum(where == split for where, _ in names)},112,112\n"
    return found


def from_parquet(out: Path) -> list[Sample]:
    names = names_of(out)
    rows = [
        (split, row)
        for split in ("train", "val")
        for path in sorted(out.glob(f"data/{split}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert all(row["identity"] == names[split, row["class_index"]] and row["source_uri"] for split, row in rows)
    return [(split, row["identity"], row["sample_id"], row["jpg"]) for split, row in rows]


def from_hf(out: Path) -> list[Sample]:
    names = names_of(out)
    card = (out / "README.md").read_text()
    found = []
    for split in ("train", "val"):
        assert f"  - split: {split}\n    path: data/{split}-*\n" in card
        for path in sorted((out / "data").glob(f"{split}-*.parquet")):
            table = pq.read_table(path)
            features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            assert features["image"] == {"_type": "Image"} and list(features) == table.column_names
            for row in table.to_pylist():
                assert row["image"]["path"] == f"{row['sample_id']}.jpg" and names[split, row["label"]] == row["identity"]
                found.append((split, row["identity"], row["sample_id"], row["image"]["bytes"]))
    return found


READERS: dict[str, Callable[[Path], list[Sample]]] = {
    "webdataset": from_webdataset,
    "imagefolder": from_imagefolder,
    "recordio": from_recordio,
    "parquet": from_parquet,
    "hf": from_hf,
}


def content(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the receipt, which has seconds in it."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "_receipt.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
