"""What `purify export` wrote, in each of its forms, with the identities that it was exported with; the splits are read together.

dataset.json says which form it is, and which files hold its samples; identities.json has the names. Both are written last and no form tells as much
by itself: class indices are counted in each split anew, names of folders are encoded, and a column may be called `jpg`. So an export is read whole or
refused, and what its files hold is read as any crawl's: pictures, tars and tables are hostile here too.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.looks import Look
from pipeline.sources import huggingface, recordio, table, tar_pictures, webdataset
from pipeline.sources.base import Item, Listing, digest_of, named

_DATASET, _IDENTITIES = "dataset.json", "identities.json"
_NAMES = pa.schema([("split", pa.string()), ("class_index", pa.int64()), ("identity", pa.string()), ("samples", pa.int64())])
_BATCH = 50_000
_LONGEST_LINE = 1 << 16
_LOOKED_INTO = 4
"""Folders of a crawl that are looked into for an export; a crawl in a store may have millions, and each look is a request."""


@dataclass(frozen=True)
class _Told:
    """dataset.json, as far as it is needed."""

    form: str
    files: Mapping[str, tuple[int, int]]
    """Those that hold samples, or tell of some: bytes and samples by path."""

    def of(self, suffix: str) -> dict[str, tuple[int, int]]:
        """The files with that suffix."""
        return {path: facts for path, facts in self.files.items() if path.endswith(suffix)}


@dataclass(frozen=True)
class _Form:
    suffix: str
    """Of the files that hold samples, or that tell of them."""
    list_slices: Callable[[str, list[places.Entry], Path, IngestConfig], Listing]
    """(crawl, its files of that suffix, folder for the plan, settings)"""
    read_slice: Callable[[str, Path, int, IngestConfig], Iterator[Item]]
    counts_files: bool = False
    """Its listing knows no samples, which dataset.json does."""
    also: str | None = None
    """Another source that reads it as well, when it is told to."""


def recognises(look: Look) -> bool:
    """True for a folder with the dataset.json of an export."""
    return look.kind == "folder" and _DATASET in look.top and _told(look.crawl, look.config) is not None


def refuse_other(look: Look, source: str) -> None:
    """Raise BadCrawl when a source is named for an export that would misread it: with class numbers or names of folders for identities, or nothing."""
    if look.kind == "folder" and _DATASET in look.top and (told := _told(look.crawl, look.config)) and source != _FORMS[told.form].also:
        raise BadCrawl(
            f"{places.recorded(look.crawl)} is an export of purify ({told.form}), which the source {source} would misread. Leave --source out."
        )


def refuse_folder_of_exports(look: Look) -> None:
    """Raise BadCrawl for a folder whose first folders are exports, each a crawl of its own: they would be read as people, or as one table of all."""
    found = [name for name in look.folders[:_LOOKED_INTO] if look.kind == "folder" and _told(places.join(look.crawl, name), look.config)]
    if found and _DATASET not in look.top:
        raise BadCrawl(
            f"{places.recorded(look.crawl)} holds exports of purify ({', '.join(found)}), each of which is a crawl. Give one of them."
        )


def list_slices(crawl: str, plan: Path, config: IngestConfig) -> Listing:
    """List the export by its form. Raises BadCrawl when it is none, or when a file is not there as it was written."""
    told = _told(crawl, config)
    if told is None:
        raise BadCrawl(f"{places.recorded(crawl)} has no dataset.json of `purify export`. Leave --source out, and see docs/crawls.md.")
    form = _FORMS[told.form]
    files = places.matching(crawl, config, (form.suffix,))[1]
    _require_whole(crawl, files, told.of(form.suffix))
    (plan / "export.json").write_text(json.dumps({"form": told.form}), "utf-8")
    _write_names(crawl, plan, config)
    listing = form.list_slices(crawl, files, plan, _settings(config))
    if form.counts_files:
        listing = replace(listing, items=sum(samples for _, samples in told.of(form.suffix).values()))
    names = places.facts(places.join(crawl, _IDENTITIES), config)
    mark = digest_of(_IDENTITIES, names.size, names.mark) if names else 0
    return replace(listing, digest=f"{(int(listing.digest, 16) + mark) % 2**128:032x}")


def read_slice(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Items of the slice, as the source of its form reads them."""
    yield from _FORMS[json.loads((plan / "export.json").read_text("utf-8"))["form"]].read_slice(crawl, plan, number, _settings(config))


def count_identities(plan: Path, config: IngestConfig) -> dict[str, int]:
    """Samples by identity, as identities.json has them."""
    del config
    counts: dict[str, int] = {}
    for row in pq.read_table(plan / "names.parquet", columns=["identity", "samples"]).to_pylist():
        name = named(row["identity"])[0]
        counts[name] = counts.get(name, 0) + row["samples"]
    return counts


def _settings(config: IngestConfig) -> IngestConfig:
    """Exports call their columns and keys always the same."""
    return replace(config, identity_key="identity", image_column=None)


def _told(crawl: str, config: IngestConfig) -> _Told | None:
    try:
        told = json.loads(places.read_file(places.join(crawl, _DATASET), config))
        files = {str(one["name"]): (int(one["bytes"]), int(one["samples"])) for one in told["files"] if "samples" in one}
        form = str(told["format"])
        return _Told(form, files) if form in _FORMS and "fingerprint" in told else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _require_whole(crawl: str, files: list[places.Entry], whole: Mapping[str, tuple[int, int]]) -> None:
    """The files that are told of are there in their length, and no others."""
    sizes = {one.path: one.size for one in files if one.kind == "file"}
    where = places.recorded(crawl)
    for path, (size, _) in whole.items():
        if sizes.get(path) != size:
            what = f"has {sizes[path]:,} bytes, and {size:,} were written" if path in sizes else "is gone"
            raise BadCrawl(f"{where}: {path} {what}, says its dataset.json. Fetch or export it anew.")
    if more := sorted(sizes.keys() - whole.keys()):
        raise BadCrawl(f"{where} is an export, and {more[0]} is no part of it, says its dataset.json. Give it a place of its own.")


def _write_names(crawl: str, plan: Path, config: IngestConfig) -> None:
    """identities.json as names.parquet in the plan, some at a time."""
    place = places.join(crawl, _IDENTITIES)
    batch: list[dict[str, Any]] = []
    try:
        with pq.ParquetWriter(plan / "names.parquet", _NAMES) as writer:
            for row in _names(place, config):
                batch.append(row)
                if len(batch) == _BATCH:
                    writer.write_table(pa.Table.from_pylist(batch, _NAMES))
                    batch.clear()
            writer.write_table(pa.Table.from_pylist(batch, _NAMES))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise BadCrawl(
            f"{places.recorded(place)} is not as `purify export` wrote it ({type(error).__name__}), and without it nobody is named. Export anew."
        ) from error


def _names(place: str, config: IngestConfig) -> Iterator[dict[str, Any]]:
    """{split, class_index, identity, samples} of each line of an identity."""
    split, count = None, 0
    with places.open_file(place, config) as file:
        while line := file.readline(_LONGEST_LINE):
            text = line.decode("utf-8").strip().rstrip(",")
            if text.endswith(": ["):
                split, count = json.loads(text.removesuffix(": [")), 0
            elif text.startswith("{") and text != "{":
                row = json.loads(text)
                if row["class_index"] != count:
                    raise ValueError("classes out of their order")
                count += 1
                yield {"split": split, **{name: row[name] for name in _NAMES.names[1:]}}
            elif text not in {"{", "}", "]", ""}:
                raise ValueError("another layout")


# --- the forms


def _list_tars(crawl: str, files: list[places.Entry], plan: Path, config: IngestConfig) -> Listing:
    del files
    return tar_pictures.list_tars(crawl, plan, config)[0]


def _list_tables(crawl: str, files: list[places.Entry], plan: Path, config: IngestConfig) -> Listing:
    return table.list_tables(crawl, files, plan, config, identity="identity")


def _list_records(crawl: str, files: list[places.Entry], plan: Path, config: IngestConfig) -> Listing:
    del files
    return recordio.list_slices(crawl, plan, config)


def _read_records(crawl: str, plan: Path, number: int, config: IngestConfig) -> Iterator[Item]:
    """Of train.rec and val/train.rec, each with its own count of classes."""
    names = pq.read_table(plan / "names.parquet")
    of_split = {split: names.filter(pc.equal(names["split"], split))["identity"] for split in names["split"].unique().to_pylist()}
    for item in recordio.read_slice(crawl, plan, number, config):
        folder, slash, _ = item.source_uri.partition("#")[0].rpartition("/")
        identities = of_split.get(folder if slash else "train", [])
        label = int(item.identity) if item.identity else -1
        if 0 <= label < len(identities):
            yield replace(item, identity=identities[label].as_py())
        elif item.problem is not None:
            yield replace(item, identity="")
        else:
            yield replace(item, identity="", problem=("bad_identity", f"identities.json has no class {label} in this split"))


def _list_pictures(crawl: str, files: list[places.Entry], plan: Path, config: IngestConfig) -> Listing:
    tables = {one.path for one in files if one.kind == "file"}
    own = tables | {_DATASET, _IDENTITIES, "_receipt.json"}
    pictures = (entry for entry in places.walk(crawl) if entry.path not in own)
    return huggingface.list_named(pictures, _lines(crawl, sorted(tables), config), plan, config)


def _lines(crawl: str, tables: list[str], config: IngestConfig) -> Iterator[tuple[bytes, str]]:
    """(path of the picture, JSON of what is known of it) from metadata/*.parquet"""
    for path in tables:
        place = places.join(crawl, path)
        try:
            with places.open_seekable(place, config) as file, pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_BATCH, columns=["file_name", "identity", "source_url", "license"]):
                    for row in batch.to_pylist():
                        about = {"identity": row["identity"], "caption": None, "url": row["source_url"], "license": row["license"]}
                        yield row["file_name"].encode("utf-8", "surrogateescape"), json.dumps(about)
        except (OSError, pa.ArrowException, AttributeError, KeyError) as error:
            raise BadCrawl(f"{places.recorded(place)} is no whole table of an export: {error}. Export it anew.") from error


_FORMS: dict[str, _Form] = {
    "webdataset": _Form(".tar", _list_tars, webdataset.read_slice, counts_files=True, also="webdataset"),
    "imagefolder": _Form(".parquet", _list_pictures, huggingface.read_slice),
    "recordio": _Form(".rec", _list_records, _read_records, counts_files=True),
    "parquet": _Form(".parquet", _list_tables, table.read_slice),
    "hf": _Form(".parquet", _list_tables, table.read_slice, also="huggingface"),
}
