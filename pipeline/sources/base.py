"""What a source gives: a listing, and the items of a slice. And the rules for names, which hold for all sources."""

import errno
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.web import TooLarge

Problem = tuple[str, str]
"""(status, detail)"""
MAX_IDENTITY_BYTES = 1024
PICTURES = frozenset("jpg jpeg jpe jfif png webp gif bmp dib avif heic heif tif tiff".split())
"""Extensions by which a picture is found among other files. What is in it is decided by its bytes."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Item:
    """One file of a crawl, as found. `problem` is (status, detail) when there is nothing to decode."""

    source_uri: str
    identity: str
    content: bytes = b""
    landmarks: Any = None
    """Five points as the crawl gives them, unchecked."""
    source_url: str | None = None
    caption: str | None = None
    license: str | None = None
    """As the crawl gives it."""
    problem: Problem | None = None


@dataclass(frozen=True)
class Listing:
    """A crawl as listed: how much there is, in how many slices, and a digest that changes when a file does."""

    items: int
    """Items listed; for tars, whose content is not listed, the number of tars."""
    total_bytes: int
    slices: int
    digest: str


UNITS = pa.schema([("unit", pa.binary(16)), ("mark", pa.binary(16)), ("slice", pa.int64())])
"""Files of a crawl: hash of the name, hash that changes when the file does, and the slice that reads it."""


@dataclass(frozen=True)
class Growth:
    """How a crawl that grew is read: its files by themselves, so that those which were read before need not be read again."""

    write_units: Callable[[Path, Path, IngestConfig], None]
    """(folder of the plan, file to write, settings): every file of the plan as UNITS"""
    narrow: Callable[[Path, Path, IngestConfig], int]
    """(folder of the plan, a UNITS file, settings): leaves only its units in the plan; the number of slices then"""


@dataclass(frozen=True)
class Source:
    """Functions that read one kind of crawl. A crawl is an absolute path or a URL (`places.located`)."""

    recognises: Callable[[Look], bool]
    """Opens as little as it can."""
    list_slices: Callable[[str, Path, IngestConfig], Listing]
    """(crawl, folder for the plan, settings) -> Listing"""
    read_slice: Callable[[str, Path, int, IngestConfig], Iterator[Item]]
    """(crawl, folder of the plan, slice number, settings) -> its items"""
    reads: str
    """In words, for people."""
    count_identities: Callable[[Path, IngestConfig], dict[str, int]] | None = None
    """(folder of the plan, settings) -> items by identity, where the listing knows them."""
    growth: Growth | None = None
    """None: a crawl that changed is read anew."""


def digest_of(uri: str, size: int, mark: str | int) -> int:
    """128-bit hash of one listed file; sums of them do not depend on the order of listing."""
    text = f"{uri}\0{size}\0{mark}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")


def unit_of(uri: str) -> bytes:
    """16 bytes that stand for a file of the crawl by its name, as source_uri has it."""
    return hashlib.blake2b(uri.encode("utf-8"), digest_size=16).digest()


def order_of(name: bytes) -> int:
    """64-bit hash by which items are put in an order that depends on nothing but their names."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def printable(name: str) -> str:
    """A name as Parquet can hold it: bytes that are no UTF-8 are written out as `\\xNN`, other lone surrogates, which JSON can name, as `\\uNNNN`."""
    return _SURROGATE.sub(_written_out, name)


def uri_text(name: str) -> str:
    """A name on one line: control characters, bytes that are no UTF-8, and backslashes are written out, so that two names never become one."""
    return name if name.isprintable() and "\\" not in name else _UNPRINTABLE.sub(_written_out, name)


def _written_out(found: "re.Match[str]") -> str:
    code = ord(found.group())
    if found.group() == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as the operating system's names have it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def named(name: object) -> tuple[str, Problem | None]:
    """(identity, problem): a name in Unicode NFC, letter case and spaces as they are; one that is empty or too long is `bad_identity`.

    Whole numbers are names too. None, floats and everything else name nobody.
    """
    if isinstance(name, bool) or not isinstance(name, str | int):
        return "", ("bad_identity", "nothing names the identity")
    text = unicodedata.normalize("NFC", printable(str(name)))
    if not text.strip():
        return "", ("bad_identity", "the name is empty")
    size = len(text.encode("utf-8"))
    if size > MAX_IDENTITY_BYTES:
        return f"{text[:64]}…", ("bad_identity", f"the name has {size} bytes, {MAX_IDENTITY_BYTES} allowed")
    return text, None


def bad_key(path: str) -> Problem | None:
    """The problem of a path that came with the crawl: absolute, with `..`, without a stem, or with control characters."""
    if path.startswith("/") or re.match(r"[A-Za-z]:[\\/]", path):
        return "bad_key", "an absolute path"
    parts = re.split(r"[/\\]", path)
    if ".." in parts:
        return "bad_key", "a path with `..` in it"
    if not parts[-1].partition(".")[0]:
        return "bad_key", "a name without a stem"
    return steering_key(path)


def steering_key(path: str) -> Problem | None:
    """The problem of a path with control characters, be it of a file that was listed."""
    return ("bad_key", "control characters in the name") if _CONTROL.search(path) else None


_LINK = "a link, which is not followed"


def unreadable(error: OSError) -> Problem:
    """The problem of a file that could not be read."""
    if isinstance(error, TooLarge):
        return "too_large", str(error)
    if error.errno == errno.ELOOP:
        return "unreadable", _LINK
    return "unreadable", error.strerror or str(error) or type(error).__name__


def irregular(kind: places.Kind) -> Problem | None:
    """The problem of what was listed as a link, a pipe or a device; None of a file."""
    return None if kind == "file" else ("unreadable", _LINK if kind == "link" else "no regular file")


def require_regular(crawl: str, files: Sequence[places.Entry]) -> None:
    """Raise BadCrawl when files were listed and none is a regular one: a run of them would be rows of problems alone."""
    if files and all(one.kind != "file" for one in files):
        are_links = any(one.kind == "link" for one in files)
        what = "links, which are not followed" if are_links else "pipes or devices, which are not read"
        advice = "Give the place that they lead to, or a copy by `cp -rL`." if are_links else "Give files."
        raise BadCrawl(f"{places.recorded(crawl)} has nothing but {what}: {len(files)}, as {uri_text(files[0].path)}. {advice}")


LICENSE = ("license", "licence")
"""Columns and keys in which crawlers put the terms of a picture."""


def license_of(*facts: Mapping[str, Any]) -> str | None:
    """The terms of a picture from what stands beside it; the first that says something."""
    return next((text for one in facts for name in LICENSE if (text := text_or_none(one.get(name)))), None)


def text_or_none(value: object) -> str | None:
    """A text that Parquet can hold; None for anything else."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else None
