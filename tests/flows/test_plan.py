"""`purify run --dry-run`: it refuses what the run would refuse, says of each stage whether it would be done and why, and writes nothing."""

import fcntl
import json
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.ingest import ingest
from pipeline.layout import RunLayout
from pipeline.places import recorded
from tests.flows.test_screen import said
from tests.pipeline.test_growth import put


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    (tmp_path / "crawl" / "A").mkdir(parents=True)
    (tmp_path / "crawl" / "A" / "1.jpg").write_bytes(b"x")
    return tmp_path / "crawl"


def begun(run: Path, crawl: object) -> RunLayout:
    (run / "raw").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"crawl": str(crawl), "finished": False}), "utf-8")
    return RunLayout(run)


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_what_a_run_refuses_at_once_a_dry_run_refuses(
    how: tuple[str, ...], crawl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(run: Path, *more: str) -> str:
        there = sorted(run.rglob("*")) if run.is_dir() else []
        told = " ".join(said(capsys, "run", str(crawl), str(run), *more, *how, code=1).split())
        assert not run.is_dir() or {path.name for path in set(run.rglob("*")) - set(there)} <= {".lock"}
        return told

    of_another = begun(tmp_path / "another", tmp_path / "elsewhere")
    assert "is the run of another crawl" in refused(of_another.root)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    assert "holds files that are no run" in refused(tmp_path / "notes")
    assert "is a file" in refused(tmp_path / "notes" / "mine.txt")
    assert "lies in the crawl" in refused(crawl / "run")
    assert "There are no weights at" in refused(tmp_path / "new", "--init", "nowhere.pt")
    half = begun(tmp_path / "half", crawl)
    half.pending.parent.mkdir(exist_ok=True)
    half.pending.write_text("{}")
    assert "stopped half way" in refused(half.root)
    held = begun(tmp_path / "held", crawl)
    with (held.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another process works in" in refused(held.root)


def test_a_dry_run_says_how_the_crawl_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crawl, run = tmp_path / "grown", tmp_path / "run"

    def told(*more: str) -> dict[str, str]:
        there = sorted(run.rglob("*"))
        lines = said(capsys, "run", str(crawl), str(run), "--dry-run", *more).splitlines()
        assert sorted(run.rglob("*")) == there, "nothing is written"
        return dict(line.strip().split(": ", 1) for line in lines if line.startswith("  ") and ": " in line and '"' not in line)

    for number in range(10):
        put(crawl, f"P{number % 2}/{number}.jpg", number)
    assert told()["raw"] == "to do: not there yet: 10 listed" and not run.exists()
    ingest(crawl, run / "raw", load(overrides=["workers=1"]))
    (run / "run.json").write_text(json.dumps({"crawl": recorded(crawl), "finished": False}), "utf-8")
    found = told()
    assert found["raw"] == "stays as it is: 10 listed, nothing has changed" and found["rounds/1/train"] == "to do: not there yet"
    (crawl / "P0/0.jpg").unlink()
    (crawl / "P1/1.jpg").unlink()
    put(crawl, "P0/2.jpg", 20, at_ns=2 * 10**18)
    for number in (11, 12, 13):
        put(crawl, f"P2/{number}.jpg", number)
    found = told()
    assert found["raw"] == "to do: the crawl has changed: 11 listed; 3 new, 1 changed, 2 vanished"
    assert {"manifest", "clean", "evaluation", "audit"} <= set(found)
    assert "all to be read anew" in told("--set", "ingest.near_duplicate_bits=0")["raw"]
