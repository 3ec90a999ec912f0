"""From a run folder to its copy, once (`Mirror.push`) or again and again while a run goes on (`kept`)."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pipeline import stores
from pipeline.addresses import join
from pipeline.errors import PurifyError, StaleInput
from pipeline.layout import RunLayout
from pipeline.mirroring import index
from pipeline.mirroring.files import Seen, emptied, finished, hold, locked, look, seen, several
from pipeline.mirroring.index import Index, Stored, object_of
from pipeline.mirroring.memo import Memo, url_of
from pipeline.receipts import Progress, disk_watched
from pipeline.run_folder import require_whole

EVERY_S = 300.0
"""Between two pushes while a run goes on: what is lost with a machine, at most, beside the time that a push takes."""
_LOOKS = 3
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
            files, sent = self._settled(self._objects, progress)
            if standing is None or standing.writer != self._memo.writer or standing.files != files:
                needed = {one.sha256 for one in files.values()}
                self._memo.sent = {one: sha256 for one, sha256 in self._memo.sent.items() if sha256 in needed}
                self._memo.write(self._run)  # first: once the index stands, its writer must be known here
                Index.after(standing, self._memo.writer, files).write(self._url)
        gone = self._objects - {one.sha256 for one in files.values()}
        for _ in several(lambda sha256: stores.remove(object_of(self._url, sha256)), gone, threading.Event()):
            pass
        self._objects -= gone
        return Pushed(len(files), sum(one.size for one in files.values()), len(sent), sum(sent))

    def _settled(self, objects: set[str], progress: Progress | None) -> tuple[dict[str, Stored], list[int]]:
        """Files of one moment, all of which are in the store; and the length of each that was sent.

        The finished files are of one moment when a look before anything is sent and one after it see the same. Half-made folders are worked in: of these
        counts what both looks see, which is what a cut of power could leave.
        """
        sent: list[int] = []
        for _ in range(_LOOKS):
            before = look(self._run)
            arrived = self._send(before, objects, sent, progress)
            after = look(self._run)
            same = {path: one for path, one in before.items() if path in arrived and after.get(path) == one}
            if finished(before) == finished(same) == finished(after):
                return {path: Stored(arrived[path], one.size, one.is_private) for path, one in same.items()}, sent
        raise StaleInput(f"{self._run} does not hold still. Give the same command again when less goes on in it.")

    def _send(self, files: dict[str, Seen], objects: set[str], sent: list[int], progress: Progress | None) -> dict[str, str]:
        """Path -> SHA-256 in the store; without what was replaced meanwhile."""
        known = {path: self._memo.sent.get(one, "") for path, one in files.items()}
        arrived = {path: sha256 for path, sha256 in known.items() if sha256 in objects}
        new = [path for path in files if path not in arrived]
        begun: set[str] = set()
        turn, over = threading.Lock(), threading.Event()

        def is_over() -> bool:
            return over.is_set() or self._stopped.is_set()

        def send(number: int) -> str | None:
            if is_over():
                raise stores.Abandoned("The push was stopped.")
            path, held = self._run / new[number], folder / str(number)
            with contextlib.suppress(FileNotFoundError):
                hold(path, held)
                if seen(path) != files[new[number]]:
                    return None
                with held.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                with turn:
                    is_sent = sha256 in objects or sha256 in begun  # the latter by another thread, whose failure is that of all
                    begun.add(sha256)
                if not is_sent:
                    stores.upload(held, object_of(self._url, sha256), is_over)
                    objects.add(sha256)
                    sent.append(files[new[number]].size)
                held.unlink()
                return sha256
            return None

        with emptied(self._run / _SENDING) as folder:
            for done, sha256 in enumerate(several(send, range(len(new)), over), 1):
                if sha256 is not None:
                    arrived[new[done - 1]] = self._memo.sent[files[new[done - 1]]] = sha256
                if progress:
                    progress(done, len(new))
        return arrived


def require_ours(memo: Memo, standing: Index | None) -> None:
    """Raise StaleInput when another run folder has written the copy since this one pushed it, or was pulled from it."""
    if standing is not None and standing.writer != memo.writer and standing.name != memo.taken_from:
        raise StaleInput(
            f"The copy at {memo.url} was written at {standing.written} from another run folder. To go on from it, give a run folder that is empty; "
            "to copy this one, give an empty prefix."
        )


@contextlib.contextmanager
def kept(run: Path, url: str | None, say: Callable[..., None], every_s: float = EVERY_S) -> Iterator[None]:
    """While it lasts the copy follows the run folder, and at its end it is what the folder is.

    Without `url` nothing is copied, and it is said where that leaves a copy behind. A run that fails is copied too; one that is stopped is not, it has no time. `say(event, words, **facts)` is told what the last push did, and of one before it
    that failed: the next may not. Raises what `Mirror.push` does at the end of a run that went well.
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
            while not over.wait(every_s):
                push()

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
