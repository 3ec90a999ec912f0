from typing import Any

import pytest

from flows import progress


def test_a_command_that_is_no_flow_tells_prefect_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start a server for it."""

    def refuse(**_: Any) -> None:
        raise AssertionError("Prefect was told")

    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    monkeypatch.setattr(progress, "_PREFECT_EVERY_S", 0.0)
    with progress.shown("evaluate") as report:
        report(1, 2)
        report(2, 2)
    monkeypatch.setattr(progress, "_in_flow", lambda: True)
    with pytest.raises(AssertionError, match="Prefect was told"), progress.shown("evaluate") as report:
        report(2, 2)
