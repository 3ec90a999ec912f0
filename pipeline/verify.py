"""What a folder of shards holds against what it says that it holds: raw/, clean/, a whole run, or an export; on a disk or at a URL.

Every file is hashed; of a tar the keys are compared with its twin, of a Parquet file the rows are counted, of an image folder every picture is
hashed; and what is there without being told of is found too. Nothing is changed. The other tables of a run (lists of identities, manifest, rounds,
evaluation, decisions), its models and its records have no SHA-256: they are read to their end, and have to be whole by their own words.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import pyarrow as pa

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadInput
from pipeline.fanout import fan_out
from pipeline.file_checks import READ, Checked, Expected, Finding, check, in_words, not_told_of, table_of
from pipeline.layout import RunLayout
from pipeline.mirroring import index
from pipeline.places import Location, join
from pipeline.receipts import NAME as RECEIPT
from pipeline.receipts import Progress, partials
from pipeline.run_folder import mended, require_whole
from pipeline.sources.base import uri_text
from pipeline.status import NAME as STATUS

DATASET = "dataset.json"
_LISTS = {"identities.parquet", "listing.parquet"}
_WITHOUT_HASH = {DATASET, RECEIPT}
_MAIN = ("raw", "manifest", "clean")
"""What every finished run has; `purify forget` removes the audit page, which `purify export` makes again."""
_OF_A_ROUND = ("train", "embeddings", "noise")


@dataclass
class Verified:
    """What was looked at, and all that is wrong."""

    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    is_unfinished: bool = False
    """Of a run: stages are still to be done, or to be done anew, so that what was looked at is not all that will be there."""
    there: list[str] = field(default_factory=list)
    """Of an unfinished run: folders of finished stages, in order."""
    missing: list[str] = field(default_factory=list)
    """Of an unfinished run: folders that are not there yet. There may be more rounds."""


def verify(place: Location, *, workers: int = 0, progress: Progress | None = None) -> Verified:
    """What is wrong with a folder; no findings when all is well.

    Raises BadInput: when there is nothing, or nothing that tells what it holds. BadCrawl: when a store cannot be asked. StaleInput: for a run, or a
    folder in one, in which a `purify forget` is not finished.
    """
    root = places.located(place)
    if not places.is_remote(root):
        for run in (Path(root), Path(root).parent):
            require_whole(RunLayout(run))
    if places.is_web(root):
        raise BadInput(
            f"{places.shown(root)} is read by http, which cannot list a folder. Fetch it, and give a folder; or a URL such as s3://bucket/prefix."
        )
    if not places.is_folder(root, READ):
        raise BadInput(f"There is no folder at {place}. {_begun(place)}Give a run, or a folder of shards.")
    if ".partial-" in Path(str(place)).name:
        raise BadInput(f"{place} is not finished. Give the command that began it again: it goes on, and gives the folder its name.")
    if _is_copy(root):
        return _of_copy(root, workers, progress)
    is_run = places.facts(join(root, "run.json"), READ) is not None
    parts = [f"{name}/" for name in ("raw", "clean") if places.is_folder(join(root, name), READ)] if is_run else [""]
    folders = [_Folder.of(join(root, part.rstrip("/"))) for part in parts]
    if is_run:
        parts, folders = [*parts, ""], [*folders, _Folder(root, None, None, _tables(root))]
    checked = iter(fan_out(check, [one for folder in folders for one in folder.expected], workers=workers, progress=progress))
    whole = Verified()
    for part, folder in zip(parts, folders, strict=True):
        mine = list(itertools.islice(checked, len(folder.expected)))
        whole.files += sum(one.files for one in mine)
        whole.bytes += sum(one.bytes for one in mine)
        found = [finding for one in mine for finding in one.findings]
        if part or not is_run:
            found += _counts(folder) + _not_told_of(folder, mine)
        whole.findings += sorted(Finding(part + one.name, one.what) for one in found)
    if is_run:
        _look_at_stages(root, whole)
    return whole


def _is_copy(root: str) -> bool:
    return places.is_remote(root) and places.facts(join(root, index.NAME), READ) is not None and _dataset(root) is None


def _of_copy(url: str, workers: int, progress: Progress | None) -> Verified:
    """The copy of a run: each object that its index names."""
    standing = index.read(url)
    if standing is None:
        raise BadInput(f"{url} is being written. Give the same command again.")
    paths = {one.sha256: path for path, one in standing.files.items()}
    expected = [
        Expected(url, f"{index.OBJECTS}/{sha256}", "bytes", standing.files[path].size, sha256) for sha256, path in sorted(paths.items())
    ]
    whole = Verified(files=len(standing.files))
    for one, done in zip(expected, fan_out(check, expected, workers=workers, progress=progress), strict=True):
        whole.bytes += done.bytes
        whole.findings += [Finding(f"{paths[one.sha256 or '']}, {finding.name}", finding.what) for finding in done.findings]
    return whole


def _look_at_stages(root: str, whole: Verified) -> None:
    """Which stages of a run are finished; of a finished run, what is gone of its main outputs is a finding."""
    try:
        is_finished = bool(json.loads(places.read_file(join(root, "run.json"), READ)).get("finished"))
    except (OSError, ValueError, AttributeError) as error:
        whole.findings.append(Finding("run.json", f"cannot be read: {error}"))
        return
    if is_finished and places.facts(join(root, STATUS), READ) is None:
        whole.findings += [Finding(f"{name}/", "is not there") for name in _MAIN if not places.is_folder(join(root, name), READ)]
        return
    rounds = sorted({1} | {int(one.path) for one in _children(join(root, "rounds")) if one.path.isdecimal()})
    stages = [
        "raw",
        *(f"rounds/{number}/{stage}" for number in rounds for stage in _OF_A_ROUND),
        "manifest",
        "clean",
        "evaluation",
        "audit",
    ]
    whole.is_unfinished = True
    for name in stages:
        is_there = places.facts(join(root, f"{name}/{RECEIPT}"), READ) is not None
        (whole.there if is_there else whole.missing).append(f"{name}/")


def _children(place: str) -> list[places.Entry]:
    return list(places.children(place)) if places.is_folder(place, READ) else []


def _begun(place: Location) -> str:
    """What to say of an export that was to be there."""
    if places.is_remote(place) or not (found := partials(Path(places.located(place)))):
        return ""
    return f"An export to it was begun and not finished ({found[0]}): give its command again, and it goes on. "


@dataclass(frozen=True)
class _Folder:
    """One folder of shards, and what is told of it."""

    root: str
    told: dict[str, Any] | None
    """dataset.json, which raw/ has not."""
    form: str | None
    """Of an export."""
    expected: list[Expected]

    @classmethod
    def of(cls, root: str) -> Self:
        told = _dataset(root)
        form = str(told.get("format")) if told and "files" in told else None
        return cls(root, told, form, _raw(root) if told is None else _of_dataset(root, told, form))


def _dataset(root: str) -> dict[str, Any] | None:
    try:
        told = json.loads(places.read_file(join(root, DATASET), IngestConfig(max_item_bytes=2**31)))
        if not isinstance(told, dict) or not {"files", "shards"} & set(told):
            raise BadInput(f"{join(root, DATASET)} tells of no files. It is not one of ours.")
        return told
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{join(root, DATASET)} cannot be read: {error}. It is damaged, or not one of ours.") from error


def _raw(root: str) -> list[Expected]:
    tables = sorted(entry.path for entry in places.children(root) if entry.path.endswith(".parquet"))
    names = [name for name in tables if name.startswith("raw-")]
    if not names:
        raise BadInput(f"{root} has neither {DATASET} nor raw shards. Give a run folder, its raw/ or clean/, or an export.")
    listed = [Expected(root, name, "table") for name in tables if name in _LISTS]
    return [one for name in names for one in _shard(root, name.removesuffix(".parquet"), {})] + listed


def _tables(root: str) -> list[Expected]:
    """Tables, models and records of a run, but for those of raw/ and clean/, its pages, and run.json, which is looked at by itself."""
    kinds: dict[str, Literal["table", "tensors", "json"]] = {".parquet": "table", ".safetensors": "tensors", ".json": "json"}
    names = [
        entry.path
        for entry in places.walk(root)
        if "/" in entry.path
        and entry.path.split("/")[0] not in ("raw", "clean", "audit")
        and not any(part[0] == "." for part in entry.path.split("/"))
    ]
    return [Expected(root, name, kinds[suffix]) for name in sorted(names) if (suffix := PurePosixPath(name).suffix) in kinds]


def _of_dataset(root: str, told: dict[str, Any], form: str | None) -> list[Expected]:
    try:
        if form is None:
            return [one for shard in told["shards"] for one in _shard(root, shard["name"].removesuffix(".tar"), shard)]
        return [_exported(root, form, one) for one in told["files"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{join(root, DATASET)} does not tell of files as ours do ({error}). It is damaged, or not one of ours.") from error


def _shard(root: str, stem: str, told: dict[str, Any]) -> list[Expected]:
    tar = Expected(root, f"{stem}.tar", "tar", told.get("bytes"), told.get("sha256"), told.get("samples"))
    return [tar, Expected(root, f"{stem}.parquet", "twin")]


def _exported(root: str, form: str, told: dict[str, Any]) -> Expected:
    name = str(told["name"])
    kind: Literal["tar", "parquet", "pictures", "lines", "bytes"] = "bytes"
    if name.endswith(".tar"):
        kind = "tar"
    elif name.endswith(".parquet"):
        kind = "pictures" if form == "imagefolder" else "parquet"
    elif name.endswith(".lst"):
        kind = "lines"
    return Expected(root, name, kind, told["bytes"], told["sha256"], told.get("samples"))


def _counts(folder: _Folder) -> list[Finding]:
    """What is wrong with the list of identities, against dataset.json."""
    root, told, form = folder.root, folder.told, folder.form
    if told is None:
        return []
    try:
        if form is None:
            with places.open_seekable(join(root, "identities.parquet"), READ) as file:
                samples = sum(table_of(file, ["samples"])["samples"].to_pylist())
            wrong = Finding("identities.parquet", f"has {samples} samples, {told['samples']} are told of")
            return [] if samples == told["samples"] else [wrong]
        splits = _splits(root)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return [Finding("identities.json" if form else "identities.parquet", f"cannot be read: {in_words(error)}")]
    wanted = {name: (one["identities"], one["samples"]) for name, one in told["splits"].items()}
    return [] if splits == wanted else [Finding("identities.json", f"has (identities, samples) {splits}, {wanted} are told of")]


def _splits(root: str) -> dict[str, tuple[int, int]]:
    """split -> (identities, samples) of identities.json, a line at a time."""
    found: dict[str, tuple[int, int]] = {}
    split = ""
    with places.open_file(join(root, "identities.json"), READ) as file:
        for line in file:
            text = line.strip().rstrip(b",")
            if text.startswith(b'"'):
                split = json.loads(text.partition(b":")[0])
                found[split] = 0, 0
            elif text.startswith(b'{"'):
                row = json.loads(text)
                identities, samples = found[split]
                if row["class_index"] != identities:
                    raise ValueError(f"class index {row['class_index']} stands where {identities} is to be")
                found[split] = identities + 1, samples + row["samples"]
    return found


def _not_told_of(folder: _Folder, checked: list[Checked]) -> list[Finding]:
    """Files that are there and should not be."""
    expected = {one.name for one in folder.expected}
    allowed = expected | _WITHOUT_HASH
    if folder.form is None:
        allowed |= {f"{name.removesuffix('.tar')}.sha256" for name in expected} | _LISTS
    pictures = [one.pictures for one in checked if one.pictures is not None]
    return [Finding(uri_text(path), "is there, and nothing tells of it") for path in not_told_of(folder.root, allowed, pictures)]


def advice(place: Location, findings: Sequence[Finding]) -> str:
    """What to do about findings."""
    name = Path(str(place)).name
    if _is_copy(places.located(place)):
        return "Remove these objects, and `purify push` from the run folder: what is not there is sent again."
    if name in {"raw", "clean"}:
        return f"Remove {place} and give the same `purify run` again: it will be made anew."
    if places.facts(join(places.located(place), "run.json"), READ) is None:
        return f"Remove {place}, and give the command again that wrote it: what is there would be taken for whole."
    if all(one.name == "run.json" for one in findings):
        return mended("run.json")
    return (
        "Remove the folder of what is damaged (raw/, clean/, manifest/, rounds/1/noise/, rounds/1/train/), and give the same `purify run` again: "
        "it will be made anew."
    )
