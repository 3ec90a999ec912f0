"""Members of a foreign tar, read as a stream: from a disk, from a store, by http, or through gzip.

A tar from the web is hostile or broken. Nothing is extracted, followed or unpickled; a header's length never decides how much memory is
taken; and damage is told and stepped over: reading goes on at the next sound header, so one broken block does not cost the rest
(tarfile ends there, without a word). A tar that stops short of its end mark is told too, for it may have been cut between two members.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENDED = 1 << 20
"""Bytes of an extended header: long names and times."""
_CHUNK = 1 << 20
_LINKS = {tarfile.SYMTYPE, tarfile.LNKTYPE}
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}


@dataclass(frozen=True)
class Member:
    """One member that is no folder."""

    name: str
    content: bytes | None
    """None when `problem` says why."""
    problem: str | None = None


def read_members(file: BinaryIO, *, limit: Callable[[str], int], gzipped: bool = False) -> Iterator[Member | str]:
    """Members in order; a `str` tells of damage. Content of more than `limit(name)` bytes is left out, with `problem` `too_large`.

    Folders are no members. Links, devices and sparse files come without content.
    """
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if gzipped else file
    reader = _Reader(stream)
    try:
        yield from _read(reader, limit)
    except (OSError, EOFError, zlib.error) as error:
        yield f"cannot be read on from byte {reader.position}: {error or type(error).__name__}"


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer at the end."""
        content = self._file.read(count)
        self.position += len(content)
        while 0 < len(content) < count:  # a raw stream may give less than asked for
            more = self._file.read(count - len(content))
            if not more:
                break
            content += more
            self.position += len(more)
        return content

    def skip(self, count: int) -> int:
        """Bytes passed over: `count`, fewer at the end."""
        start = self.position
        while (left := count - (self.position - start)) > 0 and self.read(min(left, _CHUNK)):
            pass
        return self.position - start


def _read(reader: _Reader, limit: Callable[[str], int]) -> Iterator[Member | str]:
    ended = broken = False
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        start = reader.position
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            if block.strip(b"\0") and not broken:
                yield f"ends inside the header at byte {start}"
            elif not ended and not broken:
                yield "ends without the mark of its end: what followed may be lost"
            return
        if not block.strip(b"\0"):
            ended = True
            continue
        header = _header(block)
        if header is None:
            if not broken:
                yield f"has no sound header at byte {start}; looking for the next one"
            broken = True
            long_name, pax = None, {}
            continue
        ended = broken = False
        padded = -(-header.size // BLOCK) * BLOCK
        if header.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE}:
            if header.size > _MAX_EXTENDED:
                yield f"has an extended header of {header.size} bytes at byte {start}, which is passed over"
                reader.skip(padded)
                continue
            content = reader.read(padded)[: header.size]
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif header.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
                pax = _pax(content)
            continue
        name = pax.get("path") or long_name or header.name
        size = header.size
        if pax and (digits := pax.get("size", "")).isdecimal() and len(digits) < 20:
            size = int(digits)
            padded = -(-size // BLOCK) * BLOCK
        sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax)
        long_name, pax = None, {}
        if header.type == tarfile.DIRTYPE:
            continue
        if header.type not in _REGULAR or sparse:
            kind = "a link, which is not followed" if header.type in _LINKS else "no regular file"
            yield Member(name, None, "a sparse file" if sparse else kind)
            if header.type not in {*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}:
                reader.skip(padded)
            continue
        if name.endswith("/"):  # how the oldest tars write a folder
            reader.skip(padded)
            continue
        if size > limit(name):
            if reader.skip(padded) < size:
                yield f"ends inside {name!r}; what followed is lost"
                return
            yield Member(name, None, "too_large")
            continue
        content = reader.read(padded)
        if len(content) < size:
            yield f"ends inside {name!r}; what followed is lost"
            return
        yield Member(name, content[:size])


@dataclass(frozen=True)
class _Header:
    name: str
    size: int
    type: bytes


def _header(block: bytes) -> _Header | None:
    """What a header says; None when it is none. Plain ones, which most are, are read here: tarfile takes ten times as long."""
    kind, digits, stored = block[156:157], block[124:136].strip(b"\0 "), block[148:156].strip(b"\0 ")
    if kind in {b"0", b"\0"} and digits.isdigit() and stored.isdigit() and block[257:262] == b"ustar" and not block[345]:
        try:
            size, checksum = int(digits, 8), int(stored, 8)
        except ValueError:
            return None
        if sum(block) - sum(block[148:156]) + 8 * 32 == checksum:
            return _Header(block[: block.find(0, 0, 100) if 0 in block[:100] else 100].decode("utf-8", "surrogateescape"), size, kind)
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return _Header(found.name, found.size, found.type) if found.size >= 0 else None


def _pax(content: bytes) -> dict[str, str]:
    """Records `<length> <key>=<value>\\n`; what does not follow that form ends them."""
    found: dict[str, str] = {}
    while content:
        digits, _, _ = content[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 3 <= length <= len(content):
            break
        key, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return found
