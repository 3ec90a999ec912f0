"""The flags of `purify run` that set how faces are found: they are settings, and what does not fit is said in a dry run."""

import json
from pathlib import Path

import pytest

from flows import cli


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err.replace("\n", " ")


def test_flags_are_settings_and_win_over_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "crawl" / "A").mkdir(parents=True)
    (tmp_path / "crawl" / "A" / "1.jpg").write_bytes(b"x")
    points = tmp_path / 'odd "name".json'
    points.write_text("{}")
    flags = ["--detector", "landmarks", "--landmarks", str(points), "--faces", "all", "--max-bad-items", "0.25"]
    code, out, _ = said(capsys, "run", str(tmp_path / "crawl"), str(tmp_path / "run"), "--set", "ingest.faces=main", *flags, "--dry-run")
    settings = json.loads(out[out.index("{") :])["ingest"]
    assert code == 0 and {name: settings[name] for name in ("detector", "landmarks", "faces", "max_bad_items", "detector_model")} == {
        "detector": "landmarks",
        "landmarks": str(points),
        "faces": "all",
        "max_bad_items": 0.25,
        "detector_model": None,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--detector", "yunet"], "needs --detector-model FILE"),
        (["--detector-model", "x.onnx"], "Add --detector yunet or --detector scrfd"),
        (["--detector", "yunet", "--detector-model", "nowhere.onnx"], "There is no file"),
        (["--detector", "haar"], "haar"),
        (["--max-bad-items", "2"], "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "crawl" / "A").mkdir(parents=True)
    (tmp_path / "crawl" / "A" / "1.jpg").write_bytes(b"x")
    code, out, err = said(capsys, "run", str(tmp_path / "crawl"), str(tmp_path / "run"), *flags, "--dry-run")
    assert code != 0 and message in err + out and not (tmp_path / "run").exists()
