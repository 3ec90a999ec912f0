"""From a run folder to its copy, once (`Mirror.push`) or again and again while a run goes on (`kept`)."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pipeline import stores
from pipeline.addresses import join
from pipeline.errors import PurifyError, StaleInput
from pipeline.layout import RunLayout
from pipeline.mirroring import index
from pipeline.mirroring.files import Seen, emptied, hold, locked, look, several
from pipeline.mirroring.index import Index, Stored, object_of
from pipeline.mirroring.memo import Memo, url_of
from pipeline.receipts import Progress, disk_watched
from pipeline.run_folder import require_whole

EVERY_S = 60.0
"""Between two pushes while a run goes on, or three times as long as the last one took, where that is longer: so the network is left to others, too."""
_SHARE = 3
_LOOKS, _PAUSE_S = 10, 0.2
"""Pairs of looks, and how much longer the pause is before each."""
_LOCK, _SENDING = ".mirror.lock", ".mirror.sending"


@dataclass(frozen=True)
class Pushed:
    """Files and bytes of a copy, and of these what had to be sent."""

    files: int
    bytes: int
    sent_files: int
    sent_bytes: int


def told(done: Pushed) -> str:
    """In words."""
    return f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB; sent {done.sent_files:,}, {done.sent_bytes / 1e6:,.1f} MB"


class Mirror:
    """The copy of a run folder, which this process alone writes while it is entered. Raises BadConfig for a URL that is no store."""

    def __init__(self, run: Path, url: str) -> None:
        self._run, self._url = run, index.required(url)
        self._memo = Memo.read(run, self._url)
        self._objects: set[str] | None = None
        self._stopped = threading.Event()
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Raises StaleInput when another process writes the copy."""
        with disk_watched(self._run / _LOCK):
            self._lock.enter_context(locked(self._run / _LOCK, f"Another process copies {self._run}. Wait for it to end."))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._lock.close()

    def stop(self) -> None:
        """A push that goes on in another thread ends soon, with `Abandoned`; the copy stays what it was."""
        self._stopped.set()

    def push(self, progress: Progress | None = None) -> Pushed:
        """Make the copy what the folder is. Killed half way, the copy stays what it was, and the next push sends the rest.

        Raises BadInput: when the store does not take it, with the next step, and for a prefix that holds something else. StaleInput: when another machine has
        written the copy, while a `forget` is half done, and when the folder does not hold still.
        """
        require_whole(RunLayout(self._run))
        standing = index.read(self._url)
        require_ours(self._memo, standing)
        if self._objects is None or standing is None:
            if standing is None:
                index.require_free(self._url)
            self._objects = {name for name in stores.names(join(self._url, index.OBJECTS)) if index.SHA256.fullmatch(name)}
        with disk_watched(self._run / index.NAME):
            with emptied(self._run / _SENDING) as folder:
                seen, held = self._held(folder, self._objects)
                sent = self._sent(seen, held, self._objects, progress)
            files = {path: Stored(self._memo.sent[one], one.size, one.is_private) for path, one in seen.items()}
            is_as_it_was = standing is not None and standing.writer == self._memo.writer and standing.files == files
            if not is_as_it_was or url_of(self._run) != self._url:
                needed = {one.sha256 for one in files.values()}
                self._memo.sent = {one: sha256 for one, sha256 in self._memo.sent.items() if sha256 in needed}
                new = Index.after(standing, self._memo.writer, files)
                self._memo.number = new.number
                self._memo.write(self._run)  # first: once the index stands, it must be known here
                new.write(self._url)
        gone = self._objects - {one.sha256 for one in files.values()}
        for _ in several(lambda sha256: stores.remove(object_of(self._url, sha256)), gone, threading.Event()):
            pass
        self._objects -= gone
        return Pushed(len(files), sum(one.size for one in files.values()), len(sent), sum(sent))

    def _held(self, folder: Path, objects: set[str]) -> tuple[dict[str, Seen], dict[str, Path]]:
        """The files of one moment; and of those that are not in the store a second name each, under which they stay while they are sent.

        Two looks that see the same are at a moment between them; holding a file takes no time, so the next one comes at once.
        """
        for attempt in range(_LOOKS):
            self._stopped.wait(attempt * _PAUSE_S)
            files, held = look(self._run), dict[str, Path]()
            with contextlib.suppress(FileNotFoundError):
                for number, path in enumerate(path for path, one in files.items() if self._memo.sent.get(one) not in objects):
                    held[path] = folder / f"{attempt}-{number}"
                    hold(self._run / path, held[path])
                if look(self._run) == files:
                    return files, held
            for one in held.values():
                one.unlink(missing_ok=True)
        raise StaleInput(f"{self._run} does not hold still. Give the same command again when less goes on in it.")

    def _sent(self, files: dict[str, Seen], held: dict[str, Path], objects: set[str], progress: Progress | None) -> list[int]:
        """Put into the store what is held; the length of each that had to be sent."""
        sent: list[int] = []
        begun: set[str] = set()
        turn, over = threading.Lock(), threading.Event()

        def is_over() -> bool:
            return over.is_set() or self._stopped.is_set()

        def send(path: str) -> str:
            if is_over():
                raise stores.Abandoned("The push was stopped.")
            with held[path].open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            with turn:
                is_new = sha256 not in objects and sha256 not in begun  # by another thread, whose failure is that of all
                begun.add(sha256)
            if is_new:
                stores.upload(held[path], object_of(self._url, sha256), is_over)
                objects.add(sha256)
                sent.append(files[path].size)
            held[path].unlink()
            return sha256

        for done, (path, sha256) in enumerate(zip(held, several(send, held, over), strict=True), 1):
            self._memo.sent[files[path]] = sha256
            if progress:
                progress(done, len(held))
        return sent


def require_ours(memo: Memo, standing: Index | None) -> None:
    """Raise StaleInput when another run folder has written the copy since this one pushed it, or was pulled from it; also one that was this one's twin."""
    is_last = standing is None or (standing.writer == memo.writer and standing.number <= memo.number)
    if standing is not None and not is_last and standing.name != memo.taken_from:
        raise StaleInput(
            f"The copy at {memo.url} was written at {standing.written} from another run folder. To go on from it, give a run folder that is empty; "
            "to copy this one, give an empty prefix."
        )


@contextlib.contextmanager
def kept(run: Path, url: str | None, say: Callable[..., None], every_s: float = EVERY_S) -> Iterator[None]:
    """While it lasts the copy follows the run folder, and at its end it is what the folder is.

    A run that fails is copied too; one that is stopped is not, it has no time. `say(event, words, **facts)` is told what the last push did, and of one before
    it that failed: the next may not. Without `url` nothing is copied, and it is said where that leaves a copy behind. Raises what `Mirror.push` does at the
    end of a run that went well.
    """
    if url is None:
        if standing := url_of(run):
            say("mind", f"The copy at {standing} is left as it is. Give --mirror, or `purify push {run}` afterwards.", url=standing)
        yield
        return
    with Mirror(run, url) as mirror:
        over = threading.Event()

        def push() -> None:
            try:
                mirror.push()
            except stores.Abandoned:
                pass
            except (PurifyError, OSError) as error:
                say("warning", f"The copy of the run is not up to date: {error}", error=str(error))

        def follow() -> None:
            pause = every_s
            while not over.wait(pause):
                started = time.monotonic()
                push()
                pause = max(every_s, _SHARE * (time.monotonic() - started))

        follower = threading.Thread(target=follow, name="mirror", daemon=True)
        follower.start()
        try:
            yield
        except Exception:
            over.set()
            follower.join()
            push()
            raise
        except BaseException:
            mirror.stop()
            raise
        finally:
            over.set()
        follower.join()
        try:
            done = mirror.push()
        except PurifyError as error:
            raise type(error)(
                f"The run is finished, and its copy is not up to date: {error} After that, `purify push {run}` is all there is to do."
            ) from error
        say("mirror", f"[bold]mirror[/bold] {told(done)}", url=url, **asdict(done))
