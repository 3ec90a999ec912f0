"""`index.json` of a copy: which object is which file. It comes from a store, so it is foreign until it was looked at."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Self

from pipeline import stores
from pipeline.addresses import is_remote, is_web, join, shown
from pipeline.errors import BadConfig, BadInput
from pipeline.mirroring.files import is_copied, is_inside

NAME, OBJECTS = "index.json", "objects"
LAST = "run.json"
"""Without it, nothing takes a folder for a run: it is pulled last."""
FORMAT, VERSION = "copy of a purify run", 1
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/?]+(/[^?]*)?$")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Stored:
    """A file of a copy."""

    sha256: str
    size: int
    is_private: bool


@dataclass(frozen=True)
class Index:
    """A copy at one moment."""

    writer: str
    """The run folder that it was made of, by a random name."""
    number: int
    written: str
    files: dict[str, Stored]

    @classmethod
    def after(cls, before: Self | None, writer: str, files: dict[str, Stored]) -> Self:
        """The one that takes the place of `before`."""
        return cls(writer, before.number + 1 if before else 1, datetime.now(UTC).isoformat(timespec="seconds"), files)

    @property
    def name(self) -> str:
        """No two differ and have the same."""
        return f"{self.writer} {self.number}"

    def write(self, url: str) -> None:
        """Put it in place of what stands there. Raises BadInput."""
        files = {path: [one.sha256, one.size, one.is_private] for path, one in sorted(self.files.items())}
        told = {"format": FORMAT, "version": VERSION, "writer": self.writer, "number": self.number, "written": self.written, "files": files}
        stores.write_json(join(url, NAME), told)


def required(url: str) -> str:
    """The URL as all functions take it. Raises BadConfig: for one that cannot be written, that holds credentials, or is no URL."""
    if not is_remote(url):
        raise BadConfig(f"{url} is no URL of a store. Give one such as s3://bucket/prefix; on a disk, put the run folder itself there.")
    if not _URL.match(url) and not is_web(url):
        raise BadConfig(
            f"{shown(url)} names no place in a store. Give one such as s3://bucket/prefix, the scheme in small letters, nothing behind a `?`."
        )
    return stores.require_store(url)


def object_of(url: str, sha256: str) -> str:
    """Where the content of a file stands."""
    return join(join(url, OBJECTS), sha256)


def read(url: str) -> Index | None:
    """The index of the copy at a URL; None where there is none. Raises BadInput: when the store does not answer, and for what is no index of ours."""
    found = stores.read_json(join(url, NAME))
    if found is None:
        return None
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise BadInput(f"{join(url, NAME)} is not the index of a copy, or of another version of this program. Give an empty prefix.")
    try:
        files = {path: _stored(path, one) for path, one in found["files"].items()}
        if LAST not in files or any(str(folder) in files for path in files for folder in PurePosixPath(path).parents):
            raise ValueError(f"its files are no run: no {LAST}, or one inside of another")
        writer, written = found["writer"], found["written"]
        if not (isinstance(writer, str) and isinstance(written, str) and f"{writer}{written}".isprintable()):
            raise ValueError("it does not say who wrote it, and when")
        return Index(writer, int(found["number"]), written, files)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{join(url, NAME)} is damaged, or not ours: {error}. Give an empty prefix.") from error


def require_free(url: str) -> None:
    """Raise BadInput where something else than a copy stands. Objects without an index are of a first push that was killed."""
    if others := stores.names(url) - {OBJECTS}:
        raise BadInput(f"{url} holds something else than the copy of a run: {min(others)}. Give an empty prefix.")


def _stored(path: str, told: list[object]) -> Stored:
    sha256, size, is_private = told
    if not (is_inside(path) and is_copied(path)):
        raise ValueError(f"{path!r} is no file of a run")
    if not (isinstance(sha256, str) and SHA256.fullmatch(sha256) and isinstance(size, int) and size >= 0):
        raise ValueError(f"{path!r} has no SHA-256 and length")
    return Stored(sha256, size, bool(is_private))
