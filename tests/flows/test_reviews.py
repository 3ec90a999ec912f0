"""The commands for people who look, as they are typed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from pipeline import decisions
from tests.pipeline.fake_run import key_of
from tests.pipeline.reviewed import PLANTED, reviewable


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = reviewable(tmp_path / "run")
    decisions.decide(made, [{"sample_id": key_of(PLANTED, 0), "verdict": "drop"}], by="Ann")
    return made


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_decisions_on_the_screen_and_into_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert key_of(PLANTED, 0) in said(capsys, "decisions", str(run))
    said(capsys, "decisions", str(run), "--format", "parquet", "--out", str(tmp_path / "d.parquet"))
    assert pq.read_table(tmp_path / "d.parquet")["verdict"].to_pylist() == ["drop"]


def test_saved_queries_are_listed_of_a_run_only(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "noisiest" in said(capsys, "report", str(run))
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path / "nope")])
    assert stop.value.code == 1 and "nope has no manifest" in " ".join(capsys.readouterr().err.split())


def test_names_and_hands_of_decisions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = key_of(PLANTED, 0)
    to_nobody = ("decide", str(run), "--sample", sample, "--verdict", "relabel", "--identity", "No One New", "--by", "me")
    for argv, message in (
        (to_nobody, "'No One New' is no identity of this run"),
        (("undo", str(run), "--sample", sample, "--by", "me"), "--of Ann"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        assert stop.value.code == 1 and message in " ".join(capsys.readouterr().err.split())
    assert "1 decision recorded" in said(capsys, *to_nobody, "--sample", sample, "--new-identity")
    assert "1 decision undone" in said(capsys, "undo", str(run), "--sample", sample, "--by", "me")
    assert "1 decision undone" in said(capsys, "undo", str(run), "--sample", sample, "--by", "me", "--of", "Ann")
    assert said(capsys, "decisions", str(run)).count("\n") == 1, "nothing stands"


def test_decided_again_and_undone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = key_of(PLANTED, 0)
    said(capsys, "decisions", str(run), "--out", str(tmp_path / "d.csv"))
    again = ("decide", str(run), "--import", str(tmp_path / "d.csv"))
    assert "0 decisions recorded, 1 stands already" in said(capsys, *again, "--by", "Ann")
    assert "1 decision recorded. To" in said(capsys, *again, "--by", "Bob [red]")
    told = said(capsys, "undo", str(run), "--sample", sample, "--by", "Bob [red]")
    assert "1 decision undone; an earlier decision (drop by Ann) stands again. To carry" in told
    for option, value in (("--verdict", "keep"), ("--note", "x"), ("--identity", "X"), ("--sample", sample)):
        with pytest.raises(SystemExit) as stop:
            cli.main([*again, "--by", "Ann", option, value])
        assert stop.value.code == 2 and option in capsys.readouterr().err


def test_review_of_what_is_no_run_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["review", str(tmp_path), "--no-open"])
    assert stop.value.code == 1 and "purify run" in capsys.readouterr().err


@pytest.mark.parametrize("question", [("report", "summary"), ("query", "from manifest"), ("decisions",)])
def test_a_file_that_cannot_be_written_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], question: tuple[str, ...]
) -> None:
    for out, message in ((tmp_path, "is a directory"), (tmp_path / "no" / "x.csv", "There is no folder")):
        with pytest.raises(SystemExit) as stop:
            cli.main([question[0], str(run), *question[1:], "--format", "csv", "--out", str(out)])
        assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "question", [("imagine", "OUT", "--identity", "Ann"), ("gap", "truth.parquet", "OUT"), ("map", "OUT"), ("export",)]
)
def test_a_run_that_is_not_finished_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], question: tuple[str, ...]) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "run.json").write_text('{"crawl": "/crawl", "finished": false}', "utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.main([question[0], str(run), *(str(tmp_path / "out") if word == "OUT" else word for word in question[1:])])
    assert stop.value.code == 1 and "Run `purify run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "question",
    [("decisions",), ("decisions", "--format", "label-studio"), ("map", "out"), ("figures", "out"), ("report", "noisiest"), ("export",)],
)
def test_nothing_is_told_while_a_forget_is_not_finished(run: Path, capsys: pytest.CaptureFixture[str], question: tuple[str, ...]) -> None:
    (run / "forgotten").mkdir()
    (run / "forgotten" / "pending.json").write_text("{}", "utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.main([question[0], str(run), *question[1:]])
    told = capsys.readouterr()
    assert stop.value.code == 1 and told.out == "" and "To finish it: purify forget" in told.err


@pytest.mark.parametrize(
    "question", [("report", "summary"), ("query", "from manifest"), ("why", "0" * 64), ("decisions",), ("sample-review", "out")]
)
def test_a_damaged_table_is_told_without_a_trace(run: Path, capsys: pytest.CaptureFixture[str], question: tuple[str, ...]) -> None:
    (run / "manifest" / "part-000000.parquet").write_bytes(b"junk")
    with pytest.raises(SystemExit) as stop:
        cli.main([question[0], str(run), *question[1:]])
    assert stop.value.code == 1 and "cannot be read" in (told := capsys.readouterr().err) and "purify verify" in told
