"""What the exporters share: what is wanted, the facts of a written file, and a part of the export while it is written."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa

from pipeline import tables
from pipeline.hashed import HashedFile
from pipeline.receipts import Progress

Crops = Sequence[memoryview]
_CARRIED = ("crawled_identity", "angle_deg", "noise_probability", "quality", "source_uri", "source_url", "license")
FACTS = pa.schema([*(tables.CLEAN.field(name) for name in ("sample_id", "identity")), tables.CLASSES.field("class_index"),
                   *(tables.CLEAN.field(name) for name in _CARRIED)])  # fmt: skip
"""What every form tells of a sample beside its picture."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an export is to be like."""

    form: str
    samples_per_shard: int = 10_000
    bytes_per_shard: int | None = None
    """Instead of a number of samples: a shard ends with the sample that reaches it."""
    val: float = 0.0
    """Share of the identities that go into the split `val`."""
    min_images: int = 1
    """Identities with fewer samples are left out."""

    def settings(self) -> dict[str, Any]:
        """What the bytes of the export depend on, besides the samples."""
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """One split of an export, as planned."""

    name: str
    identities: int
    samples: int
    parts: int
    picture_bytes: int
    total_bytes: int
    """Estimated bytes of the written files."""


@dataclass(frozen=True)
class Job:
    """An export in the making."""

    clean: Path
    folder: Path
    wanted: Wanted
    splits: tuple[Split, ...]
    workers: int
    store: str | None = None
    """URL that finished files are moved to; without it they stay in the folder."""

    @property
    def plan(self) -> Path:
        """samples.parquet and identities.parquet of the plan; gone when the export is finished."""
        return self.folder / ".plan"

    @property
    def parts(self) -> Path:
        """A file of facts for every part that is written and proven; gone when the export is finished."""
        return self.folder / ".parts"


@dataclass(frozen=True)
class FileFacts:
    """A written file, as dataset.json tells of it."""

    name: str
    bytes: int
    sha256: str
    samples: int | None = None

    @classmethod
    def of(cls, file: HashedFile, name: str, samples: int | None = None) -> Self:
        """Of a file as written so far."""
        return cls(name, file.tell(), file.sha256, samples)


def hand_over(job: Job, files: Sequence[FileFacts]) -> None:
    """Move proven files of the job's folder into its store, where it has one. Those that were moved before are passed over."""
    if job.store is None:
        return
    from pipeline.places import join  # with pydantic and fsspec behind them, half of what workers import
    from pipeline.stores import upload

    for file in files:
        path = job.folder / file.name
        if path.exists():
            upload(path, join(job.store, file.name))
            path.unlink()


class Part(Protocol):
    """A part of an export while it is written. What it holds depends on the samples alone, not on how many come at a time."""

    def add(self, rows: pa.Table, crops: Crops) -> None:
        """Append samples: rows of the schema FACTS, and the pictures' bytes, which are others after the call."""
        ...

    def close(self) -> list[FileFacts]:
        """End the part; its files."""
        ...


OpenPart = Callable[[Job, Split, int], Part]


@dataclass(frozen=True)
class Exporter:
    """One form of export."""

    about: str
    sample_bytes: str
    """SQL over `size`, the bytes of a picture: the bytes that a sample takes in the written files."""
    write: Callable[[Job, Progress | None], list[FileFacts]]
    """Writes all but identities.json and dataset.json into the job's folder."""
    room: int = 1
    """How many times the bytes written have to be free while it works."""
    by_identity: bool = False
    """Samples of an identity stand together; else they are in the order of the clean shards, which is mixed."""
    is_many_files: bool = False
    """A file per picture, which is nothing for an object store."""


def write_whole(job: Job, name: str, content: bytes) -> FileFacts:
    """Write a small file of an export."""
    with HashedFile(job.folder / name) as file:
        file.write(content)
    return FileFacts.of(file, name)
