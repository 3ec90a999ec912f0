"""Readers of raw crawls. A source lists the crawl into slices; a slice is read by one worker.

SOURCES is in order of trial: the first whose `recognises` says yes reads the crawl.
"""

from pipeline.sources import folder, webdataset
from pipeline.sources.base import Item, Listing, Source

SOURCES: dict[str, Source] = {
    "webdataset": Source(webdataset.recognises, webdataset.list_slices, webdataset.read_slice),
    "folder": Source(folder.recognises, folder.list_slices, folder.read_slice),
}

__all__ = ["SOURCES", "Item", "Listing", "Source"]
