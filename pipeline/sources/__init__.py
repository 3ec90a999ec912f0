"""Readers of raw crawls. A source lists the crawl into slices; a slice is read by one worker.

SOURCES is in order of trial: the first whose `recognises` says yes reads the crawl, unless the setting `ingest.source` names one.
"""

from pathlib import Path

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import look as look_at
from pipeline.outside import is_run
from pipeline.sources import exported, file_plan, folder, huggingface, img2dataset, recordio, table, tar_pictures, webdataset
from pipeline.sources.base import Item, Listing, Source

SOURCES: dict[str, Source] = {
    "export": Source(
        exported.recognises, exported.list_slices, exported.read_slice, "what `purify export` wrote, in any form", exported.count_identities
    ),
    "recordio": Source(recordio.recognises, recordio.list_slices, recordio.read_slice, "insightface's train.rec, with or without .idx"),
    "img2dataset": Source(
        img2dataset.recognises,
        img2dataset.list_slices,
        img2dataset.read_slice,
        "img2dataset's tars, each with its Parquet twin",
        growth=tar_pictures.GROWTH,
    ),
    "webdataset": Source(
        webdataset.recognises,
        webdataset.list_slices,
        webdataset.read_slice,
        "WebDataset tars with the identity in .json, .cls or .txt",
        growth=tar_pictures.GROWTH,
    ),
    "huggingface": Source(
        huggingface.recognises,
        huggingface.list_slices,
        huggingface.read_slice,
        "a Hugging Face dataset: Parquet shards, or an imagefolder",
        huggingface.count_identities,
    ),
    "table": Source(
        table.recognises,
        table.list_slices,
        table.read_slice,
        "a Parquet, CSV, TSV or JSON lines table with a column of identities, and one of pictures, paths or URLs",
        table.count_identities,
    ),
    "folder": Source(
        folder.recognises, folder.list_slices, folder.read_slice, "a folder per identity", folder.count_identities, file_plan.GROWTH
    ),
}


def recognise(crawl: str, config: IngestConfig) -> str:
    """Name of the source that reads this crawl. Raises BadCrawl when nothing is there, or nothing that is known; for a run, and a folder of exports."""
    look = look_at(crawl, config)
    if look.kind == "folder" and not places.is_remote(crawl) and is_run(Path(crawl)):
        raise BadCrawl(f"{places.recorded(crawl)} is a run of purify, not a crawl. Give its clean/, or what `purify export` wrote of it.")
    if config.source != "auto":
        if config.source != "export":
            exported.refuse_other(look, config.source)
        return config.source
    exported.refuse_folder_of_exports(look)
    for name, source in SOURCES.items():
        if source.recognises(look):
            return name
    forms = "; ".join(source.reads for source in SOURCES.values())
    raise BadCrawl(
        f"{places.recorded(crawl)} is no crawl that is known. What is read: {forms}. See docs/crawls.md, or force one by --source."
    )


__all__ = ["SOURCES", "Item", "Listing", "Source", "recognise"]
