"""Who owns a run folder, and run.json, its record: crawl, settings, versions, counts and seconds."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import Config, as_dict
from pipeline.errors import BadInput, StaleInput
from pipeline.history import exceeded, remember
from pipeline.layout import RunLayout
from pipeline.mirroring.memo import require_pulled
from pipeline.places import Location, name_of, recorded
from pipeline.receipts import Receipt, disk_watched, remove, settle, write_json
from pipeline.status import NAME as STATUS
from pipeline.status import half_forgotten, is_held, told_of

_PACKAGES = ("torch", "prefect", "pandas", "pyarrow", "webdataset", "duckdb", "numpy")
_LOCK = ".lock"
_OF_A_NEW_RUN = {_LOCK, "forgotten"}
_BEFORE_ANY_OUTPUT = {"run.json", "forgotten"}


@contextlib.contextmanager
def claimed(crawl: Location, run: RunLayout, *, to_forget: bool = False) -> Iterator[None]:
    """Holds the run folder for this process, made if it is not there. A folder with nothing but a log of the forgotten is a new run; so is one
    in which no stage was finished, whatever crawl was tried there.

    Raises StaleInput: when it belongs to another crawl, when it is no run folder and not empty, when another process works in it, and when a
    `forget` was stopped half way, except `to_forget`.
    """
    with disk_watched(run.run_json):
        owner = _require_ours(crawl, run)
        run.root.mkdir(parents=True, exist_ok=True)
        with (run.root / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _at_work(run) from error
            if not to_forget:
                require_whole(run)
            for half in [*filter(_is_half_written, run.root.iterdir()), *run.history.glob(".*.tmp")]:
                half.unlink()
            for parent in (run.root, *run.root.glob("rounds/*")):
                settle(parent)
            if owner != recorded(crawl):
                write_json(run.run_json, {"crawl": recorded(crawl), "finished": False})
            yield


def require_claimable(crawl: Location, run: RunLayout) -> None:
    """Raise what `claimed` would raise, and change nothing."""
    _require_ours(crawl, run)
    if is_held(run.root):
        raise _at_work(run)
    require_whole(run)


def _require_ours(crawl: Location, run: RunLayout) -> str | None:
    """The crawl that the folder is recorded as the run of, None for a new one. Raises StaleInput when it is not for this crawl, or half pulled."""
    require_pulled(run.root)
    if run.root.exists() and not run.root.is_dir():
        raise StaleInput(f"{run.root} is a file. Give a folder that is empty, or not there.")
    owner = _owner(run)
    is_begun = owner is not None and any(path.name[0] != "." and path.name not in _BEFORE_ANY_OUTPUT for path in run.root.iterdir())
    if owner != recorded(crawl) and is_begun:
        raise StaleInput(f"{run.root} is the run of another crawl, {owner}. Give this crawl a run folder of its own.")
    if owner is None and run.root.is_dir() and {path.name for path in run.root.iterdir() if not _is_half_written(path)} - _OF_A_NEW_RUN:
        raise StaleInput(f"{run.root} holds files that are no run. Give a folder that is empty, or not there.")
    return owner


def _at_work(run: RunLayout) -> StaleInput:
    return StaleInput(f"Another process works in {run.root}. Wait for it to end, or give another run folder.")


def _is_half_written(path: Path) -> bool:
    return path.name.startswith((".run.json.", f".{STATUS}.")) and path.suffix == ".tmp"


def require_whole(run: RunLayout) -> None:
    """Raise StaleInput when a `forget` was stopped half way: some tables speak of what others do not have any more. So with a pull."""
    require_pulled(run.root)
    if half := half_forgotten(run):
        raise StaleInput(half)


def _owner(run: RunLayout) -> str | None:
    try:
        return str(json.loads(run.run_json.read_text("utf-8"))["crawl"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StaleInput(f"{run.run_json} is damaged or not ours. {mended(run.run_json)}") from error


def mended(record: Path | str) -> str:
    """What to do about a run.json that cannot be read: the stages do not need it, and it is written anew by a run."""
    return (
        f'Give another run folder; or, if this is a run, write {{"crawl": "/the/absolute/path"}} into {record} and give the same `purify run` again: '
        "what is finished stands."
    )


def title_of(run: RunLayout) -> str:
    """What every page calls a run: by the name of its crawl, or of its own folder where it has no record. Raises StaleInput for a damaged one."""
    return f"Purification of {name_of(_owner(run) or run.root.resolve())}"


def remove_what_is_not_of(run: RunLayout, config: Config) -> None:
    """Remove what `not_of` names, so that no report speaks of it."""
    for folder in not_of(run, config):
        if folder == run.embedder:
            remove(folder)
        else:
            for output in filter(Path.is_dir, folder.iterdir()):
                remove(output)
            shutil.rmtree(folder)


def not_of(run: RunLayout, config: Config) -> list[Path]:
    """The rounds that these settings do not have, and a model that they do not give."""
    beyond = [one.root for one in run.rounds if one.number > config.rounds]
    return beyond + ([run.embedder] if config.embedder.model is None and run.embedder.exists() else [])


def write_record(
    crawl: Location, run: RunLayout, config: Config, receipts: Sequence[tuple[str, Receipt]], seconds: float
) -> dict[str, Any]:
    """run.json of a finished run, which is also returned; and its entry in `history/`. `receipts`: (name of the stage, its receipt), in order."""
    return _write(recorded(crawl), run, config, [told_of(name, one) for name, one in receipts], seconds)


def write_record_again(
    record: dict[str, Any], run: RunLayout, config: Config, receipts: Sequence[tuple[str, Receipt]], seconds: float
) -> dict[str, Any]:
    """As `write_record`, when only the stages of `receipts` were looked at again; the others stay as `record`, run.json so far, tells of them."""
    again = {name: told_of(name, one) for name, one in receipts}
    stages = [again.pop(stage["stage"], stage | {"reused": True}) for stage in record["stages"]]
    return _write(record["crawl"], run, config, [*stages, *again.values()], seconds)


def _write(crawl: str, run: RunLayout, config: Config, stages: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    entry = remember(run, config.rounds)
    record: dict[str, Any] = {
        "crawl": crawl,
        "finished": True,
        "run_id": entry["run_id"],
        "warnings": exceeded(entry, config.limits),
        "seconds": round(seconds, 1),
        "config": as_dict(config),
        "versions": versions(),
        "cores": os.cpu_count(),
        "stages": stages,
    }
    write_json(run.run_json, record)
    return record


def versions() -> dict[str, str]:
    """Python and the packages on which a run's results depend, with their versions."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def read_finished(run: RunLayout) -> dict[str, Any]:
    """run.json of a run that is finished. Raises BadInput for any other folder, StaleInput while a `forget` is not finished."""
    require_whole(run)
    record = read_record(run) if run.run_json.is_file() else {}
    if not record.get("finished"):
        raise BadInput(f"{run.root} is no finished run. Run `purify run CRAWL {run.root}` first.")
    return record


def read_record(run: RunLayout) -> dict[str, Any]:
    """run.json. Raises StaleInput when it cannot be read."""
    try:
        record: dict[str, Any] = json.loads(run.run_json.read_text("utf-8"))
    except ValueError as error:
        raise StaleInput(f"{run.run_json} is damaged or not ours. {mended(run.run_json)}") from error
    return record
