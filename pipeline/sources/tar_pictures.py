"""Pictures of WebDataset-like tars with what stands beside them, for `webdataset` and `img2dataset`.

WebDataset cuts a name at its first dot into key and extension, and takes members as one sample while they stand together. We do too, with two
cares: of `J.Smith_1.jpg` and `J.Smith_1.json` beside `J.Brown_1.jpg` each picture finds its own; and what comes back later under a key that
was there before is a row that says so, not half a sample.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.sources.base import (
    PICTURES,
    UNITS,
    Growth,
    Listing,
    Problem,
    bad_key,
    digest_of,
    require_regular,
    unit_of,
    unreadable,
    uri_text,
)
from pipeline.tars import Member, read_members

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BESIDE = frozenset({"json", "cls", "txt"})
_SMALL_TEXT = 1 << 20


@dataclass(frozen=True)
class TarPicture:
    """One picture of a tar, or the row that stands for what is none."""

    uri: str
    name: str
    """As the member has it, without its last extension and without folders."""
    content: bytes = b""
    beside: dict[str, bytes] = field(default_factory=dict)
    """What stands beside it, by kind: json, cls, txt."""
    problem: Problem | None = None
    is_damage: bool = False


@dataclass(frozen=True)
class _Part:
    """A member, its name taken apart: `folder/J.Smith_1.jpg` has key `folder/J`, stem `folder/J.Smith_1` and kind `jpg`."""

    member: Member
    key: str
    stem: str
    kind: str


def list_tars(crawl: str, plan: Path, config: IngestConfig) -> tuple[Listing, list[places.Entry]]:
    """The listing, a slice a tar, and the tars; their paths go into the plan. Raises BadCrawl when all are links."""
    base, tars = places.matching(crawl, config, SUFFIXES)
    require_regular(crawl, tars)
    marks = {tar.path: digest_of(places.name_of(places.join(base, tar.path)), tar.size, tar.mark) for tar in tars}
    write_tars(plan, base, marks)
    return Listing(len(tars), sum(tar.size for tar in tars), len(tars), f"{sum(marks.values()) % 2**128:032x}"), tars


def write_tars(plan: Path, base: str, marks: dict[str, int]) -> None:
    """Put the tars, a slice each, into the plan. `marks`: by path, a number below 2^128 that changes when the tar does."""
    (plan / "tars.json").write_text(json.dumps({"base": base, "tars": marks}), "utf-8")


def tar_of(plan: Path, number: int) -> tuple[str, str]:
    """(folder, path in it) of the tar of a slice."""
    listed = json.loads((plan / "tars.json").read_text("utf-8"))
    return listed["base"], list(listed["tars"])[number]


def write_units(plan: Path, out: Path, config: IngestConfig) -> None:
    """Every tar of the plan as UNITS, a slice each."""
    del config
    tars = json.loads((plan / "tars.json").read_text("utf-8"))["tars"]
    rows = [
        {"unit": unit_of(uri_text(path)), "mark": mark.to_bytes(16, "big"), "slice": at} for at, (path, mark) in enumerate(tars.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=UNITS), out)


def narrow(plan: Path, units: Path, config: IngestConfig) -> int:
    """Leave only the tars of `units` in the plan, in the same order; the number of slices then."""
    del config
    kept = set(pq.read_table(units, columns=["unit"])["unit"].to_pylist())
    listed = json.loads((plan / "tars.json").read_text("utf-8"))
    tars = {path: mark for path, mark in listed["tars"].items() if unit_of(uri_text(path)) in kept}
    write_tars(plan, listed["base"], tars)
    return len(tars)


GROWTH = Growth(write_units, narrow)


def read_pictures(base: str, path: str, config: IngestConfig) -> Iterator[TarPicture]:
    """Pictures of one tar, in order. What is no picture, and each damage, comes with a `problem`. URIs are unique."""
    shown = uri_text(path.partition("?")[0] if places.is_web(base) else path)
    seen: Counter[str] = Counter()
    try:
        with places.open_file(places.join(base, path), config) as file:
            for found in _pictures(read_members(file, limit=lambda name: _limit(name, config), gzipped=not shown.lower().endswith(".tar"))):
                uri = f"{shown}#damage" if found.is_damage else f"{shown}/{found.uri}"
                seen[uri] += 1
                yield _renamed(found, f"{uri}#{seen[uri]}" if seen[uri] > 1 else uri)
    except OSError as error:
        status, detail = unreadable(error)
        uri = f"{shown}#damage"
        yield TarPicture(f"{uri}#{seen[uri] + 1}" if seen[uri] else uri, "", problem=(status, detail), is_damage=True)


def facts_of(beside: dict[str, bytes]) -> dict[str, Any]:
    """The mapping in the `.json`; empty when there is none, or when it is something else."""
    try:
        found = json.loads(beside.get("json", b"{}"))
        return found if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _renamed(found: TarPicture, uri: str) -> TarPicture:
    return TarPicture(uri, found.name, found.content, found.beside, found.problem, found.is_damage)


def _limit(name: str, config: IngestConfig) -> int:
    kind = name.rpartition("/")[2].rpartition(".")[2].lower()
    return config.max_item_bytes if kind in PICTURES else _SMALL_TEXT if kind in _BESIDE else 0


def _pictures(members: Iterator[Member | str]) -> Iterator[TarPicture]:
    group: list[_Part] = []
    seen: set[int] = set()
    for found in members:
        if isinstance(found, str):
            yield from _of_group(group, seen)
            group = []
            yield TarPicture("", "", problem=("unreadable", found), is_damage=True)
            continue
        part = _taken_apart(found)
        if group and part.key != group[0].key:
            yield from _of_group(group, seen)
            group = []
        group.append(part)
    yield from _of_group(group, seen)


def _taken_apart(member: Member) -> _Part:
    folder, _, base = member.name.rpartition("/")
    key = f"{folder}/{base.partition('.')[0]}"
    stem, _, kind = base.rpartition(".")
    return _Part(member, key, f"{folder}/{stem}", kind.lower())


def _of_group(group: list[_Part], seen: set[int]) -> Iterator[TarPicture]:
    texts = {(part.stem, part.kind): part.member.content for part in group if part.kind in _BESIDE and part.member.content is not None}
    rows = 0
    for part in group:
        uri, name, member = uri_text(part.member.name), part.stem.rpartition("/")[2], part.member
        is_picture = part.kind in PICTURES
        if member.problem is not None and (is_picture or member.problem != "too_large"):
            status = "too_large" if member.problem == "too_large" else "unreadable"
            detail = "more bytes than ingest.max_item_bytes" if status == "too_large" else member.problem
            yield TarPicture(uri, name, problem=(status, detail))
        elif is_picture:
            beside = {kind: text for stem in (part.key, part.stem) for kind in _BESIDE if (text := texts.get((stem, kind))) is not None}
            problem = bad_key(member.name) or _apart(part, seen)
            yield TarPicture(uri, name, member.content or b"", beside, problem)
        else:
            continue
        rows += 1
    if group and not rows:
        first = group[0]
        kinds = ", ".join(sorted({f".{part.kind}" for part in group}))
        problem = bad_key(first.member.name) or _apart(first, seen) or ("unsupported_format", f"no picture, only {uri_text(kinds)}")
        yield TarPicture(uri_text(first.member.name), first.stem.rpartition("/")[2], problem=problem)
    seen.update(hash(part.stem) for part in group)


def _apart(part: _Part, seen: set[int]) -> Problem | None:
    if hash(part.stem) in seen:
        return "bad_key", "apart from other members of its key: WebDataset wants them side by side"
    return None
