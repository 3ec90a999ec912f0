"""Progress of a stage: in the terminal (rich, or a line of JSON), in `.status.json` of the run, and in Prefect (an artifact that its pages show)."""

import contextlib
import datetime
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException, TerminationSignal

from flows.bars import bar, console
from pipeline.receipts import Progress as Report
from pipeline.receipts import Receipt
from pipeline.status import NAME, RUN, Story, read_status, told_of

LOG_FORM = "PURIFY_LOG"
"""Environment variable: `json` for one object a line on standard error; else words and bars."""
_PREFECT_EVERY_S = 10.0
_PREFECT_AGAIN_S = 120.0
"""After it did not answer: each time is a wait."""
_story: ContextVar[Story | None] = ContextVar("story", default=None)
_log = logging.getLogger("purify")


@contextlib.contextmanager
def told_in(run: Path, command: str = RUN) -> Iterator[None]:
    """While it lasts, what happens is told in the run folder, for `purify status`.

    Where a `purify run` was stopped half way, another command tells nothing: that run is still to be finished, and `purify status` goes on to say so.
    """
    if command != RUN and (run / NAME).exists() and read_status(run).command == RUN:
        yield
        return
    story = Story(run, command)
    before = _story.set(story)
    try:
        yield
        story.close()
    finally:
        _story.reset(before)


@contextlib.contextmanager
def shown(stage: str) -> Iterator[Report]:
    """A function (done, total) that draws a bar named `stage`, and inside a flow tells Prefect every ten seconds; short stages tell it nothing."""
    started = told = time.monotonic()
    artifact = None
    story = _story.get()
    if story is not None:
        story.begin(stage)
    with _bar(stage) as draw:

        def report(done: int, total: int) -> None:
            nonlocal told, artifact
            draw(done, total)
            if story is not None:
                story.progress(done, total)
            now = time.monotonic()
            if not _in_flow() or (now - told < _PREFECT_EVERY_S and done < total) or now - started < _PREFECT_EVERY_S:
                return
            told, percent = now + _PREFECT_AGAIN_S, 100.0 * done / max(total, 1)
            with tolerated("of the progress"):
                if artifact is None:
                    artifact = create_progress_artifact(progress=percent, key=key(stage), description=stage)
                else:
                    update_progress_artifact(artifact_id=artifact, progress=percent)
                told = now

        yield report


@contextlib.contextmanager
def _bar(stage: str) -> Iterator[Report]:
    if _is_json():
        yield lambda done, total: None
        return
    with bar(stage) as draw:
        yield draw


@contextlib.contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Hours of training do not depend on a server that is slow to answer, or gone."""
    try:
        yield
    except (HTTPError, PrefectException) as error:
        heed_signal(error)
        say("warning", f"Prefect was not told {what}: {type(error).__name__}", error=type(error).__name__)


def heed_signal(error: BaseException | None) -> None:
    """Raise the signal again that `error` came out of: one to a whole job ends Prefect's server too, which then cannot be told of it."""
    while error is not None and not isinstance(error, TerminationSignal):  # Prefect makes it of SIGTERM, while a flow runs
        error = error.__context__
    if error is not None:
        signal.raise_signal(error.signal)


def finished(stage: str, receipt: Receipt) -> None:
    """One line of a finished stage, with its counts and its rate."""
    if (story := _story.get()) is not None:
        story.end(stage, receipt)
    told = told_of(stage, receipt)
    counts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in receipt.counts.items() if _is_number(value))
    rate = f" · {told['per_second']:g}/s" if told["per_second"] and not receipt.reused else ""
    took = f"{receipt.seconds:.1f} s"
    if receipt.reused:
        took = "training kept" if receipt.counts.get("kept_training") else "already done"
    say("stage", f"[bold]{stage}[/bold] {took}{rate} · {counts}", **told)
    _log.info("%s: %s%s, %s", stage, took, rate.replace(" · ", ", "), counts)  # for Prefect's page of the run


def say(event: str, words: str, **facts: Any) -> None:
    """A line on standard error: the words, or the facts as JSON."""
    if _is_json():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        sys.stderr.write(json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False) + "\n")
        sys.stderr.flush()
    else:
        console.print(words, highlight=False, soft_wrap=True)


def _in_flow() -> bool:
    """Commands that are no flow, as `purify evaluate`, would start a server of Prefect's to tell it something."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def _is_json() -> bool:
    return os.environ.get(LOG_FORM) == "json"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def key(stage: str) -> str:
    """The key of a stage's artifacts: small letters, digits and dashes, which is all that Prefect takes."""
    return "purify-" + stage.lower().replace(" ", "-").replace(",", "")
