"""What img2dataset leaves behind: tars of pictures, each with a Parquet twin that has a row for every URL of the list. One slice is one tar.

The identity is a column of the twin (`ingest.identity_key`), which img2dataset copies from the URL list when it is told to
(`--save_additional_columns`), or else a field of the `.json`. The `.txt` is a caption. URLs that could not be downloaded are rows too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.looks import Look
from pipeline.sources.base import LICENSE, Item, Listing, Problem, digest_of, license_of, named, text_or_none, unreadable, uri_text
from pipeline.sources.tar_pictures import TarPicture, facts_of, list_tars, read_pictures, tar_of, write_tars

_COLUMNS = ("key", "status", "error_message", "url", "caption", *LICENSE)


def recognises(look: Look) -> bool:
    """True for a folder that has, beside its first tars, Parquet with the columns `key` and `status`."""
    if look.kind != "folder":
        return False
    for level in look.levels:
        if any(name.endswith(".tar") for name in level):
            twins = [name for name in level if name.endswith(".parquet")]
            return any(_is_twin(places.join(look.crawl, name), look.config) for name in twins[:3])
    return False


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """List the tars with their twins. A twin whose tar is gone is a slice too: of rows that say so."""
    listing, tars = list_tars(crawl, plan, config)
    base, twins = places.matching(crawl, config, (".parquet",))
    expected = {_twin(tar.path) for tar in tars}
    known = [twin for twin in twins if twin.path in expected or _is_twin(places.join(base, twin.path), config)]
    lost = [f"{twin.path.removesuffix('.parquet')}.tar" for twin in known if twin.path not in expected]
    twin_marks = {twin.path: digest_of(twin.path, twin.size, twin.mark) for twin in known}
    tar_marks = {tar.path: digest_of(tar.path, tar.size, tar.mark) for tar in tars} | dict.fromkeys(lost, 0)
    write_tars(plan, base, {path: (mark + twin_marks.get(_twin(path), 0)) % 2**128 for path, mark in tar_marks.items()})
    digest = sum(twin_marks.values())
    slices = listing.slices + len(lost)
    return Listing(listing.items + len(lost), listing.total_bytes, slices, f"{(int(listing.digest, 16) + digest) % 2**128:032x}")


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the tar of that number, then a row for every line of its twin that has no picture in the tar."""
    del crawl
    base, path = tar_of(plan, number)
    shown = uri_text(_twin(path))
    try:
        lines = _read_twin(places.join(base, _twin(path)), config)
    except OSError as error:
        lines = {}
        yield Item(f"{shown}#damage", "", problem=("unreadable", f"the Parquet twin cannot be read: {unreadable(error)[1]}"))
    unseen = dict.fromkeys(lines)
    for found in read_pictures(base, path, config):
        line = lines.get(found.name)
        unseen.pop(found.name, None)
        yield _item(found, line, config)
    for key in unseen:
        line = lines[key]
        identity = named(line.get(config.identity_key))[0]
        yield Item(
            f"{shown}#key={uri_text(key)}",
            identity,
            source_url=text_or_none(line.get("url")),
            caption=text_or_none(line.get("caption")),
            license=license_of(line),
            problem=failure(line) or ("unreadable", "downloaded, says the Parquet twin, but not in the tar"),
        )


def failure(line: dict[str, Any]) -> Problem | None:
    """Why a line of img2dataset's has no picture; None when it says `success`, or nothing."""
    status = line.get("status")
    if not isinstance(status, str) or status == "success":
        return None
    message = line.get("error_message")
    return "unreadable", f"{printable_text(status)}: {printable_text(message)}" if message else printable_text(status)


def printable_text(value: object) -> str:
    """At most 300 characters of a foreign message."""
    return uri_text(str(value))[:300]


def _item(found: TarPicture, line: dict[str, Any] | None, config: IngestConfig) -> Item:
    facts = facts_of(found.beside)
    line = line or {}
    value = line.get(config.identity_key)
    value = facts.get(config.identity_key) if value is None else value
    identity, problem = named(value)
    if value is None:
        wanted = f"no {config.identity_key!r} in the Parquet twin and the .json; img2dataset's --save_additional_columns keeps it"
        problem = "bad_identity", wanted
    url, caption = (line.get(name) if line.get(name) is not None else facts.get(name) for name in ("url", "caption"))
    return Item(
        found.uri,
        identity,
        found.content,
        landmarks=facts.get("landmarks"),
        source_url=text_or_none(url),
        caption=text_or_none(caption),
        license=license_of(line, facts),
        problem=found.problem or problem,
    )


def _read_twin(place: str, config: IngestConfig) -> dict[str, dict[str, Any]]:
    """Lines of a twin by key. Raises OSError, also for what is no Parquet."""
    try:
        with places.open_seekable(place, config) as file, pq.ParquetFile(file) as table:
            wanted = [name for name in (*_COLUMNS, config.identity_key) if name in table.schema_arrow.names]
            lines: dict[str, dict[str, Any]] = {}
            for batch in table.iter_batches(columns=list(dict.fromkeys(wanted))):
                for line in batch.to_pylist():
                    key = str(line.get("key"))
                    lines[f"{key}#{len(lines)}" if key in lines else key] = line
            return lines
    except (pa.ArrowException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}"[:300]) from error


def _is_twin(place: str, config: IngestConfig) -> bool:
    try:
        with places.open_seekable(place, config) as file:
            return {"key", "status"} <= set(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return False


def _twin(tar: str) -> str:
    for suffix in (".tar.gz", ".tgz", ".tar"):
        if tar.lower().endswith(suffix):
            return f"{tar[: -len(suffix)]}.parquet"
    return f"{tar}.parquet"
