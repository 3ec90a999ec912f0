"""The folder that an export goes into: free, or an earlier export of the same form, which is replaced whole. Nothing else in it may be lost."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import receipts
from pipeline.errors import BadInput
from pipeline.file_checks import name_hashes, not_told_of
from pipeline.sources.base import uri_text

DATASET = "dataset.json"
_NAMED = 3
"""Files that a message names."""


def require_free(out: Path, stage: str, mark: str | None) -> None:
    """Raise BadInput when `out` holds anything but an export by `stage`, or would lose what that did not write.

    `mark` is of the export that is wanted: where that stands already, nothing is replaced. None: of one that is not there yet.
    """
    if not out.exists():
        return
    standing = receipts.read(out) if out.is_dir() else None
    if not out.is_dir() or (any(out.iterdir()) and (standing is None or standing.stage != stage)):
        raise BadInput(f"{out} holds something else than an {stage}. Give a folder that is empty, or not there.")
    if standing is not None and standing.fingerprint != mark:
        _require_own(out)


def _require_own(out: Path) -> None:
    found = [uri_text(name) for name in islice(_not_written(out), _NAMED + 1)]
    if found:
        names = ", ".join(sorted(found[:_NAMED])) + (" and more" if len(found) > _NAMED else "")
        raise BadInput(
            f"{out} holds files that this export did not write: {names}. They would be lost with it. Move them away, or give another --out."
        )


def _not_written(out: Path) -> Iterator[str]:
    """Files that the export which stands in `out` does not tell of; of an imagefolder's it keeps a hash each."""
    try:
        told: dict[str, Any] = json.loads((out / DATASET).read_text("utf-8"))
        names = {str(file["name"]) for file in told["files"]}
        tables = sorted(name for name in names if name.endswith(".parquet")) if told["format"] == "imagefolder" else []
        pictures = [name_hashes(pq.read_table(out / name, columns=["file_name"])["file_name"].to_pylist()) for name in tables]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise BadInput(
            f"{out} does not tell which files are its own any more, so they cannot be replaced: {error}. "
            "Move away what is yours and remove it, or give another --out."
        ) from error
    yield from not_told_of(str(out), names | {DATASET, receipts.NAME}, pictures)
