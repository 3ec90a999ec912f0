"""Where a command may write, checked while its words are read."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Path as PathKind


def _in_a_folder(_: Any, path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}. Make it first.")


NewFile = Annotated[Path, Parameter(validator=(PathKind(dir_okay=False), _in_a_folder))]
"""A file to write, in a folder that is there."""
NewFolder = Annotated[Path, Parameter(validator=PathKind(file_okay=False))]
"""A folder to write into, made when it is not there."""
OutFile = Annotated[NewFile | None, Parameter(help="A file to write to, instead of the screen or a pipe.")]
