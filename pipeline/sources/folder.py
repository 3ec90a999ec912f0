"""A folder per identity: `crawl/<identity>/**/<file>`, local or in a store.

Items are sliced in the order of a hash of their path, so that each raw shard mixes identities, as training wants, and a slice stays the
same when the file system lists in another order.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.looks import Look
from pipeline.sources import file_plan
from pipeline.sources.base import Item, Listing, named, steering_key, unreadable, uri_text

_FOLDERS_REMEMBERED = 1000


def recognises(look: Look) -> bool:
    """True for any folder."""
    return look.kind == "folder"


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """List the crawl into the plan, in slicing order."""
    return file_plan.write(plan, ((entry, None) for entry in places.walk(crawl)), config)


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the slice, in the plan's order."""
    of_folder = lru_cache(_FOLDERS_REMEMBERED)(named)
    for file in file_plan.read(plan, number, config):
        name = os.fsdecode(file.path)
        folder, slash, _ = name.partition("/")
        identity, problem = of_folder(folder) if slash else ("", ("bad_identity", "the file stands outside of any identity's folder"))
        if (bad := steering_key(name)) is not None:
            yield Item(uri_text(name), identity, problem=bad)
            continue
        try:
            content = places.read_file(places.join(crawl, name), config, size=file.size)
        except OSError as error:
            yield Item(uri_text(name), identity, problem=unreadable(error))
        else:
            yield Item(uri_text(name), identity, content, problem=problem)


def count_identities(plan: Path, config: IngestConfig) -> dict[str, int]:
    """Files by the folder they stand in."""
    del config
    counts: dict[str, int] = {}
    for path, _ in file_plan.paths(plan):
        folder, slash, _ = os.fsdecode(path).partition("/")
        if slash:
            counts[named(folder)[0]] = counts.get(named(folder)[0], 0) + 1
    return counts
