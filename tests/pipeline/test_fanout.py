"""Parts of a stage over processes: in order, and in the caller's environment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.fanout import each_of, fan_out, worker_count, workers_kept

ROOT = Path(__file__).parents[2]


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


def process_of(part: int) -> int:
    return os.getpid()


def killed_once(part: tuple[int, Path]) -> int:
    number, mark = part
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_workers_are_kept_for_the_next_parts_and_a_killed_one_costs_its_part_only(tmp_path: Path) -> None:
    with workers_kept(2):
        first, again = set(fan_out(process_of, [1, 2, 3], workers=2)), set(fan_out(process_of, [4, 5, 6], workers=2))
        assert os.getpid() not in first | again and len(first | again) <= 2
        assert fan_out(killed_once, [(number, tmp_path / "killed") for number in range(4)], workers=2) == [0, 1, 2, 3]
        assert len(set(fan_out(process_of, [1, 2, 3, 4], workers=2))) == 1, "by half as many"
    assert set(fan_out(process_of, [1, 2], workers=2)).isdisjoint(first | again)


def test_results_come_one_after_another() -> None:
    results = each_of(told, [1, 2], workers=1)
    assert next(results)[0] == 1 and next(results)[0] == 2


@pytest.mark.parametrize("prepared", ["", "fanout.prepare(['heavy'], workers=2); "])
def test_what_workers_need_is_imported_once_for_all_of_them(tmp_path: Path, prepared: str) -> None:
    (tmp_path / "heavy.py").write_text("import os\nimported_by, threads = os.getpid(), os.environ['OMP_NUM_THREADS']\n", "utf-8")
    (tmp_path / "work.py").write_text("import os, heavy\ndef told(part): return os.getpid(), heavy.imported_by, heavy.threads\n", "utf-8")
    program = f"from pipeline import fanout; import json; {prepared}import work; print(json.dumps(fanout.fan_out(work.told, [1, 2, 3], workers=2)))"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{env.get('PYTHONPATH', '')}"}
    command = [
        sys.executable,
        "-c",
        f"import os; os.environ['OMP_NUM_THREADS'] = '1'; import work; del os.environ['OMP_NUM_THREADS']; {program}",
    ]
    found = json.loads(subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout)
    assert len({by for _, by, _ in found}) == 1 and all(by != worker for worker, by, _ in found)
    assert {threads for _, _, threads in found} == {str(max(1, worker_count(0) // 2))}
