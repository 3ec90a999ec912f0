"""Files of a run under names of their own, for DuckDB to read and nothing else.

With external access on, SQL could read and write whatever this process may; with it off and a folder allowed, `COPY` could still overwrite what
stands there. So DuckDB is given a file system (fsspec's interface) that knows only the files named to it and opens them only for reading.
"""

import datetime
import fnmatch
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import fsspec

_PROTOCOL = "run"
ROOT = f"{_PROTOCOL}://"
"""What every name begins with."""


class _OpenFile:
    """A file opened for reading. DuckDB's threads share it and each seeks before it reads, so every thread has a place of its own."""

    __slots__ = ("_at", "_descriptor")

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._at = threading.local()
        self._descriptor = os.open(path, os.O_RDONLY)

    def seek(self, offset: int) -> int:
        self._at.offset = offset
        return offset

    def read(self, size: int) -> bytes:
        at: int = getattr(self._at, "offset", 0)
        found = os.pread(self._descriptor, size, at)
        self._at.offset = at + len(found)
        return found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close  # DuckDB forgets it and does not close it


class RunFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of `paths`, name to path; each name begins with `ROOT`. Whatever would write raises PermissionError."""

    protocol = _PROTOCOL
    cachable = False

    def __init__(self, paths: Mapping[str, Path]) -> None:
        super().__init__(skip_instance_cache=True)
        self._paths = dict(paths)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _OpenFile:
        """The file, to be read from its beginning."""
        if mode != "rb":
            raise PermissionError(f"{path}: a run is never changed by SQL")
        return _OpenFile(self._at(path))

    def size(self, path: str) -> int:
        """Bytes."""
        return self._at(path).stat().st_size

    def modified(self, path: str) -> datetime.datetime:
        """When it was written."""
        return datetime.datetime.fromtimestamp(self._at(path).stat().st_mtime, datetime.UTC)

    def exists(self, path: str, **_: Any) -> bool:
        """True for the names that were given."""
        return path in self._paths

    isfile = exists

    def isdir(self, path: str) -> bool:
        """Nothing is a folder."""
        return False

    def glob(self, path: str, **_: Any) -> list[str]:
        """The names of a pattern; a name that is one of them is itself."""
        return [path] if path in self._paths else [name for name in self._paths if fnmatch.fnmatchcase(name, path)]

    def unstrip_protocol(self, name: str) -> str:
        """Names have their protocol already."""
        return name

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Nothing is a folder."""
        raise FileNotFoundError(path)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Refused."""
        raise PermissionError(f"{path}: a run is never changed by SQL")

    def _at(self, path: str) -> Path:
        try:
            return self._paths[path]
        except KeyError:
            raise FileNotFoundError(path) from None


def confine(db: duckdb.DuckDBPyConnection, paths: Mapping[str, Path]) -> None:
    """Let `db` read the files of `paths` under their names and no other, write none, and change neither by a setting."""
    db.register_filesystem(RunFiles(paths))
    db.execute(f"SET allowed_directories = ['{ROOT}']")
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")
