"""What a source gives: a listing, and the items of a slice."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import IngestConfig


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
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Listing:
    """A crawl as listed: how much there is, in how many slices, and a digest that changes when a file does."""

    items: int
    """Files listed; for tars, whose content is not listed, the number of tars."""
    total_bytes: int
    slices: int
    digest: str


@dataclass(frozen=True)
class Source:
    """Three functions that read one kind of crawl."""

    recognises: Callable[[Path], bool]
    list_slices: Callable[[Path, Path, IngestConfig], Listing]
    """(crawl, folder for the plan, settings) -> Listing"""
    read_slice: Callable[[Path, Path, int, IngestConfig], Iterator[Item]]
    """(crawl, folder of the plan, slice number, settings) -> its items"""


def digest_of(uri: str, size: int, mtime_ns: int) -> int:
    """128-bit hash of one listed file; sums of them do not depend on the order of listing."""
    text = f"{uri}\0{size}\0{mtime_ns}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")


def printable(name: str) -> str:
    """A file name as Parquet can hold it: bytes that are no UTF-8 are written out as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
