"""An export: planned, written, told of by dataset.json, sealed. Of the same samples and settings it has the same bytes, whatever the workers.

Class indices, folder names and counts stand in identities.json; every file with its SHA-256 in dataset.json, for which `purify verify` looks.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import receipts
from pipeline.errors import BadConfig, BadInput
from pipeline.exporters import EXPORTERS, recordio
from pipeline.exporters.base import FileFacts, HashedFile, Job, Wanted
from pipeline.exporters.plan import Plan, make_plan
from pipeline.receipts import Counts, Progress, Receipt, fingerprint, mark_of, require_space, run_stage, write_json

VERSION = 1
DATASET = "dataset.json"
IDENTITIES = "identities.json"


def plan_only(clean: Path, wanted: Wanted) -> Plan:
    """What an export would hold. Writes nothing that stays."""
    wanted = _checked(wanted)
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(clean, Path(folder), wanted, EXPORTERS[wanted.form])


def export_to(clean: Path, out: Path, wanted: Wanted, *, workers: int = 0, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`, an export of the finished folder `clean`. Killed, it goes on with what is not written yet.

    Raises BadConfig: for settings without sense. BadInput: when `out` holds anything but an earlier export of this form, and when no sample is
    left. NoSpace: before anything is written. BadShard: when a clean shard is damaged.
    """
    wanted = _checked(wanted)
    exporter = EXPORTERS[wanted.form]
    stage = f"export {wanted.form}"
    mark = fingerprint(stage, VERSION, wanted.settings(), clean=mark_of(clean))
    _require_free(out, stage)

    def work(folder: Path) -> Counts:
        if not (folder / DATASET).exists():
            plan = make_plan(clean, folder / ".plan", wanted, exporter)
            job = Job(clean, folder, wanted, plan.splits, workers)
            job.parts.mkdir(exist_ok=True)
            require_space(folder, _bytes_left(job) * exporter.room)
            files = [*exporter.write(job, progress), _write_identities(job)]
            write_json(folder / DATASET, _told(mark, wanted, plan, files))
        for rest in (".plan", ".parts"):
            shutil.rmtree(folder / rest, ignore_errors=True)
        told = json.loads((folder / DATASET).read_text("utf-8"))
        counts = {f"{name}_{what}": count for name, split in told["splits"].items() for what, count in split.items()}
        return counts | {f"left_out_{what}": count for what, count in told["left_out"].items()} | {"files": len(told["files"])}

    return run_stage(out, stage=stage, mark=mark, work=work)


def _checked(wanted: Wanted) -> Wanted:
    if wanted.form not in EXPORTERS:
        raise BadConfig(f"There is no export {wanted.form!r}. Give one of {', '.join(EXPORTERS)}.")
    if not 0 <= wanted.val < 1:
        raise BadConfig(f"--val is a share of the identities, 0 or more and less than 1; got {wanted.val}.")
    for name, value in (("--min-images", wanted.min_images), ("--samples-per-shard", wanted.samples_per_shard)):
        if value < 1:
            raise BadConfig(f"{name} is 1 or more; got {value}.")
    if wanted.bytes_per_shard is not None and wanted.bytes_per_shard < 1:
        raise BadConfig(f"--bytes-per-shard is 1 or more; got {wanted.bytes_per_shard}.")
    # Parts of a sorted export are how it is worked on, and leave no trace in it.
    return replace(wanted, samples_per_shard=0, bytes_per_shard=recordio.PART_BYTES) if EXPORTERS[wanted.form].by_identity else wanted


def _require_free(out: Path, stage: str) -> None:
    if not out.exists():
        return
    standing = receipts.read(out) if out.is_dir() else None
    if not out.is_dir() or (any(out.iterdir()) and (standing is None or standing.stage != stage)):
        raise BadInput(f"{out} holds something else than an {stage}. Give a folder that is empty, or not there.")


def _bytes_left(job: Job) -> int:
    total, parts = sum(split.total_bytes for split in job.splits), sum(split.parts for split in job.splits)
    return total * (parts - sum(1 for _ in job.parts.glob("*.json"))) // parts


def _write_identities(job: Job) -> FileFacts:
    """{split: [{class_index, folder, identity, samples}, ...]}: a line for each, so that a million of them need no memory."""
    with HashedFile(job.folder / IDENTITIES) as file:
        for number, split in enumerate(job.splits):
            file.write(f"{',' if number else '{'}\n{json.dumps(split.name)}: [".encode())
            for first, line in enumerate(_identities(job, split.name)):
                file.write(f"{',' if first else ''}\n{line}".encode())
            file.write(b"\n]")
        file.write(b"\n}\n")
    return file.facts(IDENTITIES)


def _identities(job: Job, split: str) -> Iterator[str]:
    for batch in pq.ParquetFile(job.plan / "identities.parquet").iter_batches():
        for row in batch.to_pylist():
            if row.pop("split") == split:
                yield json.dumps(row, ensure_ascii=False, sort_keys=True)


def _told(mark: str, wanted: Wanted, plan: Plan, files: list[FileFacts]) -> dict[str, object]:
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
