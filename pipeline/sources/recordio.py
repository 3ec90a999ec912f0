"""insightface's `train.rec`, without MXNet: the identity is the record's (first) label, a whole number.

The file is cut into blocks of sixteen records; a slice takes its blocks from all over the file, in the order of a hash, because such files
are sorted by identity and training wants them mixed. Blocks tile the file, so whatever an index leaves out, and all damage, is read and has
its row. With a `.idx` beside it the file is not read for listing; without, headers are stepped through once.

insightface's first record holds the numbers of its identity records, which stand behind the pictures; they hold two numbers each, and no
picture, and are no items.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline import places, recordio
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.sources.base import Item, Listing, Problem, digest_of, irregular, named, order_of, require_regular, unreadable, uri_text

_BLOCK = 16
_EXACT = 2**24
"""Above, float32 does not hold every whole number, so two identities could have become one when the file was written."""


def recognises(look: Look) -> bool:
    """True for a `.rec` file, and for a folder with one on its first level."""
    return any(name.lower().endswith(".rec") for name in look.top)


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """Cut the files into blocks, and put the blocks into slices."""
    if places.is_web(crawl):
        raise BadCrawl(
            f"{places.recorded(crawl)} would be read here and there, which http does not allow: download it, or put it into s3:// or gs://."
        )
    base, files = places.matching(crawl, config, (".rec",))
    if not files:
        raise BadCrawl(f"{crawl} holds no .rec file.")
    require_regular(crawl, files)
    blocks: list[NDArray[np.int64]] = []
    items = digest = 0
    for number, entry in enumerate(files):
        found, count = _blocks(base, entry, config)
        items += count
        blocks.append(np.column_stack([np.full(len(found), number), found]))
        digest = (digest + digest_of(entry.path, entry.size, entry.mark)) % 2**128
    all_blocks = np.concatenate(blocks)
    order = np.array([order_of(f"{files[number].path}#{start}".encode()) for number, start, _ in all_blocks.tolist()], np.uint64)
    np.save(plan / "blocks.npy", all_blocks[np.argsort(order, kind="stable")])
    listed = {"base": base, "paths": [entry.path for entry in files], "sizes": [entry.size for entry in files]}
    (plan / "records.json").write_text(json.dumps(listed), "utf-8")
    total = sum(entry.size for entry in files)
    if not items:
        what = f"no record among {total:,} bytes: another file by this name, or a transfer that went wrong" if total else "no bytes"
        raise BadCrawl(f"{places.shown(crawl)} has {what}. Fetch it anew; a train.rec of insightface begins with the bytes 0a 23 d7 ce.")
    return Listing(items, total, -(-len(all_blocks) // _per_slice(config)), f"{digest:032x}")


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the slice's blocks, in the order in which they stand in the files."""
    del crawl
    listed = json.loads((plan / "records.json").read_text("utf-8"))
    base, paths, sizes = listed["base"], listed["paths"], listed["sizes"]
    many = _per_slice(config)
    blocks = sorted(np.load(plan / "blocks.npy", mmap_mode="r")[number * many : (number + 1) * many].tolist())
    for which, path in enumerate(paths):
        mine = [(start, end) for file, start, end in blocks if file == which]
        if mine:
            yield from _read(base, path, sizes[which], mine, config)


def _read(base: str, path: str, size: int, blocks: list[tuple[int, int]], config: IngestConfig) -> Iterator[Item]:
    shown = uri_text(path)
    try:
        with places.open_file(places.join(base, path), config) as file:
            for start, end in blocks:
                for record in recordio.read(file, start, end, size, limit=config.max_item_bytes):
                    item = _item(f"{shown}#byte={record.start}", record, config)
                    if item is not None:
                        yield item
    except OSError as error:
        yield Item(f"{shown}#damage={blocks[0][0]}", "", problem=unreadable(error))


def _item(uri: str, record: recordio.Record, config: IngestConfig) -> Item | None:
    if record.problem is not None:
        return Item(uri, "", problem=("unreadable", record.problem))
    if record.too_large:
        return Item(uri, "", problem=("too_large", f"more than {config.max_item_bytes} bytes"))
    found = recordio.image_record(record.content)
    if found is None:
        return Item(uri, "", problem=("unreadable", "a record that is too short for its header"))
    if found.has_vector and not found.content:
        return None  # one of insightface's identity records
    identity, problem = _identity(found.labels[0])
    return Item(uri, identity, found.content, problem=problem)


def _identity(label: float) -> tuple[str, Problem | None]:
    if not math.isfinite(label) or label != int(label):
        return "", ("bad_identity", f"the label {label} is no whole number")
    if abs(label) > _EXACT:
        return str(int(label)), ("bad_identity", f"the label {int(label)} is beyond {_EXACT}, where float32 merges neighbours")
    return named(int(label))


def _blocks(base: str, entry: places.Entry, config: IngestConfig) -> tuple[NDArray[np.int64], int]:
    """(blocks [N, 2] of first and last byte + 1, number of records) of a file; one of each for what is none, which becomes a row."""
    if irregular(entry.kind) is not None:
        return np.array([[0, max(1, entry.size)]], np.int64), 1
    place = places.join(base, entry.path)
    try:
        with places.open_file(place, config) as file:
            known = _index(place, config)
            begin, count = _starts(file, entry.size, known)
            if known is not None and not (count and (places.is_remote(place) or all(_is_start(file, start) for start in begin))):
                begin, count = _starts(file, entry.size, None)  # the index is another file's, or none
    except OSError as error:
        raise BadCrawl(f"{place} cannot be read: {unreadable(error)[1]}. Check its permissions.") from error
    edges = np.unique(np.concatenate([[0], begin, [entry.size]]).astype(np.int64))
    return np.column_stack([edges[:-1], edges[1:]]), count


def _starts(file: BinaryIO, size: int, known: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], int]:
    """(first byte of every sixteenth record, number of records)."""
    kept, count = [], 0
    for count, start in enumerate(recordio.starts(file, size, known), start=1):
        if count % _BLOCK == 1:
            kept.append(start)
    return np.array(kept, np.int64), count


def _is_start(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    return file.read(4) == recordio.MAGIC


def _index(place: str, config: IngestConfig) -> NDArray[np.int64] | None:
    """Offsets of the `.idx` beside the file: lines of key and offset. None when there is none, or when it is no index."""
    beside = f"{place[:-4]}.idx"
    if places.facts(beside, config) is None:
        return None
    try:
        with places.open_file(beside, config) as file:
            return np.fromiter((int(line.split()[1]) for line in file), np.int64)
    except (OSError, ValueError, IndexError, OverflowError):
        return None


def _per_slice(config: IngestConfig) -> int:
    return max(1, config.samples_per_shard // _BLOCK)
