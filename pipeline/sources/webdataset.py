"""WebDataset tars: pictures with a `.json`, `.cls` or `.txt` of the same key that names the identity. One slice is one tar."""

from collections.abc import Iterator
from pathlib import Path

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.sources.base import PICTURES, Item, Listing, license_of, named, text_or_none
from pipeline.sources.tar_pictures import SUFFIXES, TarPicture, facts_of, list_tars, read_pictures, tar_of


def recognises(look: Look) -> bool:
    """True for a tar, for tars by a pattern, and for a folder with tars in it, or in its first folder."""
    return any(places.name_of(name).lower().endswith(SUFFIXES) for level in look.levels for name in level)


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """List the tars. A folder that holds pictures beside its tars is refused: half of it would be left out in silence."""
    listing, tars = list_tars(crawl, plan, config)
    if not tars:
        raise BadCrawl(f"{places.recorded(crawl)} holds no tar. WebDataset shards are named .tar, .tar.gz or .tgz.")
    if places.is_folder(crawl, config):
        loose = sum(entry.path.rpartition(".")[2].lower() in PICTURES for entry in places.walk(crawl))
        if loose:
            raise BadCrawl(
                f"{crawl} holds tars and {loose} pictures outside of them. Give the tars, or the pictures, a place of their own."
            )
    return listing


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the tar of that number, in order; damage to the tar is an item too."""
    del crawl
    for found in read_pictures(*tar_of(plan, number), config):
        yield _item(found, config)


def _item(found: TarPicture, config: IngestConfig) -> Item:
    facts = facts_of(found.beside)
    name = facts.get(config.identity_key)
    for kind in ("cls", "txt"):
        if name is None and kind in found.beside:
            name = found.beside[kind].decode("utf-8", "backslashreplace").strip()
    identity, problem = named(name)
    if name is None:
        problem = "bad_identity", f"no {config.identity_key!r} in its .json, no .cls, no .txt"
    return Item(
        found.uri,
        identity,
        found.content,
        landmarks=facts.get("landmarks"),
        source_url=text_or_none(facts.get("url")),
        caption=text_or_none(facts.get("caption")),
        license=license_of(facts),
        problem=found.problem or problem,
    )
