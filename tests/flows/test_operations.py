"""What who runs this unattended sees: exit codes, the marked flow run, lines of JSON, the trend."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL

from flows import cli
from flows.operations import deployment_of
from flows.purify import purify
from tests.flows.small_run import OPTIONS, config

pytestmark = pytest.mark.usefixtures("server")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [word for option in (*OPTIONS, "rounds=1", "train.epochs=3") for word in ("--set", option)]


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_a_run_beyond_a_limit_is_marked_in_words_in_the_exit_code_and_in_prefect(
    tiny_crawl: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crawl, run = str(tiny_crawl[0]), str(tmp_path / "run")
    code, out, err = said(capsys, "run", crawl, run, "--preset", "demo", *SETTINGS, "--set", "limits.kept_share=1.0", "--set", "rounds=1")
    assert "pictures are few" in " ".join(err.split())
    assert code == 3 and "below limits.kept_share 1" in " ".join(out.split())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["warnings"]) == 1 and not (tmp_path / "run" / ".status.json").exists()
    code, out, _ = said(capsys, "status", run)
    assert code == 0 and "Finished" in out and "limits.kept_share" in " ".join(out.split())

    limited = config("rounds=1", "train.epochs=3", "limits.kept_share=1.0")
    state: Any = purify(tiny_crawl[0], tmp_path / "run", limited, return_state=True)
    assert (state.name, state.type.value) == ("Warned", "COMPLETED") and "limits.kept_share" in state.message
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(state.state_details.flow_run_id)
        kept = {artifact.key for artifact in client.read_artifacts() if artifact.flow_run_id == found.id}
    assert found.state_name == "Warned"
    assert {"purify-ingest", "purify-round-1-train", "purify-export", "purify-summary", "purify-outcome", "purify-audit"} <= kept

    capsys.readouterr()
    code, _, err = said(capsys, "run", crawl, run, "--preset", "demo", *SETTINGS, "--log", "json")
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0 and next(line["stage"] for line in lines if line["event"] == "stage") == "ingest"
    redone = {line["stage"] for line in lines if line["event"] == "stage" and not line["reused"]}
    assert redone == {"audit"}, "its pages show the settings, of which a limit is gone"
    assert all("time" in line for line in lines)
    os.environ.pop("PURIFY_LOG")

    code, out, _ = said(capsys, "history", run, "--format", "json")
    [entry] = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and entry["run_id"] == record["run_id"] and entry["items"] == record["stages"][0]["counts"]["items"]
    code, out, _ = said(capsys, "history", run)
    assert entry["run_id"] in out and "noise rate" in out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["run", "only-one"], 2, ""),
        (["run", "a", "b", "--set", "rounds=0"], 2, "rounds"),
        (["run", "a", "b", "--set", "foo=1"], 2, "There is no setting 'foo'. `purify run CRAWL RUN --dry-run` shows every setting"),
        (["run", "a", "b", "--set", "nope=1"], 2, "There is no setting 'nope'. `purify run CRAWL RUN --dry-run` shows every setting"),
        (["run", "a", "b", "--set", "epochs=1"], 2, "Did you mean 'train.epochs'?"),
        (["frobnicate"], 2, ""),
        (["--version"], 0, version("arcface-purify")),
        (["status", "nowhere"], 1, "is no run folder"),
        (["serve", "a", "b", "--cron", "bad"], 2, "--cron '0 3 * * *'"),
        (["serve", "a", "b", "--cron", "0 3 * * *", "--timezone", "Nowhere/X"], 2, "--timezone"),
        (["serve", "a", "b"], 1, "No Prefect server answers at http://127.0.0.1:9/api"),
        (["history", "nowhere"], 1, "There is no run folder at nowhere"),
        (["history", "tests"], 1, "tests is no run folder"),
        (["sample-review", "a", "b", "--n", "0"], 2, ">= 2"),
        (["decide", "a", "--sample", "b", "--by", "me"], 2, "Give --verdict: keep, drop or relabel."),
        (["decide", "a", "--by", "me"], 2, "Give --sample and --verdict, or --import FILE."),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        found, out, err = said(capsys, *argv)
    assert found == code and message in err.replace("\n", " ") + out


def test_serve_wants_a_server_that_stays(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.settings

    with prefect.settings.temporary_settings(restore_defaults={prefect.settings.PREFECT_API_URL}):
        code, _, err = said(capsys, "serve", "crawl", "run", "--cron", "0 3 * * *")
    assert code == 1 and "prefect server start" in err


def test_the_server_makes_the_runs_of_a_schedule() -> None:
    """The server's own scheduler goes the same way, and where the way is broken it says so in its log only: with SQLAlchemy 2.1 it was."""
    with get_client(sync_client=True) as client:
        schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *", timezone="UTC"))
        deployment = client.create_deployment(client.create_flow(purify), "by the clock", schedules=[schedule])
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={"min_runs": 2})
        of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        hours = [run.expected_start_time.hour for run in client.read_flow_runs(flow_run_filter=of_it) if run.expected_start_time]
    assert len(hours) >= 2 and set(hours) == {3}


def test_a_termination_is_told_and_its_code_is_that_of_a_signal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_purify", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = said(capsys, "run", "crawl", str(tmp_path / "run"))
    assert code == 143 and "goes on where it stopped" in err
    os.environ.pop("PURIFY_LOG")


def test_who_serves_a_crawl_reads_why_a_run_failed_and_ends_by_a_signal(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    crawl, log = tmp_path / "crawl", tmp_path / "log"
    shutil.copytree(tiny_crawl[0], crawl)
    prefect = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows.cli", "serve", str(crawl), str(tmp_path / "a run")]
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, env=os.environ | prefect, stdout=file, stderr=file) as served:
        name = found_in(log, r"deployment run '(purify/a-run-[0-9a-f]{6})'")
        shutil.rmtree(crawl)
        ended: Any = run_deployment(name, timeout=60, poll_interval=1)
        assert ended.state_name == "Failed"
        found_in(log, r"(Failed: .*There is no crawl at )")
        served.send_signal(signal.SIGTERM)
        assert served.wait(60) == 128 + signal.SIGTERM
    assert "Traceback" not in log.read_text() and log.read_text().endswith("Stopped. The same command goes on where it stopped.\n")


def found_in(log: Path, pattern: str) -> str:
    """What a process has written, or will within a minute."""
    for _ in range(600):
        if found := re.search(pattern, log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_each_run_folder_has_a_deployment_of_its_own(tmp_path: Path) -> None:
    names = [deployment_of(tmp_path / one / "a run/%") for one in "xy"]
    assert len(set(names)) == 2 and all(re.fullmatch(r"run-[0-9a-f]{6}", name) for name in names)
