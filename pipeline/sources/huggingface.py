"""A dataset directory as the Hugging Face Hub has them: Parquet shards with an `image` column, or an imagefolder.

Parquet shards are read like any table; the identities of a ClassLabel column are numbers, whose names stand in the Parquet schema or in the
YAML head of the README.md. An imagefolder has pictures in folders by split and class (`train/<identity>/1.jpg`), or anywhere, with a
`metadata.csv` or `.jsonl` beside them. All splits are read: who holds identities out is for the run to decide.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.duck import literal, spilling
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.sources import file_plan, table, text_tables
from pipeline.sources.base import Item, Listing, Problem, bad_key, license_of, named, require_regular, steering_key, unreadable, uri_text

SPLITS = frozenset("train training test testing validation valid val dev eval evaluation".split())
_METADATA = ("metadata.csv", "metadata.jsonl")
_OTHER = frozenset(("README.md", "dataset_infos.json", "dataset_info.json", "LICENSE", *_METADATA))
_LABELS = ("label", "labels", "identity", "name")
_BATCH = 50_000
_Named = tuple[places.Entry, str | None]


def recognises(look: Look) -> bool:
    """True for Parquet shards with Hugging Face's schema or README, or with nothing but such shards below the first level; for a `metadata`
    file, and for folders that are all named after splits.
    """
    if look.kind != "folder":
        return False
    names = [name for level in look.levels for name in level]
    shards = [name for name in names if name.endswith(".parquet")]
    if shards:
        return _has_features(places.join(look.crawl, shards[0]), look.config) or (
            ("README.md" in look.top and _readme(look.crawl, look.config) != {})
            or (shards[0] not in look.top and all(name in shards or name in _OTHER for name in names))
        )
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in _METADATA and folder.lower() in {"", *SPLITS}:
            return _names_files(places.join(look.crawl, name), look.config)
    return bool(look.folders) and {name.lower() for name in look.folders} <= SPLITS


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """List the Parquet shards, or the pictures with the line of metadata that names each."""
    files = [
        entry for entry in places.matching(crawl, config, (".parquet",))[1] if not entry.path.split("/")[-1].startswith(("_", "metadata."))
    ]
    shards = [entry for entry in files if entry.kind == "file"]
    if files and not shards and not any(entry.kind == "file" for entry in _pictures(crawl)):
        require_regular(crawl, files)
    (plan / "form.json").write_text(json.dumps({"is_parquet": bool(shards)}), "utf-8")
    if shards:
        identity, names = _label(crawl, shards[0].path, config)
        return table.list_tables(crawl, files, plan, config, identity=identity, names=names)
    found = sorted(entry.path for entry in places.walk(crawl) if entry.path.rpartition("/")[2] in _METADATA)
    if found:
        return list_named(_pictures(crawl), (line for path in found for line in _lines(crawl, path, config)), plan, config)
    (plan / "form.json").write_text(json.dumps({"is_parquet": False, "has_metadata": False}), "utf-8")
    return file_plan.write(plan, ((entry, None) for entry in _pictures(crawl)), config)


def list_named(pictures: Iterator[places.Entry], lines: Iterator[tuple[bytes, str]], plan: Path, config: IngestConfig) -> Listing:
    """The listing of pictures and of lines that name them: (path, JSON of what is known of it). What lacks its other half is an item too."""
    (plan / "form.json").write_text(json.dumps({"is_parquet": False, "has_metadata": True}), "utf-8")
    listed = pa.schema([("path", pa.binary()), ("size", pa.int64()), ("mark", pa.string())])
    _write(plan / "listed.parquet", listed, ((os.fsencode(one.path), one.size, one.mark) for one in pictures))
    _write(plan / "named.parquet", pa.schema([("path", pa.binary()), ("extra", pa.string())]), lines)
    return file_plan.write(plan, _joined(plan), config)


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the slice."""
    form = json.loads((plan / "form.json").read_text("utf-8"))
    if form["is_parquet"]:
        yield from table.read_slice(crawl, plan, number, config)
        return
    for file in file_plan.read(plan, number, config):
        name = os.fsdecode(file.path)
        facts = json.loads(file.extra) if file.extra is not None else {}
        identity, problem = _identity(name, facts, has_metadata=form["has_metadata"])
        content = b""
        if file.size < 0:
            problem = bad_key(name) or ("unreadable", "named by the metadata, but not there")
        elif (bad := steering_key(name)) is not None:
            problem = bad
        else:
            try:
                content = places.read_file(places.join(crawl, name), config, size=file.size)
            except OSError as error:
                problem = unreadable(error)
        yield Item(
            uri_text(name),
            identity,
            content,
            source_url=facts.get("url"),
            caption=facts.get("caption"),
            license=facts.get("license"),
            problem=problem,
        )


def count_identities(plan: Path, config: IngestConfig) -> dict[str, int]:
    """Items by identity."""
    form = json.loads((plan / "form.json").read_text("utf-8"))
    if form["is_parquet"]:
        return table.count_identities(plan, config)
    counts: dict[str, int] = {}
    for path, extra in file_plan.paths(plan):
        facts = json.loads(extra) if extra is not None else {}
        identity, problem = _identity(os.fsdecode(path), facts, has_metadata=form["has_metadata"])
        if problem is None:
            counts[identity] = counts.get(identity, 0) + 1
    return counts


def _identity(path: str, facts: dict[str, Any], *, has_metadata: bool) -> tuple[str, Problem | None]:
    if has_metadata:
        if not facts:
            return "", ("bad_identity", "no line of the metadata names it")
        return named(facts.get("identity"))
    parts = path.split("/")
    if len(parts) < 3:
        return "", ("bad_identity", "the file stands outside of any identity's folder")
    return named(parts[1])


def _pictures(crawl: str) -> Iterator[places.Entry]:
    for entry in places.walk(crawl):
        name = entry.path.rpartition("/")[2]
        if name not in _OTHER and not name.startswith(".git"):
            yield entry


def _lines(crawl: str, path: str, config: IngestConfig) -> Iterator[tuple[bytes, str]]:
    """(path of the picture, JSON of what the line says of it)"""
    folder = path.rpartition("/")[0]
    place = places.join(crawl, path)
    try:
        for row in text_tables.text_rows(place, config):
            file = row.get("file_name")
            name = next((row[key] for key in (config.identity_key, *_LABELS) if row.get(key)), None)
            about = {"identity": name, "caption": row.get("caption") or row.get("text"), "url": row.get("url"), "license": license_of(row)}
            yield os.fsencode(f"{folder}/{file}" if folder and file else file or f"{path}#"), json.dumps(about)
    except (OSError, csv.Error) as error:
        raise BadCrawl(f"{place} cannot be read: {error}. Mend it, or take it out of the crawl.") from error


def _joined(plan: Path) -> Iterator[_Named]:
    """Every picture with its line, every picture without one, and every line without a picture (size -1)."""
    with spilling(plan / "spill") as db:
        rows = db.execute(
            """
            SELECT coalesce(l.path, n.path), coalesce(size, -1), coalesce(mark, ''), extra
            FROM read_parquet(?) l FULL JOIN (SELECT path, min(extra) AS extra FROM read_parquet(?) GROUP BY path) n ON l.path = n.path
            """,
            [literal(plan / "listed.parquet"), literal(plan / "named.parquet")],
        )
        while some := rows.fetchmany(_BATCH):
            for path, size, mark, extra in some:
                yield places.Entry(os.fsdecode(bytes(path)), size, mark), extra


def _write(path: Path, schema: pa.Schema, rows: Iterator[tuple[object, ...]]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[tuple[object, ...]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                writer.write_table(_table(batch, schema))
                batch.clear()
        writer.write_table(_table(batch, schema))


def _table(rows: list[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def _names_files(place: str, config: IngestConfig) -> bool:
    try:
        return "file_name" in text_tables.first_row(place, config)
    except (OSError, csv.Error):
        return False


def _has_features(place: str, config: IngestConfig) -> bool:
    try:
        with places.open_seekable(place, config) as file:
            return b"huggingface" in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _label(crawl: str, path: str, config: IngestConfig) -> tuple[str, list[str] | None]:
    """(column of the identity, its names where it holds numbers)"""
    try:
        with places.open_seekable(places.join(crawl, path), config) as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise BadCrawl(
            f"{places.join(crawl, path)} is no whole Parquet file: {error}. Fetch it anew, or take it out of the crawl."
        ) from error
    described = _readme(crawl, config)
    columns = list(schema.names)
    if config.identity_key in columns:
        return config.identity_key, described.get(config.identity_key)
    classes = [name for name in columns if table.class_names(schema, name) or name in described]
    is_marked = bool(described) or b"huggingface" in (schema.metadata or {})  # else a `name` may be a file's
    column = next((name for name in (*classes, *(_LABELS if is_marked else ())) if name in columns), config.identity_key)
    return column, described.get(column)


def _readme(crawl: str, config: IngestConfig) -> dict[str, list[str]]:
    """Names of the classes by column, as the YAML head of the README.md has them."""
    try:
        text = places.read_file(places.join(crawl, "README.md"), config).decode("utf-8", "replace")
        _, head, _ = text.split("---\n", 2)
        info = yaml.safe_load(head)["dataset_info"]
        found: dict[str, list[str]] = {}
        for one in info if isinstance(info, list) else [info]:
            for feature in one["features"]:
                kind = feature.get("dtype")
                if isinstance(kind, dict) and "class_label" in kind:
                    names = kind["class_label"]["names"]
                    found[feature["name"]] = (
                        [str(names[key]) for key in sorted(names, key=int)] if isinstance(names, dict) else list(map(str, names))
                    )
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return {}
