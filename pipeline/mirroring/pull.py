"""From a copy to a run folder, on a machine that has none."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline import places, stores
from pipeline.config import IngestConfig
from pipeline.errors import BadInput, StaleInput
from pipeline.mirroring import index
from pipeline.mirroring.files import Seen, locked, look, seen, several
from pipeline.mirroring.index import Stored, object_of
from pipeline.mirroring.memo import Memo, begun_pull, half_pulled, note_pull
from pipeline.mirroring.push import require_ours
from pipeline.receipts import Progress, atomic, disk_watched, require_space

_OF_NOBODY = {".lock", ".mirror.lock", ".status.json"}
_READ = IngestConfig()
_PIECE = 2**20


def would_take(run: Path, url: str) -> int:
    """Before a run that is copied: how many files are to be taken from the copy first, which is none where this machine has the run folder.

    Raises BadConfig: for a URL that is no store. BadInput: when the store does not answer, or holds something else. StaleInput: when the copy is of another
    run folder.
    """
    url = index.required(url)
    standing = index.read(url)
    if standing is not None and _is_new(run, url):
        return len(standing.files)
    if not _is_new(run, url) and not (run / index.LAST).is_file():
        raise StaleInput(f"{run} holds files that are no run, or is a file. Give a folder that is empty, or not there.")
    require_ours(Memo.read(run, url), standing)
    if standing is None:
        index.require_free(url)
    return 0


def begin(run: Path, url: str, progress: Progress | None = None) -> int:
    """`pull`, when `would_take` says so; the number of files that were taken. Raises what both do, and BadInput when the store takes nothing: not after hours."""
    if would_take(run, url):
        return pull(url, run, progress)
    stores.write(object_of(index.required(url), hashlib.sha256(b"").hexdigest()), b"")  # the content of an empty file, which a push removes
    return 0


def pull(url: str, run: Path, progress: Progress | None = None) -> int:
    """Make the run folder of a copy; the number of its files. Killed, the same call goes on, and until it ends nothing else works on the folder.

    Raises BadConfig: for a URL that is no store. BadInput: when there is no copy, or it is damaged, not ours, or changes meanwhile. StaleInput: when the
    folder holds anything else. NoSpace: before anything is written.
    """
    url = index.required(url)
    standing = index.read(url)
    if standing is None:
        raise BadInput(
            f"There is no copy of a run at {url}, or no such bucket. Look at the URL; `purify run CRAWL RUN --mirror {url}` makes a copy."
        )
    if not _is_new(run, url):
        raise StaleInput(f"{run} is not an empty folder. Give one that is, or is not there.")
    require_space(run, sum(one.size for one in standing.files.values()))
    memo = Memo(url, taken_from=standing.name)
    with disk_watched(run / index.LAST):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StaleInput(f"{run} cannot be made: a file is in the way. Give a folder that is empty, or not there.") from error
        with locked(run / ".lock", f"Another process works in {run}. Wait for it to end."):
            begun = begun_pull(run)
            if strange := look(run).keys() - standing.files.keys() - begun:
                raise StaleInput(f"{run / min(strange)} is not of the copy. Move it elsewhere, and give the same command again.")
            note_pull(run, url, begun | standing.files.keys())
            for half in [*look(run).keys() - standing.files.keys(), *(str(path.relative_to(run)) for path in run.rglob(".*.tmp"))]:
                (run / half).unlink()  # of an earlier call, when the copy was another; of a killed one
            paths = sorted(standing.files, key=lambda path: path == index.LAST)
            over = threading.Event()
            fetched = several(lambda path: _fetch(url, run / path, standing.files[path], over), paths[:-1], over)
            for done, (path, found) in enumerate(zip(paths, fetched, strict=False), 1):
                memo.sent[found] = standing.files[path].sha256
                if progress:
                    progress(done, len(paths))
            for path in paths[-1:]:
                memo.sent[_fetch(url, run / path, standing.files[path], over)] = standing.files[path].sha256
                if progress:
                    progress(len(paths), len(paths))
            memo.write(run)
    return len(paths)


def _is_new(run: Path, url: str) -> bool:
    if not run.is_dir():
        return not os.path.lexists(run)
    return half_pulled(run) == url or {path.name for path in run.iterdir()} <= _OF_NOBODY


def _fetch(url: str, target: Path, wanted: Stored, over: threading.Event) -> Seen:
    if not _is_there(target, wanted):
        place = object_of(url, wanted.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            digest = hashlib.sha256()
            with temporary.open("wb") as file:
                for piece in _pieces(place, wanted.size + 1):
                    if over.is_set():
                        raise stores.Abandoned("The pull was stopped.")
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != wanted.sha256:
                raise BadInput(f"{place} is not what its name says. Remove it, and `purify push` from a run folder that has the file.")
            if wanted.is_private:
                temporary.chmod(0o600)
    return seen(target)


def _is_there(target: Path, wanted: Stored) -> bool:
    """True for a file that an earlier call fetched."""
    try:
        with target.open("rb") as file:
            return os.fstat(file.fileno()).st_size == wanted.size and hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


def _pieces(place: str, most: int) -> Iterator[bytes]:
    """The content of an object, of which no more than `most` bytes are read."""
    try:
        with places.open_file(place, _READ) as stored:
            while piece := stored.read(min(_PIECE, most)):
                most -= len(piece)
                yield piece
    except FileNotFoundError as error:
        raise BadInput(
            f"{place} is gone: the copy is written just now, or it is damaged. Give the same command again; `purify verify` of the copy tells what is."
        ) from error
    except OSError as error:
        raise BadInput(f"{place} cannot be read: {error}. {places.access_advice(place)}") from error
