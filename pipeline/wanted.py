"""What a run holds of a person or a picture that is to be forgotten."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.decisions import read_standing
from pipeline.errors import BadInput
from pipeline.forgotten import STATUS, Forgotten, Wish, plain, words_of
from pipeline.layout import RunLayout

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAMPLE = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Wanted:
    """What is asked for, in the form that tables hold it in."""

    identities: frozenset[str]
    contents: frozenset[str]
    samples: frozenset[str]


def wanted_of(identities: Sequence[str], contents: Sequence[str], samples: Sequence[str]) -> Wanted:
    """What the texts of a command ask for. Raises BadInput for an empty name and for hex that is none."""
    if not all(name.strip() for name in identities):
        raise BadInput("--identity takes a name, got an empty one. Items that nothing names are forgotten by --sha256 or --sample.")
    return Wanted(
        frozenset(map(plain, identities)),
        frozenset(_hex(value, _SHA256, "--sha256 takes 64 hex digits") for value in contents),
        frozenset(_hex(value, _SAMPLE, "--sample takes a sample_id, 8 to 64 hex digits") for value in samples),
    )


def _hex(value: str, form: re.Pattern[str], wanted: str) -> str:
    if not form.fullmatch(value.strip().lower()):
        raise BadInput(f"{wanted}, got {value[:80]!r}.")
    return value.strip().lower()


@dataclass
class Found:
    """What the run holds of the wanted; the counts are those of `Forgetting`."""

    wish: Wish = field(default_factory=Wish)
    there: set[str] = field(default_factory=set)
    """Of the wanted values, those that the run has."""
    items: int = 0
    samples: int = 0
    elsewhere: int = 0
    alike: int = 0
    near_duplicates: int = 0
    touched: set[str] = field(default_factory=set)


def find(run: RunLayout, wanted: Wanted) -> Found:
    """The items of the wanted: asked for, or taken for them by the run, and then all items of the same bytes."""
    found = Found()
    taken = {row["sample_id"] for row in read_standing(run.root).to_pylist() if _of(row["clean_identity"], wanted)}
    for rows in rows_of(run.manifest, "part-*", ("sample_id", "verdict", "other_identity", "clean_identity")):
        for row in rows:
            is_proposed = row["verdict"] == "relabel" and _of(row["other_identity"], wanted)
            if row["sample_id"] and (is_proposed or _of(row["clean_identity"], wanted)):
                taken.add(row["sample_id"])
    bytes_of: set[str] = set(wanted.contents)
    columns = ("identity", "sample_id", "content_sha256", "status", "near_duplicate_set")
    for rows in _items(run, columns):
        for row in rows:
            is_named = _of(row["identity"], wanted) and row["status"] != STATUS
            if is_named or row["sample_id"] in wanted.samples or row["sample_id"] in taken or row["content_sha256"] in wanted.contents:
                found.there |= {plain(row["identity"]), row["sample_id"] or "", row["content_sha256"] or ""}
                bytes_of |= {row["content_sha256"]} if row["content_sha256"] else set()
    names: Counter[str] = Counter({name: 0 for name in wanted.identities})
    contents: Counter[str] = Counter({content: 0 for content in bytes_of})
    gone: set[str] = set(wanted.samples)
    alike: set[str] = set()
    spelt = {" ".join(words_of(name)) for name in wanted.identities} - {""}
    for rows in _items(run, columns):
        for row in rows:
            is_named = _of(row["identity"], wanted) and row["status"] != STATUS
            is_same = row["content_sha256"] in bytes_of
            if not is_named and not is_same:
                alike |= {row["identity"]} if spelt and " ".join(words_of(row["identity"])) in spelt else set()
                continue
            found.items += 1
            found.samples += row["status"] == "ok"
            found.elsewhere += not is_named and row["content_sha256"] not in wanted.contents
            gone |= {row["sample_id"]} if row["sample_id"] else set()
            names.update([plain(row["identity"])] if is_named else [])
            contents.update([row["content_sha256"]] if is_same else [])
            found.touched |= {plain(row["identity"])} if not is_named and row["status"] == "ok" else set()
    found.alike = len(alike)
    found.near_duplicates = _near_duplicates(run, gone)
    found.wish = Wish(dict(names), dict(contents), frozenset(gone))
    return found


def _near_duplicates(run: RunLayout, gone: set[str]) -> int:
    """Samples that stay, though an embedding or a perceptual hash says that they show the same photograph as one that goes."""
    sets: set[str] = set()
    for rows in _items(run, ("sample_id", "near_duplicate_set")):
        sets |= {row["near_duplicate_set"] for row in rows if row["sample_id"] in gone and row["near_duplicate_set"]}
    found: set[str] = set()
    for rows in _items(run, ("sample_id", "near_duplicate_set")):
        found |= {row["sample_id"] for row in rows if row["near_duplicate_set"] in sets}
    for rows in rows_of(run.manifest, "part-*", ("sample_id", "near_duplicate_of", "copy_of")):
        for name in ("near_duplicate_of", "copy_of"):
            found |= {row["sample_id"] for row in rows if row[name] in gone}
            found |= {row[name] for row in rows if row["sample_id"] in gone and row[name]}
    return len(found - gone)


def _of(name: str | None, wanted: Wanted) -> bool:
    return name is not None and bool(wanted.identities) and unicodedata.normalize("NFC", name) in wanted.identities


def _items(run: RunLayout, columns: tuple[str, ...]) -> Iterator[list[dict[str, Any]]]:
    """Rows of the raw twins, or of the manifest where somebody removed the raw folder."""
    is_raw = any(run.raw.glob("raw-*.parquet"))
    return rows_of(run.raw, "raw-*", columns) if is_raw else rows_of(run.manifest, "part-*", columns)


def rows_of(folder: Path, pattern: str, columns: tuple[str, ...]) -> Iterator[list[dict[str, Any]]]:
    for path in sorted(folder.glob(f"{pattern}.parquet")):
        yield pq.read_table(path, columns=list(columns)).to_pylist()


def require_found(found: Found, known: Forgotten, names: Sequence[str], contents: Sequence[str], samples: Sequence[str]) -> None:
    """Each thing asked for is in the run, or was forgotten earlier. A name is told by its place in the command: messages end in logs."""
    for option, values, kind in (("--identity", names, "identity"), ("--sha256", contents, "content"), ("--sample", samples, "sample")):
        for number, value in enumerate(values, 1):
            form = plain(value) if kind == "identity" else value.strip().lower()
            if form not in found.there and not known.has(kind, form):
                raise BadInput(
                    f"{option} number {number} is not in this run, so nothing was forgotten. Names are compared exactly, but for Unicode form: "
                    "`purify query RUN 'SELECT identity FROM identities'` lists them. To keep it out of later crawls all the same: --in-advance."
                )
