"""Several files replaced as one: all of them, or after a kill all of them at the next call.

New contents are staged beside their places, then one file (`RUN/forgotten/commit.json`) says which belong together, then each is renamed.
A kill before that file leaves the old contents, a kill after it is rolled forward.
"""

import json
import os
from pathlib import Path

from pipeline.layout import RunLayout
from pipeline.receipts import write_json

_SUFFIX = ".forget"


class Replacement:
    """Files of a run that change together. `to(target)` is where the new content goes; nothing changes before `commit`."""

    def __init__(self, run: RunLayout) -> None:
        self._run = run
        self._targets: list[Path] = []
        self._removed: list[Path] = []

    def to(self, target: Path) -> Path:
        """The path to write the new content of `target` to."""
        self._targets.append(target)
        return _staged(target)

    def remove(self, target: Path) -> None:
        """`target` goes, together with what is replaced."""
        self._removed.append(target)

    def commit(self) -> None:
        """Put every new content in its place."""
        for target in self._targets:
            with _staged(target).open("rb+") as file:
                os.fsync(file.fileno())
        names = [[str(path.relative_to(self._run.root)) for path in paths] for paths in (self._targets, self._removed)]
        write_json(_commit_file(self._run), {"replaced": names[0], "removed": names[1]})
        roll_forward(self._run)


def roll_forward(run: RunLayout) -> None:
    """Finish a replacement that was committed, and remove what was staged for one that was not."""
    order = _commit_file(run)
    if order.exists():
        names = json.loads(order.read_text("utf-8"))
        for name in names["replaced"]:
            target = run.root / name
            if _staged(target).exists():
                rename(_staged(target), target)
        for name in names["removed"]:
            (run.root / name).unlink(missing_ok=True)
        order.unlink()
    for staged in run.root.rglob(f".*{_SUFFIX}"):
        staged.unlink()


def rename(source: Path, target: Path) -> None:
    """Rename a file. A function of its own, so that tests can be killed here."""
    source.replace(target)


def _staged(target: Path) -> Path:
    return target.with_name(f".{target.name}{_SUFFIX}")


def _commit_file(run: RunLayout) -> Path:
    return run.forgotten / "commit.json"
