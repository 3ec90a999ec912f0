"""Where nothing but this program's own stages may write: in a run folder, and in the crawl that it was made of."""

import json
from pathlib import Path

from pipeline.addresses import is_remote
from pipeline.errors import BadConfig

_OUTPUTS = ("raw", "rounds", "manifest", "clean")


def run_around(path: Path) -> Path | None:
    """The run folder that `path` is, or lies in, links followed; None when it is in none. It need not be there."""
    whole = path.resolve()
    return next((folder for folder in (whole, *whole.parents) if is_run(folder)), None)


def is_run(folder: Path) -> bool:
    """True for a run folder itself, not for what lies in it: by run.json, or the lock beside some output."""
    return "crawl" in _record(folder) or ((folder / ".lock").is_file() and any((folder / name).is_dir() for name in _OUTPUTS))


def _record(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_outside(out: Path | None, *runs: Path) -> None:
    """Raise BadConfig for a place to write in a run folder, whichever, or in the crawl of one of these runs; what stands there is not overwritten."""
    if out is None:
        return
    if (inside := run_around(out)) is not None:
        raise BadConfig(f"{out} lies in the run folder {inside}, whose files are not to be overwritten. Give a place outside of it.")
    whole = out.resolve()
    for run in runs:
        crawl = str(_record(run).get("crawl", ""))
        if crawl and not is_remote(crawl) and Path(crawl) in (whole, *whole.parents):
            raise BadConfig(f"{out} lies in the crawl of {run}, and would be read as a part of it. Give a place outside of {crawl}.")
