"""Parts of a stage over processes: in order, and in the caller's environment."""

import os

import pytest

from pipeline.fanout import fan_out


def told(part: int) -> tuple[int, str | None]:
    return part, os.environ.get("PURIFY_TEST_REGION")


def test_results_are_in_order_and_workers_see_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    for region in ("north", "south"):  # the fork server is started by the first
        monkeypatch.setenv("PURIFY_TEST_REGION", region)
        found = fan_out(told, [3, 1, 2], workers=2, progress=lambda done, all_: seen.append((done, all_)))
        assert found == [(3, region), (1, region), (2, region)]
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    monkeypatch.delenv("PURIFY_TEST_REGION")
    assert fan_out(told, [1, 2], workers=2) == [(1, None), (2, None)]
