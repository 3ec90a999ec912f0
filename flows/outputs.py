"""Where a command may write, and in which form, checked while its words are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import ArgumentCollection, Parameter
from cyclopts.validators import Path as PathKind

from pipeline.errors import BadConfig
from pipeline.outside import require_outside


def _in_a_folder(_: Any, path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}. Make it first.")


def _in_no_run(_: Any, path: Path | None) -> None:
    try:
        require_outside(path)
    except BadConfig as error:
        raise ValueError(str(error)) from error


def _takes_paths(hint: Any) -> bool:
    return hint is Path or any(map(_takes_paths, get_args(hint)))


def require_named(arguments: ArgumentCollection) -> None:
    """Raise ValueError for a path that was given as an empty text, as of a variable that is not set: it would be the current folder."""
    for argument in arguments:
        if _takes_paths(argument.hint) and any(not token.value.strip() for token in argument.tokens):
            name = argument.name if argument.index is None else argument.name.removeprefix("--").upper()
            raise ValueError(f"{name} is empty. Give a path; the current folder is `.`.")


def _not_empty(_: Any, place: str | None) -> None:
    if place is not None and not place.strip():
        raise ValueError("It is empty. Give a path or a URL; the current folder is `.`.")


NamedPlace = Annotated[str, Parameter(validator=_not_empty)]
"""A path or a URL, which says what it is."""
NewFile = Annotated[Path, Parameter(validator=(PathKind(dir_okay=False), _in_a_folder, _in_no_run))]
"""A file to write, in a folder that is there, and in no run folder."""
NewFolder = Annotated[Path, Parameter(validator=(PathKind(file_okay=False), _in_no_run))]
"""A folder to write into, made when it is not there; in no run folder."""
OutFile = Annotated[
    NewFile | None, Parameter(help="A file to write to, instead of the screen or a pipe; outside of the run folder and of its crawl.")
]


def form_of(given: str | None, out: Path | None, by_suffix: Mapping[str, str], otherwise: str) -> str:
    """The form in which to write: the one that is given, else the one of the suffix of `out`, else `otherwise`.

    Raises BadConfig: when the two contradict each other.
    """
    suffix = out.suffix.lower() if out is not None else ""
    told = by_suffix.get(suffix)
    if given is not None and told is not None and given != told:
        raise BadConfig(f"--format {given} would go into {out}, a name for {told}. Leave --format out, or give another name.")
    return given or told or otherwise
