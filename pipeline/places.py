"""Where a crawl stands: a local path, a URL that fsspec knows (s3://, gs:// ...), or one file by http(s).

Local files are opened by the operating system, without following links. http(s) is read by `pipeline/web.py`, which looks at the address
first. All other URLs go through fsspec, and what a backend raises is told with the next step.
"""

import contextlib
import fnmatch
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import fsspec

from pipeline import web
from pipeline.addresses import Location as Location
from pipeline.addresses import holds_credentials as holds_credentials
from pipeline.addresses import is_remote as is_remote
from pipeline.addresses import is_web as is_web
from pipeline.addresses import join as join
from pipeline.addresses import located as located
from pipeline.addresses import name_of as name_of
from pipeline.addresses import recorded as recorded
from pipeline.addresses import shown as shown
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl, BadInput, PurifyError
from pipeline.patience import patiently
from pipeline.receipts import atomic

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_BLOCK = 4 * 2**20
_IRREGULAR = "no regular file"
_ACCESS = {
    "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true; for a server that is "
    "not Amazon's AWS_ENDPOINT_URL.",
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon.",
}


Kind = Literal["file", "folder", "link", "other"]
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


@dataclass(frozen=True)
class Entry:
    """One thing that a listing found."""

    path: str
    """Relative to the place listed, `/` between folders; "" is the place itself. Local bytes that are no UTF-8 are surrogates."""
    size: int
    mark: str
    """Changes when the file does: time of change in nanoseconds, or what the store gives (ETag, generation, time)."""
    kind: Kind = "file"


def facts(place: str, config: IngestConfig) -> Entry | None:
    """What stands at a location; None when nothing does.

    Raises BadCrawl: when it cannot be asked, with the next step.
    """
    if is_web(place):
        try:
            size, mark = web.facts(place, web.Limits.of(config))
        except OSError as error:
            raise BadCrawl(f"{recorded(place)} cannot be read: {error}.") from error
        return Entry("", size, mark)
    if is_remote(place):
        with _explained(place):
            files, path = backend(place)
            try:
                return _entry(patiently(lambda: files.info(path)), "")
            except FileNotFoundError:
                return None
    try:
        return _local_entry("", os.stat(place))  # noqa: PTH116 - paths that are no UTF-8
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadCrawl(f"{place} cannot be read: {error.strerror}. Check its permissions.") from error


def is_folder(place: str, config: IngestConfig) -> bool:
    """True when a folder stands there."""
    if is_web(place) or is_pattern(place):
        return False
    found = facts(place, config)
    return found is not None and found.kind == "folder"


def children(place: str) -> Iterator[Entry]:
    """What stands in a folder, one level, in no order."""
    if is_remote(place):
        with _explained(place):
            files, path = backend(place)
            for found in patiently(lambda: files.ls(path, detail=True)):
                name = str(found["name"]).rstrip("/").rpartition("/")[2]
                if name and str(found["name"]).rstrip("/") != path.rstrip("/"):
                    yield _entry(found, name)
        return
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                yield _local_entry(entry.name, entry.stat(follow_symlinks=False))
    except OSError as error:
        raise BadCrawl(f"{place} cannot be listed: {error.strerror}. Check its permissions.") from error


def walk(place: str, under: str = "") -> Iterator[Entry]:
    """All below a folder (its part `under`) but the folders themselves, in no order; memory holds one folder of each level."""
    for entry in children(join(place, under)):
        path = f"{under}/{entry.path}" if under else entry.path
        if entry.kind == "folder":
            yield from walk(place, path)
        else:
            yield Entry(path, entry.size, entry.mark, entry.kind)


def matching(crawl: str, config: IngestConfig, suffixes: tuple[str, ...] = ()) -> tuple[str, list[Entry]]:
    """(folder, its files that belong to the crawl, by name): one file, those of a pattern, or all below a folder with one of the suffixes.
    Links and what is no regular file are among them, by their `kind`.

    A pattern is in the last part of the crawl: `{0000..0099}` counts up, with zeros in front as written; `*` and `?` match names, though not
    by http(s), which cannot list.
    """
    base = (crawl.partition("?")[0] if is_web(crawl) else crawl).rpartition("/")[0]
    last = crawl[len(base) + 1 :]
    if is_pattern(crawl):
        names = _counted(last)
        if names is None:
            found = [entry for entry in children(base) if entry.kind != "folder" and fnmatch.fnmatchcase(entry.path, last)]
        else:
            found = []
            for name in names:
                entry = facts(join(base, name), config)
                if entry is None:
                    raise BadCrawl(f"There is no {recorded(join(base, name))}, though {recorded(crawl)} names it.")
                found.append(Entry(name, entry.size, entry.mark, "link" if _is_link(join(base, name)) else "file"))
        return base, sorted(found, key=lambda entry: entry.path)
    entry = facts(crawl, config)
    if entry is not None and entry.kind == "folder":
        below = [one for one in walk(crawl) if one.path.lower().endswith(suffixes)]
        return crawl, sorted((one for one in below if not _hidden(one.path)), key=lambda one: one.path)
    return base, [Entry(last, entry.size, entry.mark)] if entry else []


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def is_pattern(crawl: str) -> bool:
    """True when the last part is a pattern, and no file's name."""
    last = crawl.rpartition("/")[2]
    if _counted(last) is not None:
        return not _exists_locally(crawl)
    return not is_web(crawl) and any(sign in last for sign in "*?") and not _exists_locally(crawl)


def _is_link(place: str) -> bool:
    return not is_remote(place) and os.path.islink(place)  # noqa: PTH114 - paths that are no UTF-8


def _exists_locally(crawl: str) -> bool:
    return not is_remote(crawl) and os.path.lexists(crawl)


def _counted(last: str) -> list[str] | None:
    found = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", last)
    if not found:
        return None
    before, first, final, after = found.groups()
    if not 0 <= int(final) - int(first) < 1_000_000:
        raise BadCrawl(f"{{{first}..{final}}} does not count up, or too far. Give it as {{0000..0099}}.")
    return [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(final) + 1)]


def open_file(place: str, config: IngestConfig) -> BinaryIO:
    """A file for reading, from its start; remote ones are streamed.

    Raises OSError: when there is none, when it is a link or no regular file, and when it stops coming.
    """
    if is_web(place):
        return web.open_stream(place, web.Limits.of(config))
    if is_remote(place):
        with _as_os_error():
            files, path = backend(place)
            file = patiently(lambda: files.open(path, "rb", block_size=_BLOCK, cache_type="readahead"))
            return cast(BinaryIO, io.BufferedReader(_Guarded(file), 1 << 16))
    handle = _opened(place)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(_IRREGULAR)


def open_seekable(place: str, config: IngestConfig) -> BinaryIO:
    """A file in which a reader jumps about, as Parquet wants; not by http(s), which `download` is for. Raises OSError."""
    if is_web(place):
        raise OSError("no jumping about by http(s)")
    return open_file(place, config)


def download(place: str, to: Path, config: IngestConfig) -> None:
    """Write a file to the disk, whole or not at all. Raises OSError."""
    with atomic(to) as temporary, open_file(place, config) as file, temporary.open("wb") as written:
        shutil.copyfileobj(file, written, _BLOCK)


def read_file(place: str, config: IngestConfig, *, size: int | None = None) -> bytes:
    """The bytes of a file of `config.max_item_bytes` or less; `size` when a listing told it. Raises web.TooLarge or OSError."""
    limit = config.max_item_bytes
    if is_web(place):
        return web.fetch(place, web.Limits.of(config, max_bytes=limit))
    if is_remote(place):
        with _as_os_error():
            files, path = backend(place)
            size = int(patiently(lambda: files.info(path))["size"]) if size is None else size
            if size > limit:
                raise web.TooLarge(size, limit)
            return bytes(patiently(lambda: files.cat_file(path))) if size else b""  # of nothing no range can be asked for
    return _content(_opened(place), limit)


def read_inside(place: str, path: str, config: IngestConfig) -> bytes:
    """The bytes of `path`, a relative one that came with the crawl, inside of the folder `place`.

    Locally each step is taken without following links, so nothing outside is ever opened. Raises web.TooLarge or OSError; the caller has
    looked for `..` and a leading slash (`sources.base.bad_key`).
    """
    if is_remote(place):
        return read_file(join(place, path), config)
    *folders, name = [part for part in path.split("/") if part not in {"", "."}]
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            deeper = os.open(os.fsencode(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = deeper
        opened = _opened(name, handle)
    finally:
        os.close(handle)
    return _content(opened, config.max_item_bytes)


class _Guarded(io.RawIOBase):
    """A file of a backend, whose errors are OSErrors here."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            piece = patiently(lambda: self._file.read(len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(place: str, folder: int | None = None) -> int:
    """The handle of a local file. O_NONBLOCK: opening a pipe would wait for a writer. O_NOFOLLOW: a link may lead out of the crawl."""
    return os.open(os.fsencode(place), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)


def _content(handle: int, limit: int) -> bytes:
    """The bytes of an open file, which is closed. Calls of the system alone: a file object costs as much as what it reads of a crop."""
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(_IRREGULAR)
        if found.st_size > limit:
            raise web.TooLarge(found.st_size, limit)
        content = os.read(handle, found.st_size + 1)  # asked for the limit, Python makes room for all of it first
        while len(content) != found.st_size and (more := os.read(handle, _BLOCK)):  # it grew since, or came in pieces
            content += more
            if len(content) > limit:
                raise web.TooLarge(len(content), limit)
        return content
    finally:
        os.close(handle)


def _local_entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, str(found.st_mtime_ns), _KINDS.get(stat.S_IFMT(found.st_mode), "other"))


def _entry(found: dict[str, Any], path: str) -> Entry:
    names = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
    mark = next((str(found[name]) for name in names if found.get(name)), "")
    kind: Literal["file", "folder"] = "folder" if found["type"] == "directory" else "file"
    return Entry(path, int(found.get("size") or 0), mark, kind)


def access_advice(place: str) -> str:
    """How a store is given access to."""
    return _ACCESS.get(_EXTRAS.get(place.partition("://")[0].lower(), ""), "Check the address and your access to it.")


def missing_package(place: str, error: ImportError) -> str:
    """What to install for a store."""
    scheme = place.partition("://")[0].lower()
    extra = _EXTRAS.get(scheme)
    install = f"pip install 'arcface-purify[{extra}]'" if extra else f"the package that fsspec wants for it ({error})"
    return f"Reading {scheme}:// needs {install}."


def backend(place: str) -> tuple[Any, str]:
    """(file system, path in it). No cache of listings: 10^6 entries would stay in memory, and a crawl grows while we look away."""
    options = {} if place.startswith(("memory://", "file://")) else {"use_listings_cache": False}
    files, path = fsspec.core.url_to_fs(place, **options)
    return files, str(path)


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """What a backend raises, as BadCrawl with the next step."""
    scheme = place.partition("://")[0].lower()
    try:
        yield
    except (PurifyError, GeneratorExit):
        raise
    except ImportError as error:
        raise BadInput(missing_package(place, error)) from error
    except FileNotFoundError as error:
        raise BadCrawl(f"There is nothing at {place}. Check the bucket and the path.") from error
    except Exception as error:
        if isinstance(error, ValueError) and "rotocol" in str(error):
            raise BadCrawl(f"There is no way to read {scheme}:// here. Use a path, s3://, gs:// or https://.") from error
        raise BadCrawl(f"{place} cannot be read: {type(error).__name__}: {error}. {access_advice(place)}") from error


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """What a backend raises, as OSError: one file that cannot be read is a row, whatever the reason."""
    try:
        yield
    except (OSError, PurifyError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
