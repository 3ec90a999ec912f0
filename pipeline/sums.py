"""SHA-256 of a shard's two files in a third, `raw-000000.sha256`, as `sha256sum -c raw-*.sha256` reads it.

A twin holds the sidecar of its tar and cannot hold its own hash, so both stand here. A twin is small, so whoever opens a shard hashes it; and
stages that ask DuckDB over all twins of a folder hash them first.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import BadShard


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(twin: Path) -> Path:
    """Where the sums of a twin and its tar stand."""
    return twin.with_suffix(".sha256")


def sums_text(stem: str, tar_sha256: str, twin_sha256: str) -> str:
    """A line for the tar and one for its twin."""
    return f"{tar_sha256}  {stem}.tar\n{twin_sha256}  {stem}.parquet\n"


def prove_twin(twin: Path) -> None:
    """Raise BadShard unless the twin has the SHA-256 that stands beside it. What the sums say of the tar is for `shards.check_shard`."""
    again = f"Remove {twin.parent} and run again: it will be made anew."
    try:
        told, found = sums_of(twin).read_bytes(), file_sha256(twin)
    except OSError as error:
        raise BadShard(f"{twin} cannot be proven: {error.filename or twin} cannot be read ({error.strerror}). {again}") from error
    if f"{found}  {twin.name}\n".encode() not in told:
        raise BadShard(f"{twin} differs from the SHA-256 in {sums_of(twin).name}. {again}")


def prove_twins(folder: Path, stems: Iterable[str]) -> None:
    """`prove_twin` of each of these shards: about a second for ten million items."""
    for stem in stems:
        prove_twin(folder / f"{stem}.parquet")
