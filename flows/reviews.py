"""The commands for people who look: review in the browser, decisions as a file, figures and maps. None of them needs Prefect or torch."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from flows.outputs import NewFolder, OutFile, form_of
from flows.screen import write_data
from pipeline.errors import BadInput
from pipeline.outside import require_outside

_out = Console()


def add_to(app: App) -> None:
    """Put these commands into the program."""
    for command in (review, decisions, figures, embedding_map):
        app.command(command, name="map" if command is embedding_map else None)


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
    from pipeline.layout import RunLayout
    from pipeline.reviewing.server import open_review
    from pipeline.run_folder import title_of

    opened = open_review(run, port=port, title=title_of(RunLayout(run)))
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
        Literal["csv", "parquet", "label-studio"] | None,
        Parameter(help="As --out ends (.csv, .parquet, .json), else csv. label-studio: tasks with crops, for its JSON import."),
    ] = None,
    out: OutFile = None,
) -> None:
    """What people decided and stands, as a file for other programs.

    Parameters
    ----------
    run:
        A run folder.
    """
    from pipeline.reviewing.exports import EXPORTS

    require_outside(out, run)
    form = form_of(format, out, {".csv": "csv", ".parquet": "parquet", ".json": "label-studio"}, "csv")
    if out is None and form == "parquet" and sys.stdout.isatty():
        raise BadInput("Parquet is no text: give --out FILE, or a pipe.")
    content = EXPORTS[form][0](run)
    if out is not None:
        out.write_bytes(content)
    elif form == "parquet":
        sys.stdout.buffer.write(content)
    else:
        write_data(content.decode("utf-8"))


def figures(
    run: Path,
    out: NewFolder,
    *,
    identity: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True, help="Whose sub-centers figure 6a shows; else the one with most samples away from the dominant."
        ),
    ] = None,
    truth: Annotated[
        Path | None, Parameter(help="A truth table, as `purify synthesize` writes; else the verdicts say who is clean.")
    ] = None,
) -> None:
    """The paper's figures 6 and 7 for a run, as SVG and PDF. Needs the extra `figures`.

    Parameters
    ----------
    run:
        The folder of a finished run.
    out:
        Folder for the figures.
    """
    from pipeline.figures import draw_figures

    require_outside(out, run)
    drawn = draw_figures(run, out, identity=identity, truth=truth)
    names = ", ".join(path.name for path in drawn.files)
    _out.print(
        f"{names} in {out}; clean and noisy by the {drawn.labels}, 6a of {drawn.identity!r}", highlight=False, markup=False, soft_wrap=True
    )


def embedding_map(
    run: Path,
    out: NewFolder,
    *,
    identity: Annotated[
        list[str] | None, Parameter(negative="", allow_leading_hyphen=True, help="A name. May be repeated; else the noisiest.")
    ] = None,
    most: Annotated[int, Parameter(validator=Number(gte=1, lte=100), help="How many of the noisiest, where no name is given.")] = 12,
    seed: int = 0,
) -> None:
    """A map of faces by the likeness of their embeddings (t-SNE), as a page that opens from disk. Needs the extra `figures`.

    Parameters
    ----------
    run:
        The folder of a finished run.
    out:
        Folder for the page.
    seed:
        Of the map; the same seed gives the same map.
    """
    from pipeline.layout import RunLayout
    from pipeline.pages.embedding_map import draw_map
    from pipeline.run_folder import title_of

    require_outside(out, run)
    drawn = draw_map(run, out, identities=identity or [], most=most, seed=seed, title=title_of(RunLayout(run)))
    _out.print(f"{drawn.faces} faces of {drawn.identities} identities: {drawn.page}", highlight=False, soft_wrap=True)
