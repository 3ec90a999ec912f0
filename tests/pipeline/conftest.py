"""What tests of pages share."""

from collections.abc import Iterator

import pytest

from tests.browser import Browser, browser_in, is_there


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not is_there():
        pytest.skip("chromium or chromedriver is not installed")
    with browser_in(tmp_path_factory.mktemp("browser")) as opened:
        yield opened
