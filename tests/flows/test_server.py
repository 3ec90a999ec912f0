"""A flow whose Prefect server goes away, and the signals that a whole job receives."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
from prefect.exceptions import TerminationSignal

from flows import server
from flows.progress import tolerated
from flows.server import told_to_prefect
from pipeline.errors import PurifyError
from pipeline.layout import RunLayout
from pipeline.receipts import write_json


class Heeded(BaseException):
    """Raised by the handler."""


@pytest.fixture
def heeding() -> Iterator[None]:
    def handler(number: int, _: object) -> NoReturn:
        raise Heeded(number)

    before = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_served", contextlib.nullcontext)


def gone_while_terminated() -> NoReturn:
    try:
        raise TerminationSignal(signal.SIGTERM)
    finally:
        raise httpx.ConnectError("the server was of the same job")


def flow_that(run: RunLayout, writes: dict[str, object] | None) -> Callable[[], NoReturn]:
    def flow() -> NoReturn:
        if writes is not None:
            write_json(run.run_json, writes)
        raise httpx.ConnectError("gone")

    return flow


def test_a_run_that_was_finished_before_its_server_went_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunLayout(tmp_path)
    assert told_to_prefect(flow_that(run, {"finished": True, "run_id": "of now"}), run) == {"finished": True, "run_id": "of now"}
    assert "finished all the same" in capsys.readouterr().err


@pytest.mark.parametrize("writes", [None, {"finished": False}])
def test_a_run_whose_server_went_before_its_end_is_to_be_given_again(tmp_path: Path, writes: dict[str, object] | None) -> None:
    run = RunLayout(tmp_path)
    write_json(run.run_json, {"finished": writes is None, "run_id": "of yesterday"})
    with pytest.raises(PurifyError, match=r"does not answer.*goes on where it stopped"):
        told_to_prefect(flow_that(run, writes), run)


def test_a_signal_to_the_whole_job_is_heeded_though_the_server_went_first(tmp_path: Path, heeding: None) -> None:
    with pytest.raises(Heeded):
        told_to_prefect(gone_while_terminated, RunLayout(tmp_path))
    with pytest.raises(Heeded), tolerated("of the progress"):
        gone_while_terminated()
    with tolerated("of the progress"):
        raise httpx.ConnectError("gone")
