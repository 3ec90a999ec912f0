"""WebDataset tars: images with a `.json`, `.cls` or `.txt` of the same key that names the identity. One slice is one tar."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.shards import TarItem, read_tar
from pipeline.sources.base import Item, Listing, digest_of, printable


def recognises(crawl: Path) -> bool:
    """True for a tar, and for a folder with tars in it."""
    return crawl.suffix == ".tar" or (crawl.is_dir() and any(crawl.glob("*.tar")))


def list_slices(crawl: Path, plan: Path, config: IngestConfig) -> Listing:
    """List the tars. A folder with tars and other folders in it is refused: half of it would be left out in silence."""
    del plan, config
    tars = _tars(crawl)
    if crawl.is_dir() and (folders := [path.name for path in crawl.iterdir() if path.is_dir()]):
        raise BadCrawl(f"{crawl} holds tars and {len(folders)} folders. Give the tars, or the folder of identities, a place of their own.")
    digest = total = 0
    for tar in tars:
        facts = tar.stat()
        total += facts.st_size
        digest = (digest + digest_of(tar.name, facts.st_size, facts.st_mtime_ns)) % 2**128
    return Listing(len(tars), total, len(tars), f"{digest:032x}")


def read_slice(crawl: Path, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the tar of that number, in order; damage to the tar is an item too."""
    del plan
    tar = _tars(crawl)[number]
    seen: Counter[str] = Counter()
    for found in read_tar(tar, max_item_bytes=config.max_item_bytes):
        if isinstance(found, str):
            yield Item(f"{printable(tar.name)}#damage", "", problem=("unreadable", found))
            continue
        seen[found.name] += 1
        repeat = f"#{seen[found.name]}" if seen[found.name] > 1 else ""
        yield _item(found, f"{printable(tar.name)}/{printable(found.name)}{repeat}", config)


def _item(found: TarItem, uri: str, config: IngestConfig) -> Item:
    try:
        facts = json.loads(found.beside["json"]) if "json" in found.beside else {}
        facts = facts if isinstance(facts, dict) else {}
    except (ValueError, RecursionError):
        facts = {}
    named = facts.get(config.identity_key)
    for extension in ("cls", "txt"):
        if named is None and extension in found.beside:
            named = found.beside[extension].decode("utf-8", "backslashreplace").strip()
    identity = printable(str(named)) if isinstance(named, str | int) else ""
    if found.content is None:
        return Item(uri, identity, problem=("too_large", f"more than {config.max_item_bytes} bytes"))
    if not identity:
        wanted = f"no {config.identity_key!r} in its .json, no .cls, no .txt"
        return Item(uri, identity, found.content, problem=("bad_identity", wanted))
    return Item(uri, identity, found.content, landmarks=facts.get("landmarks"))


def _tars(crawl: Path) -> list[Path]:
    return [crawl] if crawl.is_file() else sorted(crawl.glob("*.tar"))
