"""A part of `python -m tests.faults`, which does a hundred kills and every trouble: a run that was disturbed ends as one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import NotWritable, WorkerLost
from pipeline.fanout import fan_out
from pipeline.layout import RunLayout
from pipeline.receipts import Counts, run_stage, settle
from pipeline.run_folder import claimed

ROOT = Path(__file__).resolve().parents[2]
LITTLE = "--kills 3 --new-only --rounds 1 --identities 6 --seed 3 --troubles".split()


def test_a_disturbed_run_goes_on_to_the_same_bytes() -> None:
    """In a process of its own, which forks: this one holds threads of torch and DuckDB."""
    command = [sys.executable, "-m", "tests.faults", *LITTLE, "a worker is killed in ingest", "machines are lost"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills in " in done.stdout and " 0 differences" in done.stdout and done.stdout.count("as undisturbed") == 2


def die_at_first(part: Path) -> str:
    if not part.exists():
        part.touch()
        os._exit(1)
    return part.name


def die(_: int) -> None:
    os._exit(1)


def test_parts_of_dead_workers_are_done_again_and_a_part_that_always_kills_is_told(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    assert fan_out(die_at_first, [tmp_path / "a", tmp_path / "b"], workers=2) == ["a", "b"]
    with pytest.raises(WorkerLost, match="Most often the memory was full"):
        fan_out(die, [1, 2], workers=2)


LARGE = """
import os, select
from multiprocessing.connection import Connection
from pathlib import Path
from pipeline.fanout import fan_out

def killed_half_way(connection, message):
    os.write(connection.fileno(), message[: select.PIPE_BUF])
    if len(message) > select.PIPE_BUF:
        os._exit(1)

def large(part):
    Connection._send = killed_half_way
    return bytes(part)

if __name__ == "__main__":
    print([len(one) for one in fan_out(large, [10, 1_000_000, 20_000, 2000], workers=2)], [*Path(os.environ["TMPDIR"]).glob("purify*")])
"""


def test_no_result_is_so_large_that_a_killed_worker_could_leave_half_of_it_in_the_pipe(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(LARGE)
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "large.py")],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[10, 1000000, 20000, 2000] []\n", done.stderr
    assert not done.stderr, "no worker died"


@pytest.mark.parametrize("threads", ["", "2,1", "many"])
def test_workers_start_whatever_omp_num_threads_says(threads: str) -> None:
    command = "from pipeline.fanout import fan_out\nprint(fan_out(abs, [-1, 2], workers=2))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[1, 2]\n", done.stderr


STARTING = """
import os, time
from pipeline.fanout import fan_out

if __name__ == "__main__":
    print(fan_out(abs, [-1, 2], workers=2))
else:
    try:
        os.mkdir("killed")
    except FileExistsError:
        time.sleep(0.5)
    else:
        os._exit(1)
"""


def test_a_worker_that_is_killed_while_it_starts_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(STARTING)
    done = subprocess.run([sys.executable, "starting.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[1, 2]\n", done.stderr
    assert (tmp_path / "killed").exists()


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from pipeline.fanout import fan_out\nfan_out(print, [1, 2], workers=2)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'put the call under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_half_files_of_killed_writers_are_swept_and_a_sealed_folder_is_not_made_again(tmp_path: Path) -> None:
    def stopped(folder: Path) -> Counts:
        (folder / ".part.1234.tmp").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=stopped)
    run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=lambda _: {"n": 1})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_receipt.json"]
    (tmp_path / "out").rename(tmp_path / f".out.partial-{'a' * 16}")  # killed between receipt and rename
    again = run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=lambda _: {"n": 2})
    assert again.counts == {"n": 1}


def write_half_and_die_at_first(part: Path) -> None:
    if not part.exists():
        part.touch()
        part.with_name(f".{part.name}.{os.getpid()}.tmp").write_text("half")
        os._exit(1)


def test_the_half_file_of_a_killed_worker_is_not_sealed_with_the_whole_ones_that_others_wrote(tmp_path: Path) -> None:
    def work(folder: Path) -> Counts:
        fan_out(write_half_and_die_at_first, [folder / "a", folder / "b"], workers=2)
        return {}

    run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=work)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_receipt.json", "a", "b"]


def test_a_swap_that_was_killed_half_way_is_settled(tmp_path: Path) -> None:
    (tmp_path / ".raw.old").mkdir()
    settle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "nothing new stands: the old one does"
    (tmp_path / ".raw.old").mkdir()
    settle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "the new one stands: the old one goes"


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    def refused(folder: Path) -> Counts:
        raise PermissionError(13, "Permission denied", str(folder / "x"))

    with pytest.raises(NotWritable, match=r"partial.*x: Permission denied\. Let this user"):
        run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=refused)


def test_a_process_that_was_killed_while_it_claimed_the_folder_is_no_hindrance(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    run.root.mkdir()
    (run.root / ".lock").touch()
    for half in (".run.json.1234.tmp", "..status.json.1234.tmp"):
        (run.root / half).write_text("{")
    with claimed(tmp_path, run):
        assert sorted(path.name for path in run.root.iterdir()) == [".lock", "run.json"]
    run.history.mkdir()
    (run.history / ".000001-abc.json.1234.tmp").write_text("{")
    with claimed(tmp_path, run):
        assert not list(run.history.iterdir())
