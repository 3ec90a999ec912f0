"""Crawls of invented pictures in every form that is read, for the tests of sources."""

import csv
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.places import located
from pipeline.recordio import MAGIC
from pipeline.sources import SOURCES, Item, recognise

Pictures = dict[str, list[bytes]]
"""Pictures by identity."""


def picture(seed: int, *, size: tuple[int, int] = (112, 112), form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, form)
    return buffer.getvalue()


def people(identities: int = 4, each: int = 3) -> Pictures:
    """Numbers for names, as recordio has none. One picture is broken, one is a web page."""
    found = {str(who): [picture(100 * who + n) for n in range(each)] for who in range(identities)}
    found["1"].append(picture(7)[:-300])
    found["2"].append(b"<html>gone</html>")
    return found


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar_bytes(members: list[tuple[str, bytes]], *, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def part(content: bytes, flag: int = 0) -> bytes:
    """One part of a RecordIO record."""
    return MAGIC + struct.pack("<I", flag << 29 | len(content)) + content + b"\0" * (-len(content) % 4)


def record(content: bytes) -> bytes:
    """A RecordIO record as the format wants it: cut where the magic stands at a multiple of 4. Straight from the format's description."""
    pieces, start = [], 0
    for at in range(0, len(content) // 4 * 4, 4):
        if content[at : at + 4] == MAGIC:
            pieces.append(content[start:at])
            start = at + 4
    pieces.append(content[start:])
    if len(pieces) == 1:
        return part(pieces[0])
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(piece, flag) for piece, flag in zip(pieces, flags, strict=True))


def image_record(label: float | tuple[float, ...], number: int, content: bytes) -> bytes:
    """MXNet's header and a picture."""
    if isinstance(label, tuple):
        return struct.pack("<IfQQ", len(label), 0.0, number, 0) + struct.pack(f"<{len(label)}f", *label) + content
    return struct.pack("<IfQQ", 0, label, number, 0) + content


def rec_bytes(pictures: Pictures) -> tuple[bytes, bytes]:
    """(train.rec, train.idx) in insightface's layout: the first record names the range of identity records, which stand at the end."""
    flat = [(float(name), content) for name, contents in pictures.items() for content in contents]
    first = len(flat) + 1
    records = [image_record((float(first), float(first + len(pictures))), 0, b"")]
    records += [image_record(label, number, content) for number, (label, content) in enumerate(flat, start=1)]
    begin = 1
    for name, contents in pictures.items():
        records.append(image_record((float(begin), float(begin + len(contents))), first + int(name), b""))
        begin += len(contents)
    stream, index = b"", ""
    for key, one in enumerate(records):
        index += f"{key}\t{len(stream)}\n"
        stream += record(one)
    return stream, index.encode()


def folder(root: Path, pictures: Pictures) -> Path:
    return write(root, {f"{name}/{n}.jpg": content for name, contents in pictures.items() for n, content in enumerate(contents)})


def webdataset(root: Path, pictures: Pictures) -> Path:
    for number, (name, contents) in enumerate(pictures.items()):
        members = []
        for n, content in enumerate(contents):
            members += [(f"{number}{n:04d}.jpg", content), (f"{number}{n:04d}.json", json.dumps({"identity": name}).encode())]
        write(root, {f"{number:05d}.tar": tar_bytes(members)})
    return root


def img2dataset(root: Path, pictures: Pictures) -> Path:
    """With one URL that failed."""
    flat = [(name, content) for name, contents in pictures.items() for content in contents]
    lines: list[dict[str, Any]] = []
    members = []
    for number, (name, content) in enumerate(flat):
        key = f"00000{number:04d}"
        about = {"key": key, "status": "success", "error_message": None, "identity": name}
        lines.append({**about, "url": f"https://example.org/{number}.jpg", "caption": f"a face, {number}"})
        members += [(f"{key}.jpg", content), (f"{key}.txt", b"a face"), (f"{key}.json", json.dumps(lines[-1]).encode())]
    failed = {"key": "000009999", "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found", "identity": "0"}
    lines.append({**failed, "url": "https://example.org/gone.jpg", "caption": "gone"})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(lines), root / "00000.parquet")
    return write(root, {"00000.tar": tar_bytes(members), "00000_stats.json": b"{}"})


def recordio(root: Path, pictures: Pictures) -> Path:
    stream, index = rec_bytes(pictures)
    return write(root, {"train.rec": stream, "train.idx": index, "property": b"4,112,112"})


def recordio_without_index(root: Path, pictures: Pictures) -> Path:
    return write(root, {"train.rec": rec_bytes(pictures)[0]})


def table_of_bytes(root: Path, pictures: Pictures) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [{"identity": name, "image": content} for name, contents in pictures.items() for content in contents]
    pq.write_table(pa.Table.from_pylist(rows), root / "crawl.parquet", row_group_size=4)
    return root / "crawl.parquet"


def table_of_paths(root: Path, pictures: Pictures) -> Path:
    folder(root / "pictures", pictures)
    lines = [
        ["identity", "path"],
        *([name, f"pictures/{name}/{n}.jpg"] for name, contents in pictures.items() for n in range(len(contents))),
    ]
    with (root / "crawl.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return root


def huggingface_parquet(root: Path, pictures: Pictures) -> Path:
    (root / "data").mkdir(parents=True)
    names = sorted(pictures)
    rows = [
        {"image": {"bytes": content, "path": f"{n}.jpg"}, "label": names.index(name)}
        for name in pictures
        for n, content in enumerate(pictures[name])
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    whole = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(whole.slice(0, 5), root / "data" / "train-00000-of-00002.parquet")
    pq.write_table(whole.slice(5), root / "data" / "train-00001-of-00002.parquet")
    return root


def huggingface_classes(root: Path, pictures: Pictures) -> Path:
    for number, (name, contents) in enumerate(pictures.items()):
        split = "test" if number == 3 else "train"
        write(root, {f"{split}/{name}/{n}.jpg": content for n, content in enumerate(contents)})
    return write(root, {"README.md": b"# Faces"})


def huggingface_metadata(root: Path, pictures: Pictures) -> Path:
    flat = [(name, content) for name, contents in pictures.items() for content in contents]
    lines = [json.dumps({"file_name": f"{number}.jpg", "label": name}) for number, (name, _) in enumerate(flat)]
    files = {f"train/{number}.jpg": content for number, (_, content) in enumerate(flat)}
    return write(root, {**files, "train/metadata.jsonl": "\n".join(lines).encode()})


FORMS: dict[str, tuple[str, Callable[[Path, Pictures], Path]]] = {
    "folder": ("folder", folder),
    "webdataset": ("webdataset", webdataset),
    "img2dataset": ("img2dataset", img2dataset),
    "recordio": ("recordio", recordio),
    "recordio, no index": ("recordio", recordio_without_index),
    "table of bytes": ("table", table_of_bytes),
    "table of paths": ("table", table_of_paths),
    "hugging face, parquet": ("huggingface", huggingface_parquet),
    "hugging face, class folders": ("huggingface", huggingface_classes),
    "hugging face, metadata": ("huggingface", huggingface_metadata),
}
"""Form -> (source that reads it, what writes it)"""


def items_of(crawl: Path | str, plan: Path, config: IngestConfig | None = None) -> list[Item]:
    """All items of a crawl, slice by slice."""
    config = config or IngestConfig(samples_per_shard=5)
    place = located(crawl)
    source = SOURCES[recognise(place, config)]
    plan.mkdir(parents=True, exist_ok=True)
    listing = source.list_slices(place, plan, config)
    return [item for number in range(listing.slices) for item in source.read_slice(place, plan, number, config)]


def status_of(items: list[Item]) -> dict[str, str]:
    """Problem of each item by its URI, `ok` where there is none."""
    found = {item.source_uri: item.problem[0] if item.problem else "ok" for item in items}
    assert len(found) == len(items), "every URI is unique"
    return found
