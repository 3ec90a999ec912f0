"""A look at a crawl from outside, by which a source recognises it. Nothing is opened, and no more is listed than it takes."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.places import children, facts, is_pattern, join, matching, name_of, recorded

_DEPTH = 4
_SHOWN = 1000


@dataclass(frozen=True)
class Look:
    """What a crawl looks like from outside, for a source to recognise. Each level is listed once, and no more than it takes."""

    crawl: str
    kind: Literal["file", "folder", "pattern"]
    levels: tuple[tuple[str, ...], ...]
    """Files by level, relative to the crawl: of the folder, of its first folder, and so on; the first thousand by name. A file's own name."""
    folders: tuple[str, ...]
    """Folders of the first level, the first thousand by name."""
    config: IngestConfig

    @property
    def top(self) -> tuple[str, ...]:
        return self.levels[0]


def look(crawl: str, config: IngestConfig) -> Look:
    """A look at the crawl. Raises BadCrawl when nothing is there."""
    if is_pattern(crawl) and (found := matching(crawl, config)):
        return Look(crawl, "pattern", (tuple(entry.path for entry in found[1]),), (), config)
    entry = facts(crawl, config)
    if entry is None:
        raise BadCrawl(f"There is no crawl at {recorded(crawl)}. Check the path; `purify demo` makes one to try.")
    if entry.kind != "folder":
        return Look(crawl, "file", ((name_of(crawl),),), (), config)
    levels, folders, below = [], [], ""
    for _ in range(_DEPTH):
        files, deeper = _smallest(join(crawl, below))
        levels.append(tuple(f"{below}/{name}" if below else name for name in files))
        if not below:
            folders = deeper
        if not deeper:
            break
        below = f"{below}/{deeper[0]}" if below else deeper[0]
    return Look(crawl, "folder", tuple(levels), tuple(folders), config)


def _smallest(place: str) -> tuple[list[str], list[str]]:
    """(files, folders) of a folder, a thousand of each, first by name; what starts with a dot or an underscore is not looked at."""
    kept: dict[bool, list[str]] = {True: [], False: []}
    for entry in children(place):
        if entry.path.startswith((".", "_")):
            continue
        names = kept[entry.kind == "folder"]
        names.append(entry.path)
        if len(names) > 4 * _SHOWN:
            kept[entry.kind == "folder"] = sorted(names)[:_SHOWN]
    return sorted(kept[False])[:_SHOWN], sorted(kept[True])[:_SHOWN]
