"""Where commands refuse to write, and the form that they write in."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from pipeline.errors import BadConfig
from pipeline.outside import require_outside, run_around
from tests.flows.test_screen import said
from tests.pipeline.crawl_forms import picture
from tests.pipeline.fake_run import Planted, key_of, write_run

PLANTED = [Planted(identity="Ann"), Planted(identity="Bob", angle_deg=80.0, verdict="drop", reason="angle")]
SQL = ("query", "{run}", "select 1 as a")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = write_run(tmp_path / "run", PLANTED)
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    record = json.loads((made / "run.json").read_text("utf-8")) if (made / "run.json").exists() else {}
    (made / "run.json").write_text(json.dumps({**record, "crawl": str(crawl), "finished": True}), "utf-8")
    return made


@pytest.mark.parametrize(
    "words",
    [
        (*SQL, "--out", "{out}"),
        ("report", "{run}", "summary", "--out", "{out}"),
        ("why", "{run}", key_of(PLANTED, 0), "--out", "{out}"),
        ("diff", "{run}", "{run}", "--out", "{out}"),
        ("decisions", "{run}", "--out", "{out}"),
        ("sample-review", "{run}", "{out}"),
        ("figures", "{run}", "{out}"),
        ("map", "{run}", "{out}"),
        ("imagine", "{run}", "{out}", "--identity", "Ann"),
        ("gap", "{run}", "truth.parquet", "{out}"),
        ("export", "{run}", "--to", "parquet", "--out", "{out}"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_writes_into_a_run_or_its_crawl(
    run: Path, tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    is_folder = words[0] in {"sample-review", "figures", "map", "imagine", "gap", "export"}
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    names = [run / "x", tmp_path / "link" / "x", run / "raw" / "x", run.parent / "crawl" / "x"] + ([] if is_folder else [run / "run.json"])
    for out in names:
        with pytest.raises(SystemExit) as stop:
            cli.main([word.format(run=run, out=out) for word in words])
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert stop.value.code == 2 and ("lies in the crawl" if "crawl" in out.parts else "lies in the run folder") in told
    (tmp_path / "link").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "words",
    [
        ("export-model", "{run}", "{out}.onnx"),
        ("make-pairs", "{run}", "{out}.txt"),
        ("evaluate", "x", "--protocol", "a=b", "--out", "{out}"),
    ],
    ids=lambda words: words[0],
)
def test_nor_do_the_others(run: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, *(word.format(run=run, out=run / "x") for word in words), code=2)
    assert "lies in the run folder" in " ".join(told.replace("│", " ").split())


def test_evaluate_looks_at_its_default_too(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert "evaluation lies in the run folder" in said(capsys, "evaluate", "x", "--protocol", "a=b", code=2).replace("│", " ")


def test_a_sheet_does_not_become_a_part_of_the_crawl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Ann").mkdir()
    (tmp_path / "Ann" / "1.jpg").write_bytes(picture(1))
    assert "lies in the crawl" in said(capsys, "inspect", str(tmp_path), "--sheet", str(tmp_path / "Ann" / "sheet.jpg"), code=1)


def test_what_is_a_run_folder(run: Path, tmp_path: Path) -> None:
    assert run_around(run) == run_around(run / "raw" / "not" / "there") == run
    (run / "run.json").write_text("{half")
    assert run_around(run) is None
    (run / ".lock").touch()
    assert run_around(run / "x") == run
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"crawling": 1}')
    assert run_around(tmp_path / "other" / "x") is None
    require_outside(tmp_path / "other" / "x", run)


def test_a_crawl_that_is_the_root_of_all_is_still_found(run: Path, tmp_path: Path) -> None:
    (run / "run.json").write_text(json.dumps({"crawl": os.sep}))
    with pytest.raises(BadConfig, match="lies in the crawl"):
        require_outside(tmp_path / "x", run)


@pytest.mark.parametrize(
    ("name", "start"), [("x.csv", b"a\n1\n"), ("x.JSON", b'{"a":1}'), ("x.md", b"| a |"), ("x.txt", b"| a |"), ("x.parquet", b"PAR1")]
)
def test_the_form_follows_the_name(run: Path, tmp_path: Path, name: str, start: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, *(word.format(run=run) for word in SQL), "--out", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_form_that_contradicts_the_name_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, name in (("json", "x.csv"), ("csv", "x.parquet"), ("table", "x.json")):
        told = said(capsys, *(word.format(run=run) for word in SQL), "--format", form, "--out", str(tmp_path / name), code=2)
        assert f"--format {form} would go into" in told and not (tmp_path / name).exists()
    assert "--format csv would go into" in said(
        capsys, "decisions", str(run), "--format", "csv", "--out", str(tmp_path / "d.parquet"), code=2
    )
    said(capsys, "decisions", str(run), "--out", str(tmp_path / "d.parquet"))
    assert pq.read_table(tmp_path / "d.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("export", "{run}", "--to", "parquet", "--out", ""), "--out"),
        (("run", "", "run"), "CRAWL"),
        (("run", "crawl", ""), "RUN"),
        (("run", "crawl", "run", "--config", ""), "--config"),
        (("status", ""), "RUN"),
        (("verify", " "), "PLACE"),
    ],
    ids=lambda one: "-".join(one).replace("{run}", "") if isinstance(one, tuple) else one,
)
def test_an_empty_path_is_not_the_current_folder(
    run: Path, words: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit) as stop:
        cli.main([word.format(run=run) for word in words])
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stop.value.code == 2 and name in told and "is empty. Give a path" in told.replace("It is", "is") and not list(Path().iterdir())
