"""Prefect's small server, which lasts as long as a command, where the environment names none; and a flow that outlives its server.

Nothing of ours stands on a server: the record is in the run folder. One that goes away costs a few seconds at each thing that it would have been told.
"""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from httpx import HTTPError
from prefect.exceptions import PrefectException
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from flows.progress import heed_signal, say
from pipeline.errors import PurifyError
from pipeline.layout import RunLayout
from pipeline.run_folder import read_record

_RETRIES = 1
"""Of a small server, after 2 s. It answers at once or has ended; Prefect's five retries would wait a minute at each thing that is told."""


def told_to_prefect(flow: Callable[..., Any], run: RunLayout, *arguments: Any, **options: Any) -> Any:
    """What `flow(*arguments, **options)` returns; or the record of the run, when that was written and Prefect's server has gone away since.

    Raises PurifyError when the server does not answer before that.
    """
    before = _written(run)
    try:
        with _served():
            return flow(*arguments, **options)
    except (HTTPError, PrefectException) as error:
        heed_signal(error)
        if _written(run) != before and read_record(run).get("finished"):
            say("warning", f"Prefect's server has gone away ({type(error).__name__}). The run is finished all the same.")
            return read_record(run)
        raise PurifyError(
            f"Prefect's server does not answer ({type(error).__name__}). Finished work is kept: the same command goes on where it stopped. "
            "Without PREFECT_API_URL in the environment it needs no server of yours."
        ) from error


def start() -> None:
    """Begin to start the small server where one is needed, and return at once: it takes seconds, as does the import of torch."""
    if not PREFECT_API_URL.value() and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        _starting()


@functools.cache
def _starting() -> Future[None]:
    say("server", "Starting Prefect's small server. The first time it makes its database, which takes half a minute.")
    # Ctrl-C goes to all processes of a terminal. The server is not to end by it before the flow has told how it ended; a process begins with
    # the signals blocked that its thread has blocked.
    thread = ThreadPoolExecutor(1, initializer=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))
    return thread.submit(SubprocessASGIServer().start)


@contextlib.contextmanager
def _served() -> Iterator[None]:
    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        yield
        return
    try:
        _starting().result()
    except RuntimeError as error:  # it did not answer in time
        raise PurifyError(
            f"Prefect's small server does not start: {error} A machine that is slow to make its database is given longer by "
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS (180). Or start one that stays, `prefect server start`, and set PREFECT_API_URL."
        ) from error
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: _RETRIES}):
        yield


def _written(run: RunLayout) -> int | None:
    try:
        return run.run_json.stat().st_mtime_ns
    except OSError:
        return None
