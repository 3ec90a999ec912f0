"""`RUN/.mirror.json`: what a run folder knows of its copy: where it is, who it writes as, and which files have been sent."""

import json
import secrets
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StaleInput
from pipeline.mirroring.files import Seen
from pipeline.receipts import write_json

NAME = ".mirror.json"


@dataclass
class Memo:
    """Of one URL."""

    url: str
    writer: str = field(default_factory=lambda: secrets.token_hex(16))
    number: int = 0
    """Of the last index that was written, or was about to be."""
    taken_from: str | None = None
    """The name of the index that this folder was pulled from."""
    sent: dict[Seen, str] = field(default_factory=dict)
    """The SHA-256 of what was sent or pulled."""
    earlier: dict[str, int] = field(default_factory=dict)
    """Other URLs at which this folder left copies, which nobody brings up to date, and the `number` of each."""

    @classmethod
    def read(cls, run: Path, url: str) -> "Memo":
        """That of the run folder; a new one where it has none."""
        told = _told(run)
        if told is None or "sent" not in told:
            return cls(url)
        try:
            sent = {Seen(int(size), int(at), int(inode), bool(private)): str(sha256) for size, at, inode, private, sha256 in told["sent"]}
            numbers = {str(place): int(number) for place, number in told["earlier"].items()} | {told["url"]: int(told["number"])}
            taken_from = told["taken_from"] if told["url"] == url else None
            return cls(url, str(told["writer"]), numbers.pop(url, 0), taken_from, sent, numbers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(run) from error

    def write(self, run: Path) -> None:
        """Put it into the run folder."""
        sent = [[*astuple(one), sha256] for one, sha256 in self.sent.items()]
        told = {"url": self.url, "writer": self.writer, "number": self.number, "taken_from": self.taken_from}
        write_json(run / NAME, told | {"earlier": self.earlier, "sent": sent})


def url_of(run: Path) -> str | None:
    """Where the copy of this run folder is, as last known; None where it has none."""
    told = _told(run)
    return None if told is None else str(told["url"])


def earlier_of(run: Path) -> list[str]:
    """Other URLs at which this run folder left copies, as far as it knows."""
    url = url_of(run)
    return [] if url is None else sorted(Memo.read(run, url).earlier)


def note_pull(run: Path, url: str, paths: Iterable[str]) -> None:
    """From here on, until a memo is written, the folder is half pulled, and these files are the pull's."""
    write_json(run / NAME, {"url": url, "paths": sorted(paths)})


def begun_pull(run: Path) -> set[str]:
    """The files of a pull that was stopped half way."""
    told = _told(run)
    return set() if told is None else {str(path) for path in told.get("paths", [])}


def half_pulled(run: Path) -> str | None:
    """The URL of a pull that goes on, or was stopped half way; None where there is none."""
    told = _told(run)
    return None if told is None or "sent" in told else str(told["url"])


def require_pulled(run: Path) -> None:
    """Raise StaleInput when a pull was stopped half way: what is missing would be taken for not made yet."""
    if url := half_pulled(run):
        raise StaleInput(f"A pull into {run} was stopped half way, or goes on. To finish it: purify pull {url} {run}")


def _told(run: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((run / NAME).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(run) from error
    if not isinstance(told, dict) or not isinstance(told.get("url"), str):
        raise _damaged(run)
    return told


def _damaged(run: Path) -> StaleInput:
    return StaleInput(f"{run / NAME} is damaged, so nothing was done. Remove it, give the copy an empty prefix, and remove the old one.")
