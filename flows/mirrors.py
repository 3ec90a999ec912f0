"""The commands about a run folder's copy in a store: `push`, `pull`. They need neither Prefect nor torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from flows.bars import bar
from flows.outputs import NamedPlace
from flows.screen import plain
from pipeline.errors import BadInput

Mirror = Annotated[
    NamedPlace | None,
    Parameter(
        help="A URL such as s3://bucket/prefix: a copy of the run folder is kept there, and a machine without RUN takes it from there."
    ),
]
_out = Console()


def add_to(app: App) -> None:
    """Put these commands into the program."""
    for command in (push, pull):
        app.command(command)


def push(run: Path, url: NamedPlace | None = None) -> None:
    """Copy a run folder into an object store, or bring the copy up to date: only what is new is sent. `purify run --mirror` does it while it runs.

    Parameters
    ----------
    run:
        A run folder, finished or not.
    url:
        As s3://bucket/prefix: empty, or the copy of this folder. [default: where its copy is]
    """
    from pipeline.mirroring.memo import url_of
    from pipeline.mirroring.push import Mirror, told
    from pipeline.status import record_of

    record_of(run)
    place = url or url_of(run)
    if place is None:
        raise BadInput(f"{run} has no copy yet. Say where: purify push {run} s3://bucket/prefix")
    with Mirror(run, place) as mirror, bar("push") as progress:
        done = mirror.push(progress)
    _out.print(f"{plain(place)}: {told(done)}", highlight=False, soft_wrap=True)


def pull(url: NamedPlace, run: Path) -> None:
    """Make a run folder of its copy in an object store. `purify run --mirror` does it first, where there is no run folder.

    Parameters
    ----------
    url:
        Where the copy is, as s3://bucket/prefix.
    run:
        The folder to make: not there, or empty.
    """
    from pipeline.mirroring.pull import pull as take

    with bar("pull") as progress:
        files = take(url, run, progress)
    _out.print(f"{plain(str(run))}: {files:,} files. How far it is: purify status {plain(str(run))}", highlight=False, soft_wrap=True)


def taken_from_mirror(run: Path, url: str) -> None:
    """Before a run: the run folder is made of its copy where there is none here, and what can be refused about the copy is refused."""
    from pipeline.mirroring.pull import begin, would_take

    if not would_take(run, url):
        begin(run, url)
        return
    from flows.progress import say, shown

    with shown("pull") as progress:
        files = begin(run, url, progress)
    say("pull", f"{files:,} files were taken from {plain(url)}", url=url, files=files)
