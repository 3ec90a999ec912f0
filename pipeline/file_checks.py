"""One file of a folder of shards, against what is told of it."""

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import places, tars
from pipeline.config import IngestConfig
from pipeline.places import join
from pipeline.sources.base import unreadable, uri_text
from pipeline.sums import sums_text

READ = IngestConfig()
_CHUNK = 4 * 2**20
_LONGEST_SUMS = 4096
_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_SIDECAR = ("num_samples", "tar_bytes", "tar_sha256")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong."""

    name: str
    """Of a file, relative to the folder; on one line whatever stands in it."""
    what: str


@dataclass(frozen=True)
class Expected:
    """A file that is told of."""

    place: str
    name: str
    kind: Literal["tar", "twin", "parquet", "pictures", "lines", "bytes", "table", "tensors", "json"]
    """`twin`: of a raw or clean tar, with its SHA-256 beside it. `table`, `tensors`, `json`: a Parquet, safetensors or JSON file of which nothing is told; it
    has to be whole by its own words."""
    bytes: int | None = None
    sha256: str | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Checked:
    files: int
    bytes: int
    findings: list[Finding]
    pictures: NDArray[np.uint64] | None = None
    """Hashes of the names of an image folder's files."""


def check(one: Expected) -> Checked:
    """What is wrong with a file; of an image folder's table, with all of its pictures."""
    try:
        return _check(one)
    except (OSError, pa.ArrowException, _DamagedError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {in_words(error)}"
        return Checked(1, 0, [Finding(uri_text(one.name), what)])


def _check(one: Expected) -> Checked:
    if leads_out(one.name):
        return Checked(1, 0, [Finding(uri_text(one.name), "leads out of the folder")])
    wrong: list[str] = []
    with places.open_file(join(one.place, one.name), READ) as file:
        hashed = _Hashed(file)
        if one.kind == "tar":
            wrong += _tar(one, hashed)
        lines = hashed.to_end()
    size, sha256 = hashed.bytes, hashed.digest.hexdigest()
    if one.bytes is not None and size != one.bytes:
        wrong.append(f"has {size} bytes, {one.bytes} are told of")
    if one.sha256 is not None and sha256 != one.sha256:
        wrong.append("has another SHA-256 than is told of")
    if one.kind == "tar":
        wrong += _sidecar(one, size, sha256)
    if one.kind == "twin":
        length, found = _sums(one, sha256)
        return Checked(2, size + length, found)
    if one.kind == "lines" and lines != one.samples:
        wrong.append(f"has {lines} lines, {one.samples} samples are told of")
    if one.kind == "table":
        with places.open_seekable(join(one.place, one.name), READ) as file:
            for _ in pq.ParquetFile(file).iter_batches(use_threads=False):
                pass
    if one.kind == "tensors":
        _whole_tensors(one, size)
    if one.kind == "json":
        _whole_json(one)
    pictures = None
    if one.kind in {"parquet", "pictures"} and not wrong:
        with places.open_seekable(join(one.place, one.name), READ) as file:
            rows = pq.ParquetFile(file).metadata.num_rows
            if rows != one.samples:
                wrong.append(f"has {rows} rows, {one.samples} samples are told of")
            if one.kind == "pictures":
                pictures = _pictures(one.place, table_of(file, ["file_name", "bytes", "sha256"]))
    findings = [Finding(uri_text(one.name), what) for what in wrong]
    if pictures is None:
        return Checked(1, size, findings)
    return Checked(1 + pictures.files, size + pictures.bytes, findings + pictures.findings, pictures.pictures)


def table_of(file: BinaryIO, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, read by this thread alone: one of Arrow's that lets go of a Python file when the process has come to its end aborts it, sometimes."""
    return pq.ParquetFile(file, pre_buffer=False).read(columns, use_threads=False)


def in_words(error: Exception) -> str:
    """An error in words."""
    return unreadable(error)[1] if isinstance(error, OSError) else str(error)


class _DamagedError(Exception):
    """What is wrong with a file by its own words."""


def _whole_tensors(one: Expected, size: int) -> None:
    """A safetensors file: eight bytes that tell the length of its header, the header in JSON, and tensors up to where that says that they end."""
    with places.open_file(join(one.place, one.name), READ) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _LONGEST_HEADER):
            raise _DamagedError(f"ends within its header, at {size} bytes")
        header = file.read(length)
    try:
        told = json.loads(header)
        end = 8 + length + max((tensor["data_offsets"][1] for name, tensor in told.items() if name != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _DamagedError(f"its header is none of safetensors ({error})") from error
    if end != size:
        raise _DamagedError(f"it has {size} bytes, and {end} by its header")


def _whole_json(one: Expected) -> None:
    try:
        json.loads(places.read_file(join(one.place, one.name), READ))
    except ValueError as error:
        raise _DamagedError(str(error)) from error


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(count)
        self.digest.update(content)
        self.bytes += len(content)
        return content

    def to_end(self) -> int:
        """Read what is left; the lines in it."""
        lines = 0
        while chunk := self.read(_CHUNK):
            lines += chunk.count(b"\n")
        return lines


def _tar(one: Expected, file: _Hashed) -> list[str]:
    """What is wrong with the members of a tar, as its twin tells of them."""
    twin = f"{one.name.removesuffix('.tar')}.parquet"
    try:
        with places.open_seekable(join(one.place, twin), READ) as opened:
            table = table_of(opened)
    except (FileNotFoundError, pa.ArrowException) as error:
        return [f"has a twin, {twin}, that cannot be read: {in_words(error)}"]
    wanted, classes = _members(table)
    for member in tars.read_members(cast(BinaryIO, file), limit=lambda name: 64 if name.endswith(".cls") else 0):
        if isinstance(member, str):
            return [member]
        name = next(wanted, None)
        if member.name != name:
            return [f"holds {uri_text(member.name)!r} where its twin has {name!r}"]
        if member.name.endswith(".cls") and classes and member.content != b"%d" % (number := classes[member.name[:-4]]):
            return [f"has class {member.content!r} for {member.name!r}, its twin {number}"]
    left = next(wanted, None)
    return [f"ends before {left!r}, which its twin has"] if left else []


def _members(table: pa.Table) -> tuple[Iterator[str], dict[str, int]]:
    """(names of the members that a tar has by its twin, class indices by key where the twin has them)."""
    is_raw = "status" in table.column_names
    offsets = table["crop_offset"].to_pylist()
    keys = {offset: key for offset, key in zip(offsets, table["sample_id"].to_pylist(), strict=True) if offset is not None}
    suffixes = ("jpg", "json") if is_raw else ("jpg", "cls", "json")
    classes = (
        dict(zip(table["sample_id"].to_pylist(), table["class_index"].to_pylist(), strict=True))
        if "class_index" in table.column_names
        else {}
    )
    return (f"{keys[offset]}.{suffix}" for offset in sorted(keys) for suffix in suffixes), classes


def _sidecar(one: Expected, size: int, sha256: str) -> list[str]:
    """What is wrong with a tar by the sidecar in its twin's file metadata."""
    twin = f"{one.name.removesuffix('.tar')}.parquet"
    try:
        with places.open_seekable(join(one.place, twin), READ) as opened:
            metadata = pq.ParquetFile(opened).schema_arrow.metadata or {}
        samples, told_size, told_sha256 = (metadata[name.encode()].decode() for name in _SIDECAR)
    except KeyError:
        return [f"has a twin, {twin}, without a sidecar"]
    except (FileNotFoundError, pa.ArrowException):
        return []  # told of by `_tar`
    wrong = []
    if (str(size), sha256) != (told_size, told_sha256):
        wrong.append("is not what its sidecar says")
    if one.samples is not None and samples != str(one.samples):
        wrong.append(f"has {samples} samples by its sidecar, {one.samples} by dataset.json")
    return wrong


def _sums(one: Expected, sha256: str) -> tuple[int, list[Finding]]:
    """(bytes of the sums, what is wrong) with a twin by the sums beside it, and with these by the twin's sidecar, which its tar is held against."""
    stem = one.name.removesuffix(".parquet")
    try:
        with places.open_file(join(one.place, f"{stem}.sha256"), READ) as file:
            told = file.read(_LONGEST_SUMS)
    except FileNotFoundError:
        return 0, [Finding(uri_text(f"{stem}.sha256"), "is not there")]
    if f"{sha256}  {stem}.parquet\n".encode() not in told:
        return len(told), [Finding(uri_text(one.name), "has another SHA-256 than is told of")]
    with places.open_seekable(join(one.place, one.name), READ) as twin:
        metadata = pq.ParquetFile(twin).schema_arrow.metadata or {}
    if told != sums_text(stem, metadata.get(b"tar_sha256", b"").decode(), sha256).encode():
        return len(told), [Finding(uri_text(f"{stem}.sha256"), "tells of another tar than the sidecar does")]
    return len(told), []


def leads_out(name: str) -> bool:
    """True for a name that is absolute, or goes up: nothing outside of the folder is opened for a file that tells of it."""
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")


def _pictures(root: str, table: pa.Table) -> Checked:
    """Of a table of an image folder: each of its files."""
    findings = []
    size = 0
    names = table["file_name"].to_pylist()
    for name, count, sha256 in zip(names, table["bytes"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        if leads_out(name):
            findings.append(Finding(uri_text(name), "leads out of the folder"))
            continue
        try:
            with places.open_file(join(root, name), READ) as file:
                content = file.read(count + 1)
        except OSError as error:
            findings.append(
                Finding(uri_text(name), "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {in_words(error)}")
            )
            continue
        size += len(content)
        if len(content) != count or hashlib.sha256(content).hexdigest() != sha256:
            findings.append(Finding(uri_text(name), "has other bytes than its row tells of"))
    return Checked(len(names), size, findings, name_hashes(names))


def not_told_of(root: str, allowed: Set[str], pictures: Sequence[NDArray[np.uint64]]) -> Iterator[str]:
    """Paths, in no order, of the files below a folder that are not `allowed`, nor among the names whose hashes are `pictures`."""
    known = np.sort(np.concatenate(pictures)) if pictures else np.empty(0, np.uint64)
    for entry in places.walk(root):
        if entry.path in allowed:
            continue
        hashed = name_hash(entry.path)
        place = np.searchsorted(known, np.uint64(hashed))
        if place >= len(known) or int(known[place]) != hashed:
            yield entry.path


def name_hashes(names: Collection[str]) -> NDArray[np.uint64]:
    """`name_hash` of each."""
    return np.fromiter(map(name_hash, names), np.uint64, len(names))


def name_hash(name: str) -> int:
    """64 bits of a name, which a million of names keep in 8 MB."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
