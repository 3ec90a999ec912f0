"""Readers of raw crawls. A source lists the crawl into slices; a slice is read by one worker.

SOURCES is in order of trial: the first whose `recognises` says yes reads the crawl, unless the setting `ingest.source` names one.
"""

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.sources import folder, webdataset
from pipeline.sources.base import Item, Listing, Source

SOURCES: dict[str, Source] = {
    "webdataset": Source(
        webdataset.recognises, webdataset.list_slices, webdataset.read_slice, "WebDataset tars with the identity in .json, .cls or .txt"
    ),
    "folder": Source(folder.recognises, folder.list_slices, folder.read_slice, "a folder per identity", folder.count_identities),
}


def recognise(crawl: str, config: IngestConfig) -> str:
    """Name of the source that reads this crawl. Raises BadCrawl when nothing is there, or nothing that is known."""
    look = places.look(crawl, config)
    if config.source != "auto":
        return config.source
    for name, source in SOURCES.items():
        if source.recognises(look):
            return name
    forms = "; ".join(source.reads for source in SOURCES.values())
    raise BadCrawl(
        f"{places.recorded(crawl)} is no crawl that is known. What is read: {forms}. See docs/crawls.md, or force one by --source."
    )


__all__ = ["SOURCES", "Item", "Listing", "Source", "recognise"]
