from pathlib import Path
from typing import Any

import pytest

from flows import progress
from pipeline.status import read_status


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


def test_an_export_does_not_hide_that_a_run_was_stopped(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"finished": true, "stages": []}')

    def stopped(command: str, stage: str) -> tuple[str, str, str | None]:
        with pytest.raises(KeyboardInterrupt), progress.told_in(tmp_path, command), progress.shown(stage):
            raise KeyboardInterrupt
        found = read_status(tmp_path)
        return found.state, found.command, found.stage

    assert stopped("purify export", "manifest") == ("stopped", "purify export", "manifest")
    with progress.told_in(tmp_path, "purify export"), progress.shown("manifest"):
        pass
    assert read_status(tmp_path).state == "finished"
    assert stopped("purify run", "train") == ("stopped", "purify run", "train") == stopped("purify export", "manifest")
    with progress.told_in(tmp_path, "purify export"), progress.shown("manifest"):
        pass
    assert read_status(tmp_path).command == "purify run" and read_status(tmp_path).state == "stopped"
    with progress.told_in(tmp_path), progress.shown("train"):
        pass
    assert read_status(tmp_path).state == "finished"
