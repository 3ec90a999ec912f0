"""One Prefect server for all tests of flows, in memory of this process and gone with it, and one run that is finished."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.small_run import config


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def finished(server: None, tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(crawl, run, record): the truth table is out of reach while the flow runs. To be copied before it is changed."""
    from flows.purify import purify

    crawl, truth = tiny_crawl
    hidden = truth.rename(truth.with_name("hidden"))
    run = tmp_path_factory.mktemp("end") / "run"
    hidden.chmod(0)
    record = purify(crawl, run, config())
    hidden.chmod(0o600)
    hidden.rename(truth)
    return crawl, run, record
