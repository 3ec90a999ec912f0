"""Views and saved queries over a run: planted answers, and SQL that must not touch a file."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import answers, tables
from pipeline.answers import saved_queries
from pipeline.errors import BadInput, SchemaMismatch
from pipeline.layout import RunLayout
from pipeline.report import diff, open_run, query, report, unlike, why
from tests.pipeline.fake_run import Planted, write_run

ADA = [Planted(identity="Ada", angle_deg=float(angle)) for angle in (20, 62, 75)]
BOB = [
    Planted(identity="Bob", angle_deg=40.0, other_identity="Ada", other_angle_deg=70.0),
    Planted(identity="Bob", angle_deg=77.0, verdict="drop", reason="angle"),
    Planted(
        identity="Bob", angle_deg=90.0, verdict="relabel", reason="angle", other_identity="Ada", other_angle_deg=35.0, is_dominant=False
    ),
]
PLANTED = [
    *ADA,
    *BOB,
    Planted(identity="Cyd", angle_deg=0.0, verdict="review", reason="too_few_samples", duplicate_set="same"),
    Planted(identity="Ada", status="duplicate", duplicate_set="same"),
    Planted(identity="Ada", status="truncated"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "O'Brien [1] *", PLANTED)


def rows(run: Path, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in query(run, sql).to_pylist()]


def test_views_hold_every_row_of_their_files(run: Path) -> None:
    assert rows(run, "SELECT count(*) FROM manifest") == [(9,)]
    assert rows(run, "SELECT identity, items, samples FROM identities ORDER BY 1") == [("Ada", 5, 3), ("Bob", 3, 3), ("Cyd", 1, 1)]
    assert rows(run, "SELECT round, count(*), count(DISTINCT source_uri) FROM noise GROUP BY 1 ORDER BY 1") == [(1, 7, 7), (2, 7, 7)]
    assert rows(run, "SELECT round, count(*) FROM training GROUP BY 1 ORDER BY 1") == [(1, 3), (2, 3)]
    assert rows(run, "SELECT backbone, value FROM metrics WHERE metric = 'accuracy' ORDER BY 1") == [("round-1", 0.91), ("round-2", 0.95)]


def test_a_view_is_there_only_when_its_files_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED, rounds=1, evaluated=False)
    assert rows(run, "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1") == [
        ("contamination",), ("identities",), ("manifest",), ("noise",), ("proposals",), ("training",)
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"(?s)metrics.*Views of this run: contamination, identities, manifest, noise, proposals, training"):
        report(run, "metrics")


@pytest.mark.parametrize("name", sorted(saved_queries()))
def test_every_saved_query_runs_and_has_a_title(run: Path, name: str, tmp_path: Path) -> None:
    saved = saved_queries()[name]
    assert saved.name == name and saved.sql.startswith(f"-- {saved.title}\n") and len(saved.title) > 10
    answer = report(run, name)
    assert answer.num_rows > 0 or name == "near_duplicates"
    nothing_usable = write_run(tmp_path / "run", [Planted(identity="Ada", status="truncated")])
    assert report(nothing_usable, name).column_names == answer.column_names


def test_an_answer_is_kept_beside_the_manifest_and_is_what_the_query_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "O'Brien [1] *", PLANTED)
    asked = {name: report(run, name) for name in saved_queries()}
    answers.keep_answers(run / "manifest")
    kept = {path.stem for path in (run / "manifest" / answers.FOLDER).iterdir()}
    assert kept == set(asked) - {"contamination", "merges", "metrics", "rounds"}, "these need other tables of the run"
    assert all(report(run, name).equals(answer) for name, answer in asked.items())
    assert pq.read_table(run / "manifest").num_rows == len(PLANTED), "who reads the folder as a table does not see them"


def test_a_kept_answer_is_read_and_one_to_another_question_is_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    answers.keep_answers(run / "manifest")
    part = run / "manifest" / "part-000000.parquet"
    pq.write_table(pq.read_table(part).slice(0, 1), part)
    assert sum(row["items"] for row in report(run, "summary").to_pylist()) == len(PLANTED)
    path = run / "manifest" / answers.FOLDER / "summary.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"sha256_of_sql": b"0" * 64}), path)
    assert sum(row["items"] for row in report(run, "summary").to_pylist()) == 1


def test_an_answer_that_needs_too_much_memory_is_left_to_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    monkeypatch.setattr("pipeline.duck._MEMORY", "1MB")
    answers.keep_answers(run / "manifest")
    assert not (run / "manifest" / answers.FOLDER / "summary.parquet").exists()
    assert sum(row["items"] for row in report(run, "summary").to_pylist()) == len(PLANTED)


def test_a_query_spills_to_a_folder_of_its_own_and_not_to_where_one_stands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run(run) as connection:
        spilled = Path(connection.sql("SELECT current_setting('temp_directory')").fetchall()[0][0])
        assert spilled.stat().st_mode & 0o77 == 0 and tmp_path not in spilled.parents
        with pytest.raises(duckdb.Error, match="locked"):
            connection.execute("SET temp_directory = '.'")


def test_summary_counts_every_item_once(run: Path) -> None:
    table = report(run, "summary").to_pylist()
    assert {(row["status"], row["verdict"], row["reason"]): row["items"] for row in table} == {
        ("ok", "keep", "accepted"): 4,
        ("ok", "drop", "angle"): 1,
        ("ok", "relabel", "angle"): 1,
        ("ok", "review", "too_few_samples"): 1,
        ("duplicate", "drop", "duplicate"): 1,
        ("truncated", "drop", "truncated"): 1,
    }
    assert sum(row["share_percent"] for row in table) == pytest.approx(100, abs=0.1)


def test_noisiest_ranks_by_share_and_leaves_out_identities_of_under_three(run: Path) -> None:
    found = [(row["identity"], row["samples"], row["noise_percent"]) for row in report(run, "noisiest").to_pylist()]
    assert found == [("Bob", 3, 66.67), ("Ada", 3, 0.0)]


def test_cuts_keep_a_sample_exactly_at_the_cut(run: Path) -> None:
    kept = {row["max_angle_deg"]: row["kept"] for row in report(run, "cuts").to_pylist()}
    angles = [item.angle_deg for item in PLANTED if item.status == "ok" and item.angle_deg is not None]
    assert kept == {cut: sum(angle <= cut for angle in angles) for cut in range(60, 91)}
    assert kept[74] == 4 and kept[75] == 5


def test_angles_put_each_sample_in_the_step_that_begins_at_or_below_it(run: Path) -> None:
    found = {row["from_deg"]: (row["samples"], row["nondominant"]) for row in report(run, "angles").to_pylist()}
    assert found == {0: (1, 0), 20: (1, 0), 40: (1, 0), 60: (1, 0), 75: (2, 0), 90: (1, 1)}


def test_overlap_counts_both_directions(run: Path) -> None:
    (pair,) = report(run, "overlap").to_pylist()
    assert (pair["identity_a"], pair["identity_b"]) == ("Ada", "Bob")
    assert (pair["a_near_b"], pair["b_near_a"], pair["relabel_b_to_a"], pair["mutual_percent"]) == (0, 2, 1, 0.0)


def test_borderline_begins_at_the_cut(run: Path) -> None:
    found = [(row["angle_deg"], row["beyond_cut"], row["verdict"]) for row in report(run, "borderline").to_pylist()]
    assert found[:3] == [(75.0, -1.0, "keep"), (77.0, 1.0, "drop"), (62.0, -14.0, "keep")]


def test_duplicates_name_the_identities(run: Path) -> None:
    (found,) = report(run, "duplicates").to_pylist()
    assert (found["items"], found["identities"], found["names"]) == (2, 2, ["Ada", "Cyd"])


def test_a_run_without_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no manifest.*purify run"):
        open_run(tmp_path)


def test_an_unknown_query_names_the_nearest_and_all(run: Path) -> None:
    with pytest.raises(BadInput, match=r"no saved query 'noisest'. Did you mean 'noisiest'\? Use one of: angles, .*verdicts\.$"):
        report(run, "noisest")


def test_a_wrong_column_gives_duckdbs_words_and_the_views(run: Path) -> None:
    with pytest.raises(
        BadInput, match=r"(?s)angel_deg.*Views of this run: contamination, identities, manifest, metrics, noise, proposals, training"
    ):
        query(run, "SELECT angel_deg FROM manifest")


def test_an_old_schema_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    part = RunLayout(run).manifest / "part-000000.parquet"
    pq.write_table(pq.read_table(part).replace_schema_metadata({"version": "0"}), part)
    with pytest.raises(SchemaMismatch, match=f"version 0, this program reads {tables.VERSION}"):
        open_run(run)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "sql",
    [
        "COPY manifest TO '{run}/stolen.csv'",
        "COPY (SELECT 1) TO '{run}/manifest/part-000000.parquet'",
        "COPY (SELECT 1) TO 'run://manifest/part-000000.parquet'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'run://manifest/part-000000.parquet'",
        "EXPLAIN ANALYZE COPY manifest TO '{run}/stolen.csv'",
        "EXPORT DATABASE '{run}/all'",
        "ATTACH '{run}/other.db'",
        "FROM read_text('{run}/manifest/part-000000.parquet')",
        "FROM '/etc/hostname'",
        "FROM glob('/*')",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "DROP VIEW manifest",
        "CREATE TABLE x AS SELECT 1",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
    ],
)
def test_sql_neither_reads_nor_writes_files(run: Path, sql: str) -> None:
    before = snapshot(run.parent)
    with pytest.raises(BadInput, match="Views of this run"):
        query(run, sql.replace("{run}", str(run).replace("'", "''")))
    assert snapshot(run.parent) == before


def test_the_connection_itself_writes_nothing_and_stays_locked(run: Path) -> None:
    before = snapshot(run.parent)
    with open_run(run) as db:
        own = "run://manifest/part-000000.parquet"
        for sql in (
            f"COPY manifest TO '{str(run).replace(chr(39), chr(39) * 2)}/x.csv'",
            "SET enable_external_access = true",
            f"COPY (SELECT 1) TO '{own}'",
            f"COPY (SELECT 1) TO '{own}' (FORMAT parquet, USE_TMP_FILE false)",
            "COPY (SELECT 1 AS a, 2 AS b) TO 'run://manifest' (FORMAT parquet, PARTITION_BY (a), OVERWRITE)",
            "ATTACH 'run://new.db' AS other",
            "EXPORT DATABASE 'run://all'",
        ):
            with pytest.raises(duckdb.Error, match=re.compile("disabled by configuration|locked|Cannot change|never changed by SQL")):
                db.execute(sql)
        assert db.sql("SELECT count(*) FROM manifest").fetchall() == [(9,)]
    assert snapshot(run.parent) == before


def test_only_the_files_of_views_have_a_name_in_sql(run: Path) -> None:
    assert query(run, "FROM read_text('run://run.json')").num_rows == 0
    with pytest.raises(BadInput, match="disabled by configuration"):
        query(run, "FROM read_text('run://manifest/../run.json')")
    listed = {str(name).split("/")[2] for (name,) in rows(run, "FROM glob('run://*')")}
    assert listed == {"manifest", "rounds", "raw", "evaluation", "protected"}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_of_a_run_are_closed_again(run: Path) -> None:
    before = open_files()
    with open_run(run) as db:
        for _ in range(20):
            db.sql("SELECT verdict, max(angle_deg) FROM noise GROUP BY ALL").fetchall()
        assert open_files() < before + 20
    assert open_files() == before


@pytest.mark.parametrize(
    "sql", ["FROM manifest", "DESCRIBE manifest", "SUMMARIZE noise", "SHOW TABLES", "EXPLAIN FROM manifest", "WITH a AS (SELECT 1) FROM a"]
)
def test_questions_in_all_their_forms_are_answered(run: Path, sql: str) -> None:
    assert query(run, sql).num_rows > 0


def test_the_life_of_a_sample_is_told_from_crawl_to_manifest(run: Path) -> None:
    key = str(rows(run, "SELECT sample_id FROM manifest WHERE angle_deg = 90")[0][0])
    told = [tuple(row.values()) for row in why(run, key).to_pylist()]
    assert (
        ("crawl", "identity", "Bob") in told and ("round 1", "verdict", "relabel") in told and ("round 2", "other_identity", "Ada") in told
    )
    assert told[-1][0] == "manifest" and ("manifest", "reason", "angle") in told
    with pytest.raises(BadInput, match="no sample 'nobody'"):
        why(run, "nobody")


def test_two_runs_are_compared_item_by_item(run: Path, tmp_path: Path) -> None:
    assert {(row["verdict"], row["other_verdict"]) for row in diff(run, run).to_pylist()} == {
        (verdict, verdict) for verdict in ("keep", "drop", "relabel", "review")
    }
    changed = [Planted(identity="Ada", angle_deg=20.0, verdict="drop", reason="angle"), *PLANTED[1:-1]]
    found = {(row["verdict"], row["other_verdict"]): row["items"] for row in diff(run, write_run(tmp_path / "b", changed)).to_pylist()
             if row["verdict"] != row["other_verdict"]}  # fmt: skip
    assert found == {("keep", "drop"): 1, ("drop", None): 1}


def test_runs_of_different_crawls_are_said_to_be(run: Path, tmp_path: Path) -> None:
    others = [Planted(identity=name, angle_deg=20.0) for name in ("Zoe", "Yan", "Xia")]
    found = unlike(diff(run, write_run(tmp_path / "other", others)))
    assert found is not None and found.startswith(
        f"Only 0 items are in both runs, of {len(PLANTED)} and 3: these are runs of different crawls"
    )
    assert unlike(diff(run, run)) is None
    assert unlike(diff(run, write_run(tmp_path / "grown", [*PLANTED, *others * 9]))) is None, "a crawl that grew"


def test_half_of_the_smaller_run_is_enough() -> None:
    def told(both: int, one: int, other: int) -> pa.Table:
        rows = [("ok", "ok", both), ("ok", None, one), (None, "ok", other)]
        return pa.Table.from_pylist([{"status": first, "other_status": second, "items": items} for first, second, items in rows])

    assert unlike(told(5, 5, 100)) is None and "Only 4 items are in both runs, of 10 and 104" in (unlike(told(4, 6, 100)) or "")


def test_groups_and_sources_count_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Planted(identity="Ada", verdict="drop" if at % 2 else "keep") for at in range(8)])
    [part] = (run / "manifest").glob("*.parquet")
    table = pq.read_table(part)
    known = {
        "yaw_deg": [0.0, -14.9, 15.0, -44.9, 45.0, 90.0, None, None],
        "brightness": [0.1, 0.2, 0.3, 0.4, 0.5, None, None, None],
        "width_px": [20, 64, 127, 128, 256, 999, None, None],
        "height_px": [999, 64, 127, 128, 256, 999, None, None],
        "face_width_px": [None] * 8,
        "face_height_px": [None] * 8,
        "source_uri": [
            "a.org/1",
            "https://b.org/1",
            "https://b.org/c/2",
            "s3://bucket/a://b/3",
            "x.jpg",
            "a.org/c/5",
            "https://b.org",
            "a.org/8",
        ],
    }
    for name, values in known.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, part)
    found = {(row["kind"], row["value"]): (row["samples"], row["kept"]) for row in report(run, "groups").to_pylist()}
    wanted = {"0 to 14 degrees": (2, 1), "15 to 29 degrees": (1, 1), "30 to 44 degrees": (1, 0), "45 degrees and more": (2, 1)}
    assert {value: counts for (kind, value), counts in found.items() if kind == "yaw"} == wanted
    wanted = {"below 64 px": (1, 1), "64 to 127 px": (2, 1), "128 to 255 px": (1, 0), "256 px and more": (2, 1)}
    assert {value: counts for (kind, value), counts in found.items() if kind == "size"} == wanted
    fifths = {value: counts for (kind, value), counts in found.items() if kind == "brightness"}
    assert set(fifths) == {f"fifth {number} of 5" for number in range(1, 6)} and sum(samples for samples, _ in fifths.values()) == 5
    sources = {row["source"]: row["items"] for row in report(run, "sources").to_pylist()}
    assert sources == {"a.org": 3, "b.org": 3, "bucket": 1, "x.jpg": 1}
