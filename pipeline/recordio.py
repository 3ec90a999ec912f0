"""RecordIO, the container of MXNet, and the header that its image records have. Read natively, as a stream, from files that may be damaged.

A record is: magic (uint32), a word with a flag in the upper 3 bits and the length in the lower 29, the content, and zeros up to a multiple of 4.
Content that holds the magic at a multiple of 4 is cut there and written as parts (flags 1 begin, 2 middle, 3 end; 0 is a whole record) with
the magic left out. So the magic never stands inside of a sound part, and where it does, or is not where a part should begin, the file is
damaged: we say so, and go on at the next magic that begins a record.

Source: dmlc-core, `recordio.h` and `recordio.cc`; MXNet, `recordio.py` (IRHeader).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0xCED7230A
MAGIC = struct.pack("<I", _MAGIC)
_WORDS = struct.Struct("<II")
_IMAGE = struct.Struct("<IfQQ")
IMAGE_HEADER_BYTES = _IMAGE.size
_CHUNK = 1 << 20
_MAX_LABELS = 1 << 16


@dataclass(frozen=True)
class Record:
    """A record, or a stretch of the file that holds none."""

    start: int
    """Byte at which it begins."""
    end: int
    content: bytes = b""
    problem: str | None = None
    too_large: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """An image record taken apart."""

    labels: tuple[float, ...]
    """One, or as many as the header's flag says."""
    number: int
    has_vector: bool
    content: bytes


def image_record(content: bytes) -> ImageRecord | None:
    """The parts of an image record: flag, label, id, id2, then `flag` further labels in float32; None when it is too short for them."""
    if len(content) < _IMAGE.size:
        return None
    flag, label, number, _ = _IMAGE.unpack_from(content)
    if flag == 0:
        return ImageRecord((label,), number, False, content[_IMAGE.size :])
    end = _IMAGE.size + 4 * flag
    if flag > _MAX_LABELS or len(content) < end:
        return None
    return ImageRecord(struct.unpack(f"<{flag}f", content[_IMAGE.size : end]), number, True, content[end:])


def framed(content: bytes) -> bytes:
    """The record of `content`, as it stands in a file."""
    parts = []
    begin = 0
    while (found := _aligned(content[begin:])) is not None:
        parts.append(content[begin : begin + found])
        begin += found + len(MAGIC)
    parts.append(content[begin:])
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        _WORDS.pack(_MAGIC, flag << 29 | len(part)) + part + bytes(-len(part) % 4) for flag, part in zip(flags, parts, strict=True)
    )


def count_magics(content: bytes | memoryview) -> int:
    """How often the magic stands at a multiple of 4 in `content`: its record has so many more parts."""
    content = bytes(content)
    count = begin = 0
    while (found := _aligned(content[begin:])) is not None:
        count, begin = count + 1, begin + found + len(MAGIC)
    return count


def starts(file: BinaryIO, size: int, known: NDArray[np.int64] | None = None) -> Iterator[int]:
    """Bytes at which records begin, in order: those `known`, from an index, else found by stepping from header to header.

    An index is not trusted: offsets outside of the file or off the grid of 4 are left out, and `read` finds what lies between.
    """
    if known is not None:
        good = np.unique(known[(known >= 0) & (known < size) & (known % 4 == 0)])
        yield from good.tolist()
        return
    position = 0
    while position < size:
        header = _header(file, position, size)
        if header is None:
            position = _next_magic(file, position + 4, size)
            continue
        flag, length = header
        if flag in {0, 1}:
            yield position
        position += 8 + _padded(length)


def read(file: BinaryIO, start: int, end: int, size: int, *, limit: int) -> Iterator[Record]:
    """Records that begin in [start, end) of a file of `size` bytes, in order, and one with a `problem` for each stretch that holds none.

    Content of more than `limit` bytes is left out. Stretches of one file that tile it give each of its records once.
    """
    position = start
    while position < end:
        header = _header(file, position, size)
        if header is None or header[0] not in {0, 1}:
            after = _next_magic(file, position + 4, end)
            yield Record(position, after, problem=f"no sound record at byte {position}; {after - position} bytes are passed over")
            position = after
            continue
        record = _record(file, position, size, limit)
        yield record
        position = record.end


def _record(file: BinaryIO, start: int, size: int, limit: int) -> Record:
    """The record of one or several parts whose first header, at `start`, is sound."""
    parts: list[bytes] = []
    position, total, is_first = start, 0, True
    while True:
        header = _header(file, position, size)
        if header is None or (header[0] in {0, 1}) != is_first:
            return Record(start, position, problem=f"the record at byte {start} lacks its last parts")
        flag, length = header
        content_at, after = position + 8, position + 8 + _padded(length)
        total += length + (0 if is_first else len(MAGIC))
        if total <= limit:
            file.seek(content_at)
            content = file.read(after - content_at)
            found = _aligned(content)
            inside = after if found is None else content_at + found
            parts.append(content[:length])
        else:
            inside = _next_magic(file, content_at, after)
        if inside < after:  # a sound part holds no magic: the length is wrong, or the content was overwritten
            after = inside if _header(file, inside, size) else _next_magic(file, inside + 4, size)
            return Record(start, after, problem=f"the record at byte {start} has a damaged length or content")
        if flag in {0, 3}:
            return Record(start, after, MAGIC.join(parts)) if total <= limit else Record(start, after, too_large=True)
        position, is_first = after, False


def _header(file: BinaryIO, position: int, size: int) -> tuple[int, int] | None:
    """(flag, length) of the part at `position`; None when no sound one that fits into the file begins there."""
    file.seek(position)
    words = file.read(8)
    if len(words) < 8 or words[:4] != MAGIC:
        return None
    word = _WORDS.unpack(words)[1]
    flag, length = word >> 29, word & 0x1FFFFFFF
    return (flag, length) if flag <= 3 and position + 8 + _padded(length) <= size else None


def _next_magic(file: BinaryIO, position: int, end: int) -> int:
    """The next multiple of 4 from `position` on at which the magic stands; `end` when there is none before it."""
    position += -position % 4
    file.seek(position)
    carried = b""
    while piece := file.read(max(0, min(_CHUNK, end - position - len(carried)))):
        chunk = carried + piece
        found = _aligned(chunk)
        if found is not None:
            return position + found
        whole = len(chunk) - len(chunk) % 4
        position, carried = position + whole, chunk[whole:]
    return end


def _aligned(content: bytes) -> int | None:
    """The first multiple of 4 at which the magic stands in `content`."""
    found = content.find(MAGIC)
    while found >= 0 and found % 4:
        found = content.find(MAGIC, found + 1)
    return found if found >= 0 else None


def _padded(length: int) -> int:
    return -(-length // 4) * 4
