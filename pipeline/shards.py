"""All that we know of WebDataset: keys, deterministic tars, sidecars, reading safely.

A shard is a tar and its Parquet twin of the same stem. The twin has a row for every item, and its file metadata is the sidecar:
`num_samples`, `tar_bytes`, `tar_sha256`. Crops are read at the offsets in the twin, so a damaged tar header hides nothing. The SHA-256 of both
files stand in a third one (`pipeline/sums.py`).
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

from pipeline import tables
from pipeline.errors import BadShard
from pipeline.hashed import HashedFile
from pipeline.receipts import atomic
from pipeline.sums import file_sha256, prove_twin, sums_of, sums_text

_BLOCK, _RECORD = 512, tarfile.RECORDSIZE
_ZEROS = bytes(_BLOCK)
_BUFFER = 2**20
_KEY = re.compile(r"[0-9a-f]{8,64}")
_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

Image = NDArray[np.uint8]


def sample_id(identity: str, content_sha256: str, *, face: int = 1) -> str:
    """32 hex digits of identity, SHA-256 of the bytes and number of the face: no dot, at which WebDataset would cut, no slash, the same in
    every re-crawl.
    """
    name = identity.encode("utf-8", "surrogateescape")
    number = b"" if face == 1 else f"#face={face}".encode()  # no name is so long that its length would read like this
    return hashlib.sha256(number + len(name).to_bytes(4, "big") + name + bytes.fromhex(content_sha256)).hexdigest()[:32]


class ShardWriter:
    """Writes samples of hex keys into a tar that depends on nothing but them: no times, no owners.

    Usage: `with ShardWriter(path) as shard: offset = shard.add(key, {"jpg": ..., "json": ...})["jpg"]`; then `shard.sidecar`.
    """

    def __init__(self, path: Path) -> None:
        self._file = HashedFile(path)
        self._names: list[bytes] = []
        self._contents: list[bytes | memoryview] = []
        self._written = self._offset = 0
        self.samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the tar, and flush it to the disk."""
        self.flush()
        end = self._offset + 2 * _BLOCK
        self._file.write(bytes(2 * _BLOCK + -end % _RECORD))
        self._offset = end + -end % _RECORD
        self._file.close()

    def add(self, key: str, members: Mapping[str, bytes | memoryview]) -> dict[str, int]:
        """Append one sample; returns the offset of each member's bytes in the tar. A content may not change before the next `flush`."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"A shard key is 8 to 64 hex digits, got {key!r}.")
        offsets = {}
        for extension, content in members.items():
            self._names.append(f"{key}.{extension}".encode())
            self._contents.append(content)
            offsets[extension] = self._offset + _BLOCK
            self._offset += _BLOCK + len(content) + -len(content) % _BLOCK
        self.samples += 1
        if self._offset - self._written > _BUFFER:
            self.flush()
        return offsets

    def flush(self) -> None:
        """Write what was added so far."""
        if not self._names:
            return
        pieces: list[bytes | memoryview] = []
        for header, content in zip(_headers(self._names, [len(content) for content in self._contents]), self._contents, strict=True):
            pieces += (header, content, _ZEROS[: -len(content) % _BLOCK])
        self._file.write(b"".join(pieces))
        self._names, self._contents = [], []
        self._written = self._offset

    @property
    def sidecar(self) -> dict[str, str]:
        """The facts that prove the closed tar whole, for the twin's file metadata."""
        return {"num_samples": str(self.samples), "tar_bytes": str(self._offset), "tar_sha256": self._file.sha256}


@cache
def _blank_header() -> NDArray[np.uint8]:
    """A header without name and size, with blanks for its checksum."""
    blank = np.frombuffer(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT), np.uint8).copy()
    blank[124:135] = 0
    blank[148:156] = ord(" ")
    return blank


def _headers(names: Sequence[bytes], sizes: Sequence[int]) -> Iterator[memoryview]:
    """The ustar headers of regular files without times and owners, as tarfile makes them one by one."""
    header_NB = np.tile(_blank_header(), (len(names), 1))
    header_NB[:, :100] = np.array(names, "S100").view(np.uint8).reshape(-1, 100)
    header_NB[:, 124:135] = _octal(np.array(sizes), 11)
    header_NB[:, 148:154] = _octal(header_NB.sum(1, dtype=np.int64), 6)
    header_NB[:, 154] = 0
    content = memoryview(header_NB.tobytes())
    return (content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK))


def _octal(number_N: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """ASCII codes [N, digits] of numbers."""
    return ord("0") + (number_N[:, None] >> 3 * np.arange(digits)[::-1] & 7)


def write_twin(path: Path, table: pa.Table, facts: dict[str, str]) -> None:
    """Write a twin and the sums of its shard, whole or not at all, with the sidecar `facts` in its metadata."""
    with atomic(path) as temporary:
        text = write_rows(temporary, table, facts, path.stem)
        with atomic(sums_of(path)) as sums:  # before the twin has its name: where that stands, the sums do
            sums.write_text(text)


def write_rows(path: Path, table: pa.Table, facts: dict[str, str], stem: str) -> str:
    """Write a twin to any path; returns what its shard's sums are to hold."""
    metadata = {**(table.schema.metadata or {}), **{key.encode(): value.encode() for key, value in facts.items()}}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
    return sums_text(stem, facts["tar_sha256"], file_sha256(path))


def read_facts(twin: Path) -> dict[str, str]:
    """The sidecar facts of a twin."""
    try:
        metadata = pq.read_schema(twin).metadata or {}
        return {key: metadata[key.encode()].decode() for key in ("num_samples", "tar_bytes", "tar_sha256")}
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise BadShard(f"{twin} cannot be read ({error}). Remove its folder and run again: it will be made anew.") from error


def shard_stems(folder: Path, prefix: str = "raw") -> list[str]:
    """Stems of the shards of a folder, in order."""
    return sorted(path.stem for path in folder.glob(f"{prefix}-*.parquet"))


def check_shard(tar: Path, *, deep: bool = False) -> dict[str, str]:
    """The sidecar of a tar that matches it, by length and, with `deep`, by SHA-256; of its twin always by SHA-256.

    Raises BadShard when one does not match.
    """
    prove_twin(tar.with_suffix(".parquet"))
    facts = read_facts(tar.with_suffix(".parquet"))
    advice = f"Remove {tar.parent} and run again: it will be made anew."
    try:
        size = tar.stat().st_size
    except OSError as error:
        raise BadShard(f"{tar} is gone, though its twin is there. {advice}") from error
    if size != int(facts["tar_bytes"]):
        raise BadShard(f"{tar} has {size} bytes, its sidecar says {facts['tar_bytes']}. {advice}")
    if deep and file_sha256(tar) != facts["tar_sha256"]:
        raise BadShard(f"{tar} differs from the SHA-256 in its sidecar. {advice}")
    return facts


def require_shards(folder: Path, prefix: str, count: object) -> None:
    """Raise BadShard unless a finished folder has `count` shards, each of the length that its twin says: a look at each, no tar is read."""
    stems = shard_stems(folder, prefix)
    if len(stems) != count:
        raise BadShard(
            f"{folder} has {len(stems)} shards with a twin, and had {count}. Remove {folder} and run again: it will be made anew."
        )
    for stem in stems:
        check_shard(folder / f"{stem}.tar")


class CropReader:
    """Bytes of crops, read at their offsets; safe to call from several threads. The tar is checked first, as by `check_shard`."""

    def __init__(self, tar: Path, *, deep: bool = False) -> None:
        check_shard(tar, deep=deep)
        self._path = tar
        self._fd = os.open(tar, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        content = os.pread(self._fd, size, offset)
        if len(content) != size:
            raise BadShard(f"{self._path} ends before byte {offset + size}. Remove {self._path.parent} and run again.")
        return content

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def decode_crop(content: bytes, size_px: int) -> Image:
    """RGB pixels [size, size, 3] of a stored crop. Ingest has proven it whole, so the fast decoder serves."""
    pixels: Image = simplejpeg.decode_jpeg(content, colorspace="RGB")
    if pixels.shape[0] != size_px:
        import cv2

        way = cv2.INTER_AREA if size_px < pixels.shape[0] else cv2.INTER_LINEAR
        pixels = np.asarray(cv2.resize(pixels, (size_px, size_px), interpolation=way), np.uint8)
    return pixels


def json_bytes(value: Any) -> bytes:
    """Compact JSON, of the same bytes for the same value."""
    return _JSON.encode(value).encode("utf-8", "backslashreplace")


def json_rows(columns: Mapping[str, Sequence[str | None]]) -> Iterator[bytes]:
    """`json_bytes` of every row of a table of text, in a fifth of the time."""
    names = sorted(columns)
    form = "{" + ",".join(_quoted(name).replace("%", "%%") + ":%s" for name in names) + "}"
    texts = [["null" if value is None else _quoted(value) for value in columns[name]] for name in names]
    return ((form % row).encode("utf-8", "backslashreplace") for row in zip(*texts, strict=True))


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """An Arrow table of rows given as mappings; a missing key is null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def check_twin(path: Path) -> None:
    """Raise SchemaMismatch unless the twin is an items table of this version."""
    tables.check(path, tables.ITEMS)
