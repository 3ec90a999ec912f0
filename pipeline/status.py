"""How far a run is, from its files only: `.status.json` of what goes on, the lock for whether anybody works, run.json of what is finished."""

import fcntl
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.config import validate
from pipeline.errors import BadInput, PurifyError
from pipeline.layout import RunLayout
from pipeline.learned import LEAST_CLASSES, advice_on_too_few, judged_anyway, not_learned
from pipeline.mirroring.memo import require_pulled
from pipeline.receipts import Receipt, partials, write_json
from pipeline.visible import counted

NAME = ".status.json"
RUN = "purify run"
_EVERY_S = 2.0


@dataclass
class Story:
    """Tells `.status.json` of a run what happens; written by the one process that works in the run."""

    run: Path
    command: str = RUN
    finished: list[dict[str, Any]] = field(default_factory=list)
    _now: dict[str, Any] | None = None
    _told: float = 0.0

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self._now = {"stage": stage, "done": 0, "total": None, "first": 0, "began": time.time(), "counted_from": time.time()}
        self._tell()

    def progress(self, done: int, total: int) -> None:
        """So much of it is done. What an earlier attempt had done counts for no rate."""
        assert self._now is not None  # noqa: S101 - a stage has begun
        if self._now["total"] is None:
            self._now |= {"first": done, "counted_from": time.time()}
        self._now |= {"done": done, "total": total}
        if time.monotonic() - self._told >= _EVERY_S:
            self._tell()

    def end(self, stage: str, receipt: Receipt) -> None:
        """It is finished."""
        self.finished.append(told_of(stage, receipt))
        self._now = None
        self._tell()

    def close(self) -> None:
        """The run is finished: run.json says all."""
        (self.run / NAME).unlink(missing_ok=True)

    def _tell(self) -> None:
        self._told = time.monotonic()
        write_json(self.run / NAME, {"command": self.command, "finished": self.finished, "now": self._now, "written": time.time()})


def told_of(stage: str, receipt: Receipt) -> dict[str, Any]:
    """A finished stage as run.json tells of it."""
    return {
        "stage": stage,
        "seconds": receipt.seconds,
        "reused": receipt.reused,
        "counts": receipt.counts,
        "per_second": rate(receipt),
    }


def rate(receipt: Receipt) -> float | None:
    """Items, samples or training steps a second; None where the stage counts none of them."""
    done = receipt.counts.get("items") or receipt.counts.get("samples") or receipt.counts.get("steps")
    return round(float(done) / receipt.seconds, 1) if isinstance(done, int) and receipt.seconds else None


@dataclass(frozen=True)
class Status:
    """`finished`: stages, as `told_of`. Of the stage that goes on, or was stopped in: `done` of `total` (shards, steps or samples), and what is left."""

    state: Literal["finished", "running", "stopped"]
    finished: list[dict[str, Any]]
    stage: str | None = None
    done: int = 0
    total: int | None = None
    per_second: float | None = None
    left_s: float | None = None
    """Of this stage, at the rate of this attempt; None while nothing can be said."""
    silent_s: float = 0.0
    """Since it last told of itself."""
    warnings: list[str] = field(default_factory=list)
    command: str = RUN
    """Which goes on, or was stopped."""
    half_forgotten: str | None = None
    """What to do first, where a `purify forget` is not finished."""
    todo: list[str] = field(default_factory=list)
    """What a person has to do: where the same command cannot go on, and what a finished run does not show yet."""


def half_forgotten(run: RunLayout) -> str | None:
    """What to do about a `purify forget` that is not finished; None where there is none. It names nobody."""
    if not run.pending.exists():
        return None
    return f"A `purify forget` in {run.root} was stopped half way, or goes on. To finish it: purify forget {run.root} --yes"


def record_of(run: Path) -> dict[str, Any]:
    """run.json. Raises BadInput when this is no run folder."""
    path = RunLayout(run).run_json
    require_pulled(run)
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{run} is no run folder: {path} cannot be read. Give the RUN of `purify run CRAWL RUN`.") from error
    return record


def read_status(run: Path) -> Status:
    """The state of a run folder. Raises BadInput when it is none."""
    layout, record = RunLayout(run), record_of(run)
    at_work = is_held(run)
    if half := half_forgotten(layout):
        return Status("running" if at_work else "stopped", [], half_forgotten=half)
    try:
        story = json.loads((run / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        if record.get("finished") and not at_work:
            return Status("finished", record["stages"], warnings=record.get("warnings", []), todo=_not_shown(layout, record))
        return Status("running" if at_work else "stopped", [])
    now, written, command = story["now"], story["written"], story.get("command", RUN)
    silent_s, todo = max(0.0, time.time() - written), [] if at_work else _stops_again(layout)
    minds = [] if todo else _judged_anyway(layout)
    if now is None:
        state: Literal["running", "stopped"] = "running" if at_work else "stopped"
        return Status(state, story["finished"], silent_s=silent_s, warnings=minds, command=command, todo=todo)
    did, took = now["done"] - now["first"], written - now["counted_from"]
    per_second = did / took if did > 0 and took > 0 else None
    return Status(
        "running" if at_work else "stopped",
        story["finished"],
        now["stage"],
        now["done"],
        now["total"],
        per_second,
        (now["total"] - now["done"]) / per_second if per_second and now["total"] else None,
        silent_s,
        minds,
        command,
        todo=todo,
    )


def _stops_again(run: RunLayout) -> list[str]:
    """Why the same command would stop in the last round that was begun where it stopped before; nothing when it would go on."""
    if not run.rounds:
        return []
    last, before = run.rounds[-1], run.rounds[-2].noise if len(run.rounds) > 1 else None
    if told := not_learned(last.noise):
        return [told]
    begun = [path for partial in partials(last.train) for path in partial.glob("classes.parquet")]
    if not begun:
        return []
    import pyarrow.parquet as pq  # for which nobody waits who looks at a run that goes on

    classes = min(pq.read_metadata(path).num_rows for path in begun)
    if classes >= LEAST_CLASSES:
        return []
    return [f"{counted(classes, 'identity', 'identities')} had enough samples to train on. {advice_on_too_few(before)}"]


def _judged_anyway(run: RunLayout) -> list[str]:
    """What was seen of the model of the last round that is judged, where it told nobody apart and judged all the same."""
    judged = [one.noise for one in run.rounds if one.noise.is_dir()]
    told = judged_anyway(judged[-1]) if judged else None
    return [told] if told else []


def _not_shown(run: RunLayout, record: dict[str, Any]) -> list[str]:
    """What a finished run does not show yet."""
    from pipeline.export import is_current  # Arrow and DuckDB, for which nobody waits who looks at a run that goes on

    try:
        shows_all = is_current(run, validate(record.get("config", {})))
    except PurifyError as error:  # a folder that somebody removed, settings of another version
        return [str(error)]
    if not shows_all:
        return [f"Something was decided or changed since. `purify export {run.root}` brings it into manifest, clean shards and audit page."]
    if not run.audit_page.exists():
        return [f"Its audit page is gone, as after `purify forget`. `purify export {run.root}` makes it anew."]
    return []


def is_held(run: Path) -> bool:
    """True while a process works in the run; looking does not hinder it."""
    try:
        with (run / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
