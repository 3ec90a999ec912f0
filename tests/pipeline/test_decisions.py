"""People win over rules; nothing is rewritten; what is handed in is not trusted."""

import csv
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import decisions, tables
from pipeline.config import load
from pipeline.decisions import decide, digest, read_file, read_standing, undo
from pipeline.errors import BadInput
from pipeline.export import write_manifest
from pipeline.layout import RunLayout
from pipeline.receipts import run_stage
from pipeline.report import query, why
from pipeline.reviewing.exports import as_csv
from tests.pipeline.fake_run import Planted, key_of, write_run

PLANTED = [
    Planted(identity="Ada", angle_deg=20.0),
    Planted(identity="Ada", angle_deg=90.0, verdict="drop", reason="angle"),
    Planted(identity="Bob", angle_deg=30.0),
    Planted(identity="Bob", status="truncated"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", PLANTED, rounds=1)


def standing(run: Path) -> dict[str, str]:
    return {row["sample_id"]: row["verdict"] for row in read_standing(run).to_pylist()}


def manifest(run: Path, out: Path) -> dict[int, dict[str, Any]]:
    layout = RunLayout(run)
    for folder in (layout.raw, layout.round(1).noise):
        if not (folder / "_receipt.json").exists():
            sealed = folder.with_name(f"{folder.name}-sealed")
            run_stage(sealed, stage="made", mark="0" * 64, work=lambda _: {})
            (sealed / "_receipt.json").rename(folder / "_receipt.json")
    write_manifest(layout.raw, layout.round(1).noise, 1, out, load(overrides=["isolate.rule=angle"]), decisions=read_standing(run))
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))]).to_pylist()
    return dict(enumerate(rows))


def test_a_decision_wins_and_the_manifest_shows_both(run: Path, tmp_path: Path) -> None:
    keep, drop = key_of(PLANTED, 1), key_of(PLANTED, 0)
    assert (
        decide(run, [{"sample_id": keep, "verdict": "keep", "note": "I know her"}, {"sample_id": drop, "verdict": "drop"}], by="Eve") == 2
    )
    rows = manifest(run, tmp_path / "manifest")
    assert (rows[1]["verdict"], rows[1]["reason"], rows[1]["decided_by"]) == ("keep", "decision", "person:Eve")
    assert (rows[1]["rule_verdict"], rows[1]["rule_reason"], rows[1]["clean_identity"]) == ("drop", "angle", "Ada")
    assert (rows[0]["verdict"], rows[0]["rule_verdict"], rows[0]["clean_shard"]) == ("drop", "keep", None)
    assert (rows[2]["decided_by"], rows[2]["verdict"]) == ("rule:angle", "keep")
    assert (rows[3]["decided_by"], rows[3]["rule_verdict"]) == ("ingest", None)


def test_a_relabel_by_a_person_is_exported_under_the_name_given(run: Path, tmp_path: Path) -> None:
    decide(run, [{"sample_id": key_of(PLANTED, 1), "verdict": "relabel", "clean_identity": "O'Brien"}], by="Eve", new_identities=True)
    row = manifest(run, tmp_path / "manifest")[1]
    assert (row["identity"], row["clean_identity"], row["clean_shard"]) == ("Ada", "O'Brien", "clean-000000")


def test_the_last_decision_stands_and_undo_brings_back_the_one_before(run: Path) -> None:
    key = key_of(PLANTED, 0)
    for verdict in ("drop", "keep", "drop"):
        decide(run, [{"sample_id": key, "verdict": verdict}], by="Eve")
    assert standing(run) == {key: "drop"}
    undo(run, [key], by="Bo", of="Eve")
    assert standing(run) == {key: "keep"}
    undo(run, [key], by="Bo", of="Eve")
    undo(run, [key], by="Bo", of="Eve")
    assert standing(run) == {} and digest(read_standing(run)) == "none"
    with pytest.raises(BadInput, match="No decision stands"):
        undo(run, [key], by="Bo")
    assert pa.concat_tables([pq.read_table(path) for path in RunLayout(run).decisions.glob("*.parquet")]).num_rows == 6, (
        "nothing is rewritten"
    )
    assert [row["what"] for row in why(run, key).to_pylist() if row["step"] == "decision of Bo"].count("verdict") == 3


def test_one_takes_back_the_own_decisions_only(run: Path) -> None:
    key, other = key_of(PLANTED, 0), key_of(PLANTED, 2)
    decide(run, [{"sample_id": key, "verdict": "drop"}], by="Eve Q")
    assert decide(run, [{"sample_id": key, "verdict": "keep"}] * 2 + [{"sample_id": other, "verdict": "drop"}], by="me") == 2
    assert undo(run, [key, key], by="me") == 1 and standing(run) == {key: "drop", other: "drop"}
    with pytest.raises(BadInput, match=r"No decision of 'me' stands on sample '.*': the one that stands is of 'Eve Q'.*--of 'Eve Q'$"):
        undo(run, [other, key], by="me")
    assert standing(run) == {key: "drop", other: "drop"}, "all or none"
    with pytest.raises(BadInput, match="No decision of 'Eve' stands"):
        undo(run, [key], by="me", of="Eve")
    assert undo(run, [key], by="me", of="Eve Q") == 1 and standing(run) == {other: "drop"}
    with pytest.raises(BadInput, match="--by NAME"):
        undo(run, [other], by=" ")


def test_a_sample_twice_is_one_decision_and_two_verdicts_are_none(run: Path) -> None:
    key, other = key_of(PLANTED, 0), key_of(PLANTED, 2)
    rows = [
        {"sample_id": key, "verdict": "drop", "note": "a"},
        {"sample_id": other, "verdict": "keep"},
        {"sample_id": key, "verdict": "drop"},
    ]
    assert decide(run, rows, by="Eve", dry_run=True) == 2 == decide(run, rows, by="Eve")
    assert query(run, f"SELECT note FROM decisions WHERE sample_id = '{key}'")["note"].to_pylist() == ["a"]
    for last in ({"verdict": "keep"}, {"verdict": "relabel", "clean_identity": "Bob"}):
        with pytest.raises(BadInput, match="Rows 1 and 4 decide differently on sample"):
            decide(run, [*rows, {"sample_id": key, **last}], by="Eve")


def test_a_name_that_the_run_does_not_have_is_refused_with_those_that_are_near(tmp_path: Path) -> None:
    names = ["Jane Doe", "Jane Dow", "O'Brien", "Zoë", "E", "F"]
    planted = [Planted(identity=name) for name in names]
    run = write_run(tmp_path / "run [1]", planted, rounds=1)
    keys = [key_of(planted, position) for position in range(len(names))]

    def to(*wanted: str) -> list[dict[str, Any]]:
        return [{"sample_id": key, "verdict": "relabel", "clean_identity": name} for key, name in zip(keys, wanted, strict=False)]

    near = r"Row 2: 'jane doe ' is no identity of this run\. Did you mean 'Jane Doe' or 'Jane Dow'\?"
    message = rf"^{near}\nRow 3: 'No One' is no identity of this run\.\n.*--new-identity$"
    with pytest.raises(BadInput, match=message):
        decide(run, to("O'Brien", "jane doe ", "No One", "No One"), by="Eve")
    with pytest.raises(BadInput, match=r"Row 5: '5' is .*\n\.\.\. and 1 more names"):
        decide(run, to(*"123456"), by="Eve")
    assert not RunLayout(run).decisions.exists()
    assert decide(run, to("No One"), by="Eve", new_identities=True) == 1
    assert decide(run, to("Zoë", "No One"), by="Bo") == 2, "a name that somebody decided on is known"


def test_a_clock_set_back_reverses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(PLANTED, 0)
    decide(run, [{"sample_id": key, "verdict": "drop"}], by="Eve")

    class Past(decisions.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return decisions.datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(decisions, "datetime", Past)
    decide(run, [{"sample_id": key, "verdict": "keep"}], by="Eve")
    assert standing(run) == {key: "keep"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sample_id": "feed", "verdict": "keep"}, "1 of 1 samples are not in this run"),
        ({"sample_id": None, "verdict": "keep"}, "Row 1 names no sample_id"),
        ({"sample_id": "feed", "verdict": "burn"}, "verdict 'burn' is none of keep, drop, relabel"),
        ({"sample_id": "feed", "verdict": "relabel"}, "wants a clean_identity"),
        ({"sample_id": "feed", "verdict": "keep", "clean_identity": "X"}, "nothing else takes one"),
        ({"sample_id": "feed", "verdict": "keep", "note": "x" * 3000}, "at most 2000 characters"),
        ({"sample_id": 7, "verdict": "keep"}, "sample_id is to be a text"),
    ],
)
def test_a_wrong_decision_is_refused_and_nothing_is_recorded(run: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        decide(run, [row], by="Eve")
    assert not RunLayout(run).decisions.exists()


def test_an_item_without_a_picture_cannot_be_kept(run: Path) -> None:
    with pytest.raises(BadInput, match="with status `ok`"):
        decide(run, [{"sample_id": key_of(PLANTED, 3), "verdict": "keep"}], by="Eve")
    with pytest.raises(BadInput, match="--by NAME"):
        decide(run, [{"sample_id": key_of(PLANTED, 0), "verdict": "keep"}], by=" ")


def test_one_bad_row_of_an_import_records_none(run: Path, tmp_path: Path) -> None:
    rows = [{"sample_id": key_of(PLANTED, 0), "verdict": "drop"}, {"sample_id": "unknown", "verdict": "drop"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "many.parquet")
    with pytest.raises(BadInput, match=r"1 of 2 samples.*'unknown'.*Nothing was recorded"):
        decide(run, read_file(tmp_path / "many.parquet"), by="Eve")
    assert standing(run) == {}
    assert decide(run, rows[:1], by="Eve", dry_run=True) == 1 and standing(run) == {}


def test_files_of_decisions_are_read_as_data(run: Path, tmp_path: Path) -> None:
    key = key_of(PLANTED, 0)
    with (tmp_path / "many.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["sample_id", "verdict", "note", "extra"])
        table.writeheader()
        table.writerow({"sample_id": key, "verdict": "drop", "note": "'); DROP TABLE x; --", "extra": "ignored"})
    decide(run, read_file(tmp_path / "many.csv"), by="Eve'; --")
    assert standing(run) == {key: "drop"}
    assert query(run, "SELECT note, decided_by FROM decisions").to_pylist() == [{"note": "'); DROP TABLE x; --", "decided_by": "Eve'; --"}]
    tables.check(next(RunLayout(run).decisions.glob("*.parquet")), tables.DECISIONS)
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadInput, match="cannot be read as decisions"):
        read_file(tmp_path / "junk.parquet")
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(BadInput, match="has columns name; a decision file has sample_id"):
        read_file(tmp_path / "other.parquet")


def test_what_is_exported_as_csv_is_taken_back_exactly(tmp_path: Path) -> None:
    names = ["@anna", "-Lee", "=x", "'quoted", 'a "b", c', "two\r\nlines", "+", "\tZoë"]
    planted = [Planted(identity=f"P{number}") for number in range(len(names))]
    runs = [write_run(tmp_path / name, planted, rounds=1) for name in "ab"]
    rows = [
        {"sample_id": key_of(planted, number), "verdict": "relabel", "clean_identity": name, "note": name}
        for number, name in enumerate(names)
    ]
    decide(runs[0], rows, by="Eve", new_identities=True)
    (tmp_path / "d.CSV").write_bytes(as_csv(runs[0]))
    decide(runs[1], read_file(tmp_path / "d.CSV"), by="Eve", new_identities=True)
    said = [read_standing(run).select(["sample_id", "verdict", "clean_identity", "note"]).to_pylist() for run in runs]
    assert said[0] == said[1] == sorted(rows, key=lambda row: row["sample_id"])


def test_an_identity_is_taken_in_the_form_of_the_crawl(tmp_path: Path) -> None:
    planted = [Planted(identity="Zoë"), Planted(identity="Ada")]
    run, row = write_run(tmp_path / "run", planted, rounds=1), {"sample_id": key_of(planted, 1), "verdict": "relabel"}
    other = unicodedata.normalize("NFD", "Zoë")
    (tmp_path / "d.csv").write_text(f"sample_id,verdict,clean_identity\n{row['sample_id']},relabel,{other}\n", "utf-8")
    assert decide(run, read_file(tmp_path / "d.csv"), by="Eve") == 1
    assert read_standing(run)["clean_identity"].to_pylist() == ["Zoë"]
    assert decide(run, [row | {"clean_identity": other}], by="Eve", new_identities=True) == 0, "it stands"


def test_what_stands_already_is_not_recorded_again(run: Path) -> None:
    rows = [{"sample_id": key_of(PLANTED, 0), "verdict": "drop", "note": ""}, {"sample_id": key_of(PLANTED, 2), "verdict": "keep"}]
    assert decide(run, rows[:1], by="Eve") == 1 == decide(run, rows, by="Eve") and decide(run, rows, by="Eve") == 0
    undo(run, [rows[0]["sample_id"]], by="Eve")
    assert standing(run) == {rows[1]["sample_id"]: "keep"}, "one undo undoes"
    assert decide(run, rows[1:], by="Bo") == 1 and decide(run, [rows[1] | {"note": "sure"}], by="Bo") == 1
    assert decide(run, rows, by="Eve", dry_run=True) == 2, "what one's own was decided over stands no more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_id,verdict,note,note\na,keep,x,y\n", "two columns 'note'"),
        ('sample_id,verdict,note\n\na,keep,"x\ny"\nb,keep,so, it is\n', r"row 2 \(line 5\) has 4 fields, and the header 3"),
        ("sample_id,verdict,note\na,keep\n", r"row 1 \(line 2\) has 2 fields"),
        (f"sample_id,verdict,note\na,keep,x\nb,keep,{'x' * 200_000}\n", r"row 2 \(line 3\): field larger .* at most 2,000 characters"),
        ('sample_id,verdict,note\na,keep,"x\nb,keep,y\n', r"row 1 \(line 2\): unexpected end of data"),
        ("name,verdict\n", "has columns name, verdict"),
    ],
)
def test_a_csv_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(text, "utf-8")
    with pytest.raises(BadInput, match=message):
        read_file(tmp_path / "d.csv")


def test_a_parquet_with_two_columns_of_one_name_is_refused_and_messages_end_once(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["keep"], ["x"]], names=["sample_id", "verdict", "verdict"]), tmp_path / "d.parquet")
    with pytest.raises(BadInput, match="two columns 'verdict'"):
        read_file(tmp_path / "d.parquet")
    (tmp_path / "d.txt").write_text("no decisions")
    with pytest.raises(BadInput, match=r"[^.]\. Give a \.parquet or \.csv"):
        read_file(tmp_path / "d.txt")


def test_nobody_signs_with_what_is_not_seen(run: Path) -> None:
    for name in ("Eve\n", "E\x1b[1mve", "E\u202eve"):
        with pytest.raises(BadInput, match=r"--by .*⟨U"):
            decide(run, [{"sample_id": key_of(PLANTED, 0), "verdict": "drop"}], by=name)
