"""Names from a crawl that would steer a terminal, in all that the commands print; and data that stay exact."""

import csv
import io
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from pipeline import decisions
from pipeline.resources import data_folder
from pipeline.visible import json_text, visible
from tests.pipeline.fake_run import Planted, key_of, write_run

HOSTILE = "\x1b[31mRed\x1b[0m\x1b]0;pwned\x07\n\u202egpj\x9b2J\u2028"
SPELLED = "⟨U+001B⟩[31mRed⟨U+001B⟩[0m⟨U+001B⟩]0;pwned⟨U+0007⟩⟨U+000A⟩⟨U+202E⟩gpj⟨U+009B⟩2J⟨U+2028⟩"
STEERING = "\x1b\x07\x9b\u202e\u2028"
PLANTED = [*[Planted(identity=HOSTILE, angle_deg=80.0, verdict="drop", reason="angle")] * 12, Planted(identity="Ann")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = write_run(tmp_path / "run", PLANTED)
    decisions.decide(made, [{"sample_id": key_of(PLANTED, 0), "verdict": "relabel", "clean_identity": HOSTILE}], by="Ann")
    return made


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert (stop.value.code or 0) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


@pytest.mark.parametrize("form", ["table", "markdown"])
@pytest.mark.parametrize("question", [("query", "select distinct identity from manifest"), ("report", "noisiest"), ("why",), ("diff",)])
def test_tables_for_people_spell_out_what_would_steer_a_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], question: tuple[str, ...], form: str
) -> None:
    command, *rest = question
    rest = {"why": [key_of(PLANTED, 0)], "diff": [str(run)]}.get(command, rest)
    told = said(capsys, command, str(run), *rest, "--format", form)
    assert not set(STEERING) & set(told)
    assert command == "diff" or (SPELLED if command == "query" else "⟨U+001B⟩[31mRed") in told


def test_data_in_a_pipe_are_exact(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select distinct identity from manifest order by 1"
    as_csv = said(capsys, "query", str(run), sql, "--format", "csv")
    assert [row["identity"] for row in csv.DictReader(io.StringIO(as_csv, newline=""))] == [HOSTILE, "Ann"]
    as_json = said(capsys, "query", str(run), sql, "--format", "json")
    assert [json.loads(line)["identity"] for line in as_json.strip().split("\n")] == [HOSTILE, "Ann"]
    assert not set(STEERING) & set(as_json)
    said(capsys, "query", str(run), sql, "--format", "parquet", "--out", str(tmp_path / "x.parquet"))
    assert pq.read_table(tmp_path / "x.parquet")["identity"].to_pylist() == [HOSTILE, "Ann"]
    assert HOSTILE in next(csv.reader(io.StringIO(said(capsys, "decisions", str(run)).partition("\n")[2], newline="")))


@pytest.mark.parametrize("words", [("decisions",), ("query", "select distinct identity from manifest", "--format", "csv")])
def test_data_on_a_terminal_do_not_steer_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    told = said(capsys, words[0], str(run), *words[1:])
    assert not set(STEERING) & set(told) and "⟨U+001B⟩[31mRed" in told


def test_history_and_errors_too(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    entry = {"run_id": "1", "finished_at": "2026-01-01T00:00:00", "items": 3, "samples": 3, "kept_share": 0.6, "drift": None}
    entry |= {"noise_rate": 0.3, "noise_rate_low": 0.1, "noise_rate_high": 0.5}
    entry |= {"sources": [{"source": HOSTILE, "noise": 0.5, "samples": 3}]}
    (run / "run.json").write_text("{}")
    (run / "history").mkdir(exist_ok=True)
    (run / "history" / "1.json").write_text(json.dumps(entry), "utf-8")
    assert "⟨U+001B⟩[31mRed" in (told := said(capsys, "history", str(run))) and not set(STEERING) & set(told)
    message = said(capsys, "inspect", str(tmp_path / HOSTILE), code=1)
    assert not set(STEERING) & set(message) and "⟨U+202E⟩gpj" in message.replace("\n", "")


def test_spelling_out_leaves_other_scripts_and_joiners_alone() -> None:
    assert visible("Zoë 李小龙 نجيب 👩\u200d🚀 a\\b") == "Zoë 李小龙 نجيب 👩\u200d🚀 a\\b"
    assert visible("a\nb\x1b", keep="\n") == "a\nb⟨U+001B⟩"
    assert json.loads(json_text({HOSTILE: ["\ud800"]})) == {HOSTILE: ["\ud800"]}


def test_free_text_may_begin_with_hyphens(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "13" in said(capsys, "query", str(run), "-- how many\nselect count(*) as items from manifest")
    assert "13" in said(capsys, "query", str(run), "--format", "csv", "--", "select count(*) from manifest")
    sql = (data_folder("sql") / "summary.sql").read_text("utf-8")
    assert sql.startswith("--") and "share_percent" in said(capsys, "query", str(run), sql, "--format", "csv")
    one = ["--sample", key_of(PLANTED, 0)]
    relabel = ["--verdict", "relabel", "--identity", "--a name", "--new-identity", "--note", "-- why", "--by", "-me"]
    assert "1 decision recorded" in said(capsys, "decide", str(run), *one, *relabel)
    assert "--a name" in said(capsys, "decisions", str(run)) and "-- why" in said(capsys, "decisions", str(run))
    assert "1 decision undone" in said(capsys, "undo", str(run), *one, "--by", "-me", "--note", "--mine")
    assert "unknown option" in said(capsys, "query", str(run), "select 1", "--nope", code=2).lower()
