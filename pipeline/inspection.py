"""What a crawl is, before anything is done with it: who reads it, how much there is, how a sample of it fares, and what a run would make.

Nothing is written but the picture sheet, when one is asked for; the plan goes into a temporary folder that is removed. Names are in what is
returned, for the screen; they are logged nowhere.
"""

import contextlib
import io
import statistics
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from pipeline import faces, places
from pipeline.config import Config
from pipeline.errors import BadCrawl, BadInput
from pipeline.examine import examine
from pipeline.fanout import worker_count
from pipeline.minds import minds_of_sample
from pipeline.pictures import NOT_READ
from pipeline.receipts import atomic
from pipeline.sources import SOURCES, Item, Listing, recognise
from pipeline.visible import counted

_TARS = frozenset({"webdataset", "img2dataset"})
_UNCOUNTED = frozenset({*_TARS, "recordio"})
"""Sources whose listing counts something else: tars, and records that hold no pictures too."""
_SLICES = 16
"""Slices that the sample is drawn from."""
_SHOWN = 5
_SHEET = 10, 8
"""Crops across and down."""
_TAR_OVERHEAD = 1_792
"""Of a sample in a shard: two headers, a JSON member of one block, and half a block of filling behind the picture."""
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    **NOT_READ,
}


@dataclass(frozen=True)
class Inspection:
    """What was found. Counts of identities are exact when `identities_are_exact`, else those of the sample."""

    crawl: str
    source: str
    reads: str
    """What that source reads, in words."""
    items: int
    """Listed, or for tars estimated from the sample (`items_are_exact`)."""
    items_are_exact: bool
    total_bytes: int
    shards: int
    """That ingest would make."""
    identities: int
    identities_are_exact: bool
    largest: tuple[tuple[str, int], ...]
    """(identity, items)"""
    smallest: tuple[tuple[str, int], ...]
    """Of those that are not among the largest."""
    sampled: int
    statuses: dict[str, int]
    """Items of the sample by what ingest would say of them."""
    problems: tuple[tuple[str, str], ...]
    """(source_uri, detail) of some that would not become samples."""
    formats: dict[str, int]
    side_px: tuple[int, int, int] | None
    """Least, median and largest shorter side of the sample's pictures."""
    item_bytes: tuple[int, int, int] | None
    disk_bytes: int
    """Rough need of a run."""
    warnings: tuple[str, ...]
    would_do: tuple[str, ...]


def inspect(crawl: places.Location, config: Config, *, sample: int = 300, sheet: Path | None = None) -> Inspection:
    """Look at a crawl: its listing, and `sample` items from slices spread over it, the same ones every time.

    Raises BadCrawl, and BadConfig for a detector without its file: as ingest would. BadInput: when the sheet cannot be written there.
    """
    place = places.located(crawl)
    if sheet is not None and (sheet.suffix.lower() not in {".jpg", ".jpeg"} or sheet.exists() or not sheet.parent.is_dir()):
        raise BadInput(f"{sheet} has to be a new .jpg file in a folder that is there.")
    if sheet is not None and not places.is_remote(place) and Path(place) in sheet.resolve().parents:
        raise BadInput(f"{sheet} lies in the crawl, and would be read as a part of it. Give a place outside of {place}.")
    name = recognise(place, config.ingest)
    faces.inputs(config.ingest)
    source = SOURCES[name]
    with tempfile.TemporaryDirectory(prefix="purify-inspect-") as temporary:
        plan = Path(temporary)
        listing = source.list_slices(place, plan, config.ingest)
        if listing.items == 0:
            raise BadCrawl(f"{places.recorded(place)} is empty. docs/crawls.md shows what a crawl looks like.")
        items, is_whole = _sample(name, place, plan, listing, config, sample)
        exact = source.count_identities(plan, config.ingest) if source.count_identities else None
    rows, crops = [], []
    for item in items:
        for row, crop in examine(item, config.ingest):
            rows.append(row)
            if crop is not None:
                crops.append((item.identity, crop))
    if sheet is not None:
        _write_sheet(sheet, crops)
    counts = exact if exact is not None else dict(Counter(item.identity for item in items if item.identity))
    is_exact = is_whole or name not in _UNCOUNTED
    sizes = [len(item.content) for item in items if item.content]
    total = len(items) if is_whole else _estimated(listing, sizes) if name in _TARS else listing.items
    order = sorted(((who, count) for who, count in counts.items() if who), key=lambda one: (-one[1], one[0]))
    sides = sorted(min(row["width_px"], row["height_px"]) for row in rows if row.get("width_px"))
    statuses = dict(Counter(str(row["status"]) for row in rows).most_common())
    mean_crop = statistics.fmean(len(crop) for _, crop in crops) if crops else 0.0
    share = len(crops) / len(rows) if rows else 0.0
    per_sample = 2 * (mean_crop + _TAR_OVERHEAD) + 4 * config.train.embedding_dim * (config.rounds + 1)
    with tempfile.TemporaryDirectory(prefix="purify-inspect-") as temporary:
        minds = minds_of_sample(rows, round(total * share), config, Path(temporary))
    return Inspection(
        crawl=places.recorded(place),
        source=name,
        reads=source.reads,
        items=total,
        items_are_exact=is_exact,
        total_bytes=listing.total_bytes,
        shards=listing.slices,
        identities=len(order),
        identities_are_exact=exact is not None or is_whole,
        largest=tuple(order[:_SHOWN]),
        smallest=tuple(reversed(order[max(_SHOWN, len(order) - _SHOWN) :])),
        sampled=len(items),
        statuses=statuses,
        problems=tuple((row["source_uri"], str(row["status_detail"])) for row in rows if row["status"] != "ok")[:_SHOWN],
        formats=dict(Counter(_form(item.content) for item in items if item.content).most_common()),
        side_px=(sides[0], sides[len(sides) // 2], sides[-1]) if sides else None,
        item_bytes=(min(sizes), int(statistics.median(sizes)), max(sizes)) if sizes else None,
        disk_bytes=int(total * share * per_sample),
        warnings=(*_warnings(counts, rows_by_status=statuses, items=items, is_exact=exact is not None or is_whole, config=config), *minds),
        would_do=tuple(_would_do(listing, config)),
    )


def _sample(name: str, place: str, plan: Path, listing: Listing, config: Config, sample: int) -> tuple[list[Item], bool]:
    """(items from the beginnings of slices that lie evenly over the crawl, whether that is all of it)"""
    count = min(_SLICES, listing.slices, sample)
    found: list[Item] = []
    is_whole = count == listing.slices
    for number in range(count):
        which = number * listing.slices // count
        wanted = (number + 1) * sample // count - number * sample // count
        items = SOURCES[name].read_slice(place, plan, which, config.ingest)
        with contextlib.closing(items):  # type: ignore[type-var]  # a generator
            found += islice(items, wanted)
            is_whole = is_whole and next(items, None) is None
    return found, is_whole


def _estimated(listing: Listing, sizes: list[int]) -> int:
    return round(listing.total_bytes / (statistics.fmean(sizes) + _TAR_OVERHEAD)) if sizes else 0


def _warnings(
    counts: Mapping[str, int], *, rows_by_status: Mapping[str, int], items: list[Item], is_exact: bool, config: Config
) -> Iterator[str]:
    where = "" if is_exact else " of the sample"
    alike: dict[str, list[str]] = defaultdict(list)
    for who in sorted(counts):
        if who:
            alike[unicodedata.normalize("NFKC", who).casefold()].append(who)
    same = [names for names in alike.values() if len(names) > 1]
    if same:
        yield f"{len(same)} names{where} differ in letter case or form alone, as {' and '.join(same[0])}: they stay different identities."
    if is_exact and (alone := sum(count == 1 for count in counts.values())):
        yield f"{alone} identities have one item: it is its own center, so it can only be reviewed."
    if len([who for who in counts if who]) < 2:
        yield f"fewer than two identities{where}: there is nothing to tell apart."
    links = sum(item.problem is not None and item.problem[1].startswith("a link") for item in items)
    if links:
        yield f"{links} items of the sample are links, which are not followed."
    sampled = sum(rows_by_status.values())
    bad = sampled - rows_by_status.get("ok", 0)
    if sampled and bad / sampled > config.ingest.max_bad_items:
        yield f"{bad} of {sampled} items of the sample are no samples; above {config.ingest.max_bad_items:.0%} a run stops (ingest.max_bad_items)."


def _would_do(listing: Listing, config: Config) -> Iterator[str]:
    finder = {
        "none": "take pictures as crops, or by the landmarks beside them",
        "landmarks": f"align by the landmarks of {config.ingest.landmarks}",
    }.get(config.ingest.detector, f"find faces with {config.ingest.detector}")
    yield f"ingest: {finder}; {counted(listing.slices, 'raw shard')}, by {counted(min(worker_count(config.workers), listing.slices), 'process', 'processes')}"
    learned = (
        f"train {config.train.backbone} for {counted(config.train.epochs, 'epoch')}, embed"
        if config.embedder.model is None
        else "embed by the model given, find centers"
    )
    yield f"{counted(config.rounds, 'round')}: {learned}, isolate by the rule {config.isolate.rule}"
    yield "a manifest row for every item, clean shards, evaluation, audit page"


def _form(content: bytes) -> str:
    if content[4:8] == b"ftyp":
        return "AVIF or HEIC"
    return next((name for magic, name in _MAGIC.items() if content.lstrip()[: len(magic)] == magic), "something else")


def _write_sheet(sheet: Path, crops: list[tuple[str, bytes]]) -> None:
    """A sheet of crops, those of an identity side by side."""
    across, down = _SHEET
    step = max(1, len(crops) // (across * down))
    shown = sorted(crops[::step][: across * down], key=lambda one: one[0])
    side = 112
    page = Image.new("RGB", (across * side, max(1, -(-len(shown) // across)) * side), "white")
    for number, (_, crop) in enumerate(shown):
        with Image.open(io.BytesIO(crop)) as picture:
            page.paste(picture.convert("RGB").resize((side, side)), (number % across * side, number // across * side))
    with atomic(sheet) as temporary:
        page.save(temporary, "JPEG", quality=90)
