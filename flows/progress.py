"""Progress of a stage, in the terminal (rich) and in Prefect (an artifact that its pages show)."""

import contextlib
import time
from collections.abc import Iterator

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.receipts import Progress as Report

_PREFECT_EVERY_S = 10.0
console = Console(stderr=True)


@contextlib.contextmanager
def shown(stage: str) -> Iterator[Report]:
    """A function (done, total) that draws a bar named `stage`, and tells Prefect every ten seconds; short stages tell it nothing."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started = told = time.monotonic()
    artifact = None
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(stage, total=None)

        def report(done: int, total: int) -> None:
            nonlocal told, artifact
            bars.update(bar, completed=done, total=total)
            now = time.monotonic()
            if (now - told < _PREFECT_EVERY_S and done < total) or now - started < _PREFECT_EVERY_S:
                return
            told, percent = now, 100.0 * done / max(total, 1)
            try:
                if artifact is None:
                    artifact = create_progress_artifact(progress=percent, key=_key(stage), description=stage)
                else:
                    update_progress_artifact(artifact_id=artifact, progress=percent)
            except (HTTPError, PrefectException) as error:  # hours of training do not depend on a server that is slow to answer
                console.print(f"Prefect was not told of the progress: {type(error).__name__}", highlight=False)

        yield report


def _key(stage: str) -> str:
    return "purify-" + stage.lower().replace(" ", "-").replace(",", "")
