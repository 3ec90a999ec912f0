"""The one bar of this program, on standard error."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.receipts import Progress as Report

console = Console(stderr=True)


@contextlib.contextmanager
def bar(name: str) -> Iterator[Report]:
    """A function (done, total) that draws it."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        one = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(one, completed=done, total=total)
