"""An export: planned, written, told of by dataset.json, sealed. Of the same samples and settings it has the same bytes, whatever the workers.

Class indices, folder names and counts stand in identities.json; every file with its SHA-256 in dataset.json, for which `purify verify` looks.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import receipts
from pipeline.errors import BadConfig, BadInput, BadShard
from pipeline.exporters import EXPORTERS, recordio, stream
from pipeline.exporters.base import FileFacts, Job, Wanted, hand_over
from pipeline.exporters.place import DATASET, require_free
from pipeline.exporters.plan import Plan, make_plan
from pipeline.fanout import prepare, worker_count, workers_kept
from pipeline.hashed import HashedFile
from pipeline.places import Location, is_remote, join, located
from pipeline.receipts import Counts, Progress, Receipt, fingerprint, mark_of, require_space, run_stage, write_json
from pipeline.shards import shard_stems
from pipeline.stores import is_empty, read_json, require_store, upload

VERSION = 1
IDENTITIES = "identities.json"
LEAST_BYTES = 10_240
"""Of a shard: a tar ends with zeros up to there."""


def plan_only(clean: Path, wanted: Wanted) -> Plan:
    """What an export would hold. Writes nothing that stays."""
    wanted = _checked(wanted)
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(clean, Path(folder), wanted, EXPORTERS[wanted.form])


def require_place(out: Location, wanted: Wanted, clean: Path | None) -> None:
    """Raise BadInput when a folder may not take this export of `clean`, as `export_to` does before it writes; None: of clean shards still to be made.

    Nothing is asked of a store.
    """
    wanted = _checked(wanted)
    if not is_remote(out):
        require_free(Path(located(out)), _stage(wanted), None if clean is None else _mark(clean, wanted))


def export_to(
    clean: Path, out: Location, wanted: Wanted, *, workers: int = 0, work: Path | None = None, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`, an export of the finished folder `clean`. Killed, it goes on with what is not written yet.

    What stands in `out` is replaced whole, so a file that it does not tell of is in the way, when it begins and when it ends.
    `out` may be the URL of a store: then parts are made in a folder inside of `work`, a place on a disk, and moved as they are proven; there
    is nothing to rename in a store, so dataset.json comes last, and an export without it is not finished.
    Raises BadConfig: for settings without sense. BadInput: when `out` holds anything but an earlier export of this form, or that and
    other files, when no sample is left, and when a store does not take it. NoSpace: before anything is written. BadShard: when a clean shard is damaged,
    or an export that is finished lacks a file.
    """
    wanted = _checked(wanted)
    stage, mark = _stage(wanted), _mark(clean, wanted)
    if is_remote(out):
        return _into_store(clean, require_store(str(out)), wanted, stage, mark, work or clean.parent, workers, progress)
    out = Path(located(out))
    require_free(out, stage, mark)

    def write(folder: Path) -> Counts:
        if not (folder / DATASET).exists():
            write_json(folder / DATASET, _fill(folder, clean, wanted, mark, workers, None, progress))
        for rest in (".plan", ".parts"):
            shutil.rmtree(folder / rest, ignore_errors=True)
        require_free(out, stage, mark)  # hours later
        return _counts(json.loads((folder / DATASET).read_text("utf-8")))

    try:
        receipt = run_stage(out, stage=stage, mark=mark, work=write)
    except BadInput:
        _remove_unplanned(receipts.partials(out))
        raise
    if receipt.reused:
        _require_files(out)
    return receipt


def _stage(wanted: Wanted) -> str:
    return f"export {wanted.form}"


def _mark(clean: Path, wanted: Wanted) -> str:
    return fingerprint(_stage(wanted), VERSION, wanted.settings(), clean=mark_of(clean))


def _remove_unplanned(begun: list[Path]) -> None:
    """Remove what was begun and could not even be planned: there is nothing in it to go on from."""
    for folder in begun:
        if not (folder / ".plan" / "plan.json").exists() and not (folder / DATASET).exists():
            shutil.rmtree(folder)


def _require_files(out: Path) -> None:
    for file in json.loads((out / DATASET).read_text("utf-8"))["files"]:
        path = out / file["name"]
        size = path.stat().st_size if path.exists() else None
        if size != file["bytes"]:
            what = "is gone" if size is None else f"has {size:,} bytes, and {file['bytes']:,} were written"
            raise BadShard(f"{path} {what} since this export was finished. Remove {out} and give the same command again.")


def _into_store(
    clean: Path, url: str, wanted: Wanted, stage: str, mark: str, work: Path, workers: int, progress: Progress | None
) -> Receipt:
    if EXPORTERS[wanted.form].is_many_files:
        raise BadConfig(f"An {wanted.form} is a file for every picture, which no store is made for. Give --to webdataset or parquet.")
    standing = read_json(join(url, DATASET))
    if standing is not None:
        if standing.get("fingerprint") != mark:
            raise BadInput(f"{url} holds another data set. Give an empty prefix: what is published is not changed.")
        return Receipt(stage, mark, _counts(standing), 0.0, reused=True)
    folder = work / f".export.partial-{fingerprint(stage, VERSION, {}, url=url, mark=mark)[:16]}"
    if not folder.exists() and not is_empty(url):
        raise BadInput(f"{url} is not empty, and what is in it was not begun from here. Give an empty prefix.")
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        told = _fill(folder, clean, wanted, mark, workers, url, progress)
    except BadInput:
        _remove_unplanned([folder])
        raise
    write_json(folder / DATASET, told)
    upload(folder / DATASET, join(url, DATASET))
    shutil.rmtree(folder)
    return Receipt(stage, mark, _counts(told), round(time.perf_counter() - started, 3))


def _fill(
    folder: Path, clean: Path, wanted: Wanted, mark: str, workers: int, store: str | None, progress: Progress | None
) -> dict[str, Any]:
    """Write all files of an export but dataset.json, which is returned."""
    exporter = EXPORTERS[wanted.form]
    with _workers(clean, workers):
        plan = make_plan(clean, folder / ".plan", wanted, exporter)
        job = Job(clean, folder, wanted, plan.splits, workers, store)
        job.parts.mkdir(exist_ok=True)
        require_space(folder, _bytes_needed(job))
        files = [*exporter.write(job, progress), _write_identities(job)]
    hand_over(job, files)
    return _told(mark, wanted, plan, files)


def _workers(clean: Path, workers: int) -> contextlib.AbstractContextManager[None]:
    """Worker processes, at most one for each clean shard, which are read whole. What they are forked from starts while the export is planned."""
    count = min(worker_count(workers), len(shard_stems(clean, "clean")))
    if count < 2:
        return contextlib.nullcontext()
    prepare([stream.__name__], workers=count)
    return workers_kept(count)


def _counts(told: dict[str, Any]) -> Counts:
    counts = {f"{name}_{what}": count for name, split in told["splits"].items() for what, count in split.items()}
    return counts | {f"left_out_{what}": count for what, count in told["left_out"].items()} | {"files": len(told["files"])}


def _checked(wanted: Wanted) -> Wanted:
    if wanted.form not in EXPORTERS:
        raise BadConfig(f"There is no export {wanted.form!r}. Give one of {', '.join(EXPORTERS)}.")
    if not 0 <= wanted.val < 1:
        raise BadConfig(f"--val is a share of the identities, 0 or more and less than 1; got {wanted.val}.")
    for name, value in (("--min-images", wanted.min_images), ("--samples-per-shard", wanted.samples_per_shard)):
        if value < 1:
            raise BadConfig(f"{name} is 1 or more; got {value}.")
    if wanted.bytes_per_shard is not None and wanted.bytes_per_shard < LEAST_BYTES:
        raise BadConfig(
            f"--bytes-per-shard is {LEAST_BYTES:,} or more, which even an empty tar has; got {wanted.bytes_per_shard:,}. Give it as 500MB or 1GB."
        )
    # Parts of a sorted export are how it is worked on, and leave no trace in it.
    return replace(wanted, samples_per_shard=0, bytes_per_shard=recordio.PART_BYTES) if EXPORTERS[wanted.form].by_identity else wanted


def _bytes_needed(job: Job) -> int:
    """Of the disk: what is not written yet; for a store, the parts that are made at one time."""
    exporter = EXPORTERS[job.wanted.form]
    total, parts = sum(split.total_bytes for split in job.splits), sum(split.parts for split in job.splits)
    left = parts - sum(1 for _ in job.parts.glob("*.json"))
    at_once = left if job.store is None or exporter.by_identity else min(left, 2 * worker_count(job.workers))
    return total * at_once // parts * exporter.room


def _write_identities(job: Job) -> FileFacts:
    """{split: [{class_index, folder, identity, samples}, ...]}: a line for each, so that a million of them need no memory."""
    with HashedFile(job.folder / IDENTITIES) as file:
        for number, split in enumerate(job.splits):
            file.write(f"{',' if number else '{'}\n{json.dumps(split.name)}: [".encode())
            for first, line in enumerate(_identities(job, split.name)):
                file.write(f"{',' if first else ''}\n{line}".encode())
            file.write(b"\n]")
        file.write(b"\n}\n")
    return FileFacts.of(file, IDENTITIES)


def _identities(job: Job, split: str) -> Iterator[str]:
    for batch in pq.ParquetFile(job.plan / "identities.parquet").iter_batches():
        for row in batch.to_pylist():
            if row.pop("split") == split:
                yield json.dumps(row, ensure_ascii=False, sort_keys=True)


def _told(mark: str, wanted: Wanted, plan: Plan, files: list[FileFacts]) -> dict[str, Any]:
    return {
        "format": wanted.form,
        "version": VERSION,
        "about": EXPORTERS[wanted.form].about,
        "image": "112 x 112 JPEG, as in the run: not encoded again",
        "fingerprint": mark,
        "settings": {name: value for name, value in wanted.settings().items() if name != "form"},
        "splits": {split.name: {"identities": split.identities, "samples": split.samples} for split in plan.splits},
        "left_out": {"identities": plan.left_out_identities, "samples": plan.left_out_samples},
        "files": [{name: value for name, value in asdict(file).items() if value is not None} for file in files],
    }
