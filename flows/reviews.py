"""The commands for people who look: review in the browser, and decisions as a file. None of them needs Prefect or torch."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

_out = Console()


def add_to(app: App) -> None:
    """Put these commands into the program."""
    for command in (review, decisions):
        app.command(command)


def review(
    run: Path,
    *,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="On 127.0.0.1; 0 is any that is free.")] = 0,
    open_: Annotated[bool, Parameter(name="--open", negative="--no-open", help="Open the page in your browser.")] = True,
) -> None:
    """Decide with the keyboard, in the browser: the most informative cases first. Several people may, each by name; Ctrl+C ends it.

    Parameters
    ----------
    run:
        The folder of a finished run.
    """
    from pipeline.reviewing.server import open_review

    opened = open_review(run, port=port, title=f"Purification of {run.resolve().name}")
    _out.print(
        f"Review at {opened.address}\nThe address holds a token: give it to nobody else. It is served on this machine only; Ctrl+C ends it.",
        highlight=False,
        soft_wrap=True,
    )
    if open_:
        webbrowser.open(opened.address)
    opened.serve()
    _out.print(f"Answers stand in {run / 'decisions'}. To carry them out: purify export {run}", highlight=False, soft_wrap=True)


def decisions(
    run: Path,
    *,
    format: Annotated[
        Literal["csv", "parquet", "label-studio"], Parameter(help="label-studio: tasks with crops, for its JSON import.")
    ] = "csv",
    out: Annotated[Path | None, Parameter(help="A file to write to, instead of the screen or a pipe.")] = None,
) -> None:
    """What people decided and stands, as a file for other programs.

    Parameters
    ----------
    run:
        A run folder.
    """
    from pipeline.errors import BadInput
    from pipeline.reviewing.exports import EXPORTS

    if out is None and format == "parquet" and sys.stdout.isatty():
        raise BadInput("Parquet is no text: give --out FILE, or a pipe.")
    content = EXPORTS[format][0](run)
    if out is None:
        sys.stdout.buffer.write(content)
    else:
        out.write_bytes(content)
