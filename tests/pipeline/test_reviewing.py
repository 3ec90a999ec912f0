"""Review: the most informative cases come first, answers are on disk before they are confirmed, and nobody but the reviewer may ask."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import decisions
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.reviewing import exports
from pipeline.reviewing.cases import find_cases
from pipeline.reviewing.desk import Desk, require_reviewer
from pipeline.reviewing.server import open_review
from pipeline.reviewing.standing import Standing
from tests.pipeline.fake_run import Planted, crop, key_of, write_run
from tests.pipeline.reviewed import ANN, BOB, IMG, OVERRIDE, PLANTED, request, reviewable, served


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return reviewable(tmp_path / "Bob's run")


def standing(run: Path) -> dict[str, tuple[str, str | None, str]]:
    return {
        row["sample_id"]: (row["verdict"], row["clean_identity"], row["decided_by"]) for row in decisions.read_standing(run).to_pylist()
    }


def key(position: int) -> str:
    return key_of(PLANTED, position)


def answer_until(desk: Desk, kind: str) -> dict[str, Any]:
    """Skips what is asked until a case of this kind is."""
    while True:
        (case, *_) = desk.next("Ann")
        if case["kind"] == kind:
            return case
        desk.skip("Ann", case["key"])


def test_cases_come_in_turn_each_kind_by_how_much_it_tells(run: Path) -> None:
    cases = find_cases(run, set())
    assert [case.kind for case in cases[:4]] == ["cut", "judges", "relabel", "merge"]
    by_kind = {kind: [case for case in cases if case.kind == kind] for kind in ("cut", "judges", "relabel", "merge")}
    assert [case.sample_id for case in by_kind["cut"][:2]] == [key(7), key(6)], "0.5 and 2 degrees from the cut at 75"
    assert [case.sample_id for case in by_kind["judges"]] == [key(8)], "kept by the rule at 76 degrees"
    assert by_kind["cut"][0].why == "The probability that it is noise is 0.47; the rule cuts by angle, at 75.0 degrees."
    (merge,) = by_kind["merge"]
    assert (merge.identity, merge.other_identity, merge.sample_id) == (BOB, ANN, key(10)), "the smaller into the larger, by its surest face"
    assert len({case.key for case in cases}) == len(cases), "one sample is asked about once"


def test_judges_that_differ_most_come_first(run: Path) -> None:
    planted = [
        Planted(identity="A", angle_deg=angle, verdict=verdict) for angle, verdict in ((80.0, "keep"), (60.0, "drop"), (74.0, "keep"))
    ]
    found = [case for case in find_cases(write_run(run.parent / "other", planted), set()) if case.kind in ("judges", "cut")]
    told = [case.why for case in found if case.kind == "judges"]
    assert told == ["The rule says drop, the paper's cut at 75 degrees says keep: it lies at 60.0."], (
        "the other one was asked as lying at the cut"
    )


def test_another_identity_is_offered_only_where_the_rule_would_take_the_sample_for_it(run: Path) -> None:
    judge = RunLayout(run).round(2).noise / "judge.json"
    told = json.loads(judge.read_text("utf-8"))

    def offered(near: float) -> dict[str, str | None]:
        judge.write_text(json.dumps(told | {"relabel_angle_deg": near}), "utf-8")
        return {case.sample_id: case.other_identity for case in find_cases(run, set()) if case.kind != "merge"}

    assert (offered(59.9)[key(17)], offered(60.0)[key(17)]) == (None, OVERRIDE), "at 60 degrees from it"
    assert offered(0.0)[key(9)] == BOB, "what the rule proposes is always offered"


def test_what_is_said_of_a_sample_far_from_the_cut_is_true_of_it(run: Path) -> None:
    judge = RunLayout(run).round(2).noise / "judge.json"
    told = json.loads(judge.read_text("utf-8")) | {"rule": "calibrated", "max_angle_deg": None, "max_noise_probability": 0.4}
    judge.write_text(json.dumps(told), "utf-8")
    said = {case.sample_id: case.why for case in find_cases(run, set()) if case.kind == "cut"}
    assert said[key(0)] == "The probability that it is noise is 0.00; the rule cuts at 0.40.", "at 30 degrees"
    assert said[key(7)] == "The probability that it is noise is 0.47; the rule cuts at 0.40."


def test_what_a_person_decided_is_not_asked(run: Path) -> None:
    decisions.decide(run, [{"sample_id": key(7), "verdict": "keep"}], by="Eve")
    assert key(7) not in {case["sample"] for case in Desk(run).next("Ann", most=99)}


def test_behind_what_was_decided_the_next_cases_are_found(run: Path) -> None:
    found = [case.sample_id for case in find_cases(run, {key(7), key(8)}, most=1) if case.kind == "cut"]
    assert found == [key(6)]


def test_no_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="purify run"):
        open_review(tmp_path, title="t")


def test_a_case_shows_the_surest_faces_of_both_identities(run: Path) -> None:
    case = answer_until(Desk(run), "relabel")
    assert case["sample"] == key(9) and case["own"] == [key(position) for position in range(8)]
    assert case["others"] == [key(position) for position in range(10, 14)] and (case["other"], case["other_angle"]) == (BOB, 35.0)


def test_an_answer_is_on_disk_when_it_is_confirmed(run: Path) -> None:
    desk = Desk(run)
    for verdict, wanted in (("keep", ("keep", None, "Ann")), ("drop", ("drop", None, "Ann"))):
        case = desk.next("Ann")[0]
        assert desk.answer("Ann", case["key"], verdict) == 1
        assert standing(run)[case["sample"]] == wanted
    assert Desk(run).progress("Ann")["mine"] == 2, "a server that starts anew knows them"


def test_relabel_to_the_proposed_or_to_another(run: Path) -> None:
    desk = Desk(run)
    case = answer_until(desk, "relabel")
    desk.answer("Ann", case["key"], "relabel", identity=OVERRIDE)
    assert standing(run)[key(9)] == ("relabel", OVERRIDE, "Ann")
    desk.undo("Ann")
    desk.answer("Ann", case["key"], "relabel")
    assert standing(run)[key(9)] == ("relabel", BOB, "Ann")


def test_merge_moves_all_that_goes_by_the_name_and_one_undo_takes_it_back(run: Path) -> None:
    desk = Desk(run)
    desk.answer("Ann", answer_until(desk, "relabel")["key"], "relabel")  # position 9 now goes by Bob
    case = answer_until(desk, "merge")
    assert case["moves"] == 5
    assert desk.answer("Ann", case["key"], "merge") == 5
    assert standing(run) == {key(position): ("relabel", ANN, "Ann") for position in (9, 10, 11, 12, 13)}
    assert not any(one["kind"] == "merge" for one in desk.next("Ann", most=99))
    assert desk.undo("Ann")[0] == 5
    assert standing(run) == {key(9): ("relabel", BOB, "Ann")}


def test_a_merge_into_a_name_that_was_merged_follows_it(run: Path) -> None:
    rows = [{"sample_id": key(position), "verdict": "relabel", "clean_identity": OVERRIDE} for position in range(9)]
    decisions.decide(run, rows, by="Eve")
    desk = Desk(run)
    desk.answer("Ann", answer_until(desk, "merge")["key"], "merge")
    assert {standing(run)[key(position)][1] for position in range(10, 14)} == {OVERRIDE}


def test_apart_is_remembered_and_keeps_what_was_seen(run: Path) -> None:
    desk = Desk(run)
    case = answer_until(desk, "merge")
    assert desk.answer("Ann", case["key"], "apart") == 4
    assert standing(run) == {key(position): ("keep", None, "Ann") for position in range(10, 14)}
    assert not any(one["kind"] == "merge" for one in Desk(run).next("Eve", most=99))


def test_undo_goes_back_act_by_act_also_after_a_restart(run: Path) -> None:
    desk, seen = Desk(run), []
    for verdict in ("keep", "drop", "keep"):
        case = desk.next("Ann")[0]
        desk.answer("Ann", case["key"], verdict)
        seen.append(case["sample"])
    desk.answer("Eve", desk.next("Eve")[0]["key"], "drop")
    again = Desk(run)
    again.next("Ann")
    for sample in reversed(seen):
        count, (case,) = again.undo("Ann")
        assert (count, case["sample"]) == (1, sample) and sample not in standing(run)
        assert again.next("Ann")[0]["sample"] == sample, "what was taken back is asked again"
    with pytest.raises(BadInput, match="nothing of yours"):
        again.undo("Ann")
    assert [by for _, _, by in standing(run).values()] == ["Eve"]


def test_two_reviewers_are_not_asked_the_same_and_a_case_comes_free_again(run: Path) -> None:
    now = [0.0]
    desk = Desk(run, clock=lambda: now[0])
    mine, others = desk.next("Ann"), desk.next("Eve")
    assert not {case["key"] for case in mine} & {case["key"] for case in others}
    assert desk.next("Ann") == mine, "asked again, as by a reload, it is the same"
    desk.skip("Ann", mine[0]["key"])
    assert mine[0]["key"] in {case["key"] for case in desk.next("Eve", most=3)} and mine[0]["key"] not in {
        case["key"] for case in desk.next("Ann")
    }
    now[0] = 301.0
    assert mine[1]["key"] in {case["key"] for case in desk.next("Zoe", most=3)}


def test_a_decision_made_elsewhere_is_seen(run: Path) -> None:
    desk = Desk(run)
    case = desk.next("Ann")[0]
    decisions.decide(run, [{"sample_id": case["sample"], "verdict": "drop"}], by="Eve")
    assert desk.next("Ann")[0]["key"] != case["key"] and desk.progress("Ann") | {"waiting": 0} == {"mine": 0, "others": 1, "waiting": 0}


def test_what_stands_is_what_all_files_say(run: Path) -> None:
    """Against `read_standing`, which reads everything: thirty random acts of three people, and a file that `purify forget` took away."""
    random, stands = Random(0), Standing(RunLayout(run).decisions)
    for _ in range(30):
        by, some = random.choice(["Ann", "Bob", "Eve"]), random.sample(range(14), random.randint(1, 3))
        if random.random() < 0.35 and (standing(run)):
            (sample,) = random.sample(sorted(standing(run)), 1)
            decisions.undo(run, [sample], by=by, of=standing(run)[sample][2])
        else:
            decisions.decide(run, [{"sample_id": key(one), "verdict": random.choice(["keep", "drop"])} for one in some], by=by)
        if random.random() < 0.5:
            stands.refresh()
            assert stands.rows == {row["sample_id"]: row for row in decisions.read_standing(run).to_pylist()}
    sorted(RunLayout(run).decisions.glob("*.parquet"))[3].unlink()
    stands.refresh()
    assert stands.rows == {row["sample_id"]: row for row in decisions.read_standing(run).to_pylist()}


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "abc\u202ecba", "a\x00"])
def test_a_reviewer_has_a_name_that_can_be_read(name: str) -> None:
    with pytest.raises(BadInput, match="visible characters"):
        require_reviewer(name)


# The server


@pytest.fixture
def address(run: Path) -> Any:
    with served(run) as address:
        yield address.removesuffix("review.html")


def test_the_server_serves_the_page_crops_and_answers(run: Path, address: str) -> None:
    status, headers, html = request(address + "review.html")
    assert status == 200 and headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"
    assert b"onerror=&#34;" in html and IMG.encode() not in html
    told = json.loads(request(address + "api/next?by=Ann")[2])
    case = told["cases"][0]
    assert request(address + f"crop/{case['sample']}.jpg")[2] == crop(7)
    status, _, body = request(address + "api/answer", {"by": "Ann", "key": case["key"], "verdict": "drop"})
    assert status == 200 and json.loads(body)["recorded"] == 1 and standing(run)[case["sample"]] == ("drop", None, "Ann")


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(run, address) of a server for all that is to be refused: nothing may be recorded."""
    run = reviewable(tmp_path_factory.mktemp("refusing") / "run")
    with served(run) as address:
        yield run, address.removesuffix("review.html")


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": None}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"X_Purify": None}, 403),
        ({"Content_Type": "text/plain"}, 403),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 403),
    ],
)
def test_who_may_not_answer(refusing: tuple[Path, str], headers: dict[str, str | None], says: int) -> None:
    run, address = refusing
    case = json.loads(request(address + "api/next?by=Ann")[2])["cases"][0]
    assert request(address + "api/answer", {"by": "Ann", "key": case["key"], "verdict": "drop"}, **headers)[0] == says
    assert standing(run) == {}


def test_without_the_token_nothing_is_served(refusing: tuple[Path, str]) -> None:
    _, address = refusing
    root = "/".join(address.split("/")[:3])
    for path in ("", "/", "/review.html", "/x/review.html", "/index.html", f"/{address.split('/')[3][:-1]}/review.html", "/é/x"):
        status, _, body = request((root + path).encode("ascii", "ignore").decode())
        assert status == 403 and b"purify review" in body
    assert request(address + "review.html", Host="evil.example")[0] == 421, "DNS rebinding: the name gives it away"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_refused(refusing: tuple[Path, str], method: str) -> None:
    _, address = refusing
    assert request(address + "api/answer", method=method)[0] in (405, 403)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("api/answer", {"by": "Ann", "key": "s" + "0" * 32, "verdict": "drop"}),
        ("api/answer", {"by": "Ann", "key": "x'; DROP TABLE manifest; --", "verdict": "drop"}),
        ("api/answer", {"by": "Ann", "key": "s" + "0" * 32, "verdict": "undo"}),
        ("api/answer", {"by": "Ann", "key": "s" + "0" * 32, "verdict": "drop", "sample_id": "0" * 32}),
        ("api/answer", {"by": 7, "key": "s" + "0" * 32, "verdict": "drop"}),
        ("api/answer", ["Ann"]),
        ("api/answer", b"{"),
        ("api/answer", b"\xff"),
        ("api/answer", b"[" * 10_000),
        ("api/undo", {"by": "A\u202e"}),
        ("api/skip", {"by": "Ann"}),
        ("api/decide", {"by": "Ann", "sample": "0" * 32, "verdict": "drop"}),
        ("api/decide", {"by": "Ann", "sample": "../x", "verdict": "drop"}),
        ("api/decide", {"by": "Ann", "sample": "0" * 32, "verdict": "merge"}),
        ("api/standing", {"by": "Ann", "samples": ["'; --"]}),
        ("api/nothing", {"by": "Ann"}),
    ],
)
def test_what_is_no_request_is_answered_with_an_error_and_records_nothing(refusing: tuple[Path, str], path: str, body: Any) -> None:
    run, address = refusing
    status, _, _ = request(address + path, body)
    assert 400 <= status < 500 and standing(run) == {}
    assert request(address + "review.html")[0] == 200


def test_a_body_that_is_too_long_is_refused(refusing: tuple[Path, str]) -> None:
    _, address = refusing
    assert request(address + "api/answer", {"by": "Ann", "note": "x" * 70_000})[0] == 413


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../run.json",
            "..%2frun.json",
            "%2e%2e/run.json",
            "data/../../run.json",
            "data/list-00000.js/../../run.json",
            "/etc/passwd",
            "run.json",
        ),
        *("raw/raw-000000.tar", "data/list-00000.parquet", "crop/../../run.json.jpg", "crop/zz.jpg", "crop/0123456789abcdef.jpg"),
        *("data/people-99999.js", "export/sql", "inversions/..png", "docs", "openapi.json"),
    ],
)
def test_no_other_name_leads_to_a_file(refusing: tuple[Path, str], name: str) -> None:
    _, address = refusing
    assert request(address + name)[0] == 404


def test_only_an_identity_of_the_run_can_be_named_and_quotes_do_no_harm(run: Path, address: str) -> None:
    assert json.loads(request(address + "api/names?like=o%27br")[2]) == [[ANN, ANN]]
    assert json.loads(request(address + "api/names?like=abc")[2]) == [[OVERRIDE, "abc⟨U+202E⟩cba"]]
    assert json.loads(request(address + "api/names?like=%25")[2]) == []
    case = json.loads(request(address + "api/next?by=Ann")[2])["cases"][0]
    said = {"by": "Ann", "key": case["key"], "verdict": "relabel"}
    assert request(address + "api/answer", said | {"identity": "' OR 1=1 --"})[0] == 409 and standing(run) == {}
    assert request(address + "api/answer", said | {"identity": OVERRIDE})[0] == 200 and standing(run)[case["sample"]][1] == OVERRIDE


def test_pages_that_were_not_drawn_are_drawn_when_asked_for(run: Path, address: str) -> None:
    assert request(address + "index.html")[0] == 404, "this run has no audit folder"
    _, _, script = request(address + "data/people-00000.js")
    told = json.loads(f"[{script.decode()[len('purify(') : -2]}]")[1]
    assert {person["name"] for person in told} == {ANN, BOB, IMG, "abc⟨U+202E⟩cba"}
    status, headers, sheet = request(address + told[0]["sheet"])
    assert status == 200 and headers["content-type"] == "image/jpeg" and sheet.startswith(b"\xff\xd8")
    assert not (run / "audit").exists(), "nothing is written into the run"


def test_a_taken_port_says_so(refusing: tuple[Path, str]) -> None:
    run, address = refusing
    with pytest.raises(BadInput, match="--port"):
        open_review(run, port=int(address.split(":")[2].split("/")[0]), title="t")


# Exports


def test_decisions_as_files_with_what_the_rule_said(run: Path) -> None:
    decisions.decide(
        run,
        [{"sample_id": key(9), "verdict": "relabel", "clean_identity": BOB, "note": "=1+1"}, {"sample_id": key(0), "verdict": "drop"}],
        by="Ann",
    )
    table = pq.read_table(io.BytesIO(exports.as_parquet(run))).to_pylist()
    assert [(row["sample_id"], row["verdict"], row["clean_identity"], row["note"], row["identity"]) for row in table] == [
        (key(9), "relabel", BOB, "=1+1", ANN),
        (key(0), "drop", None, None, ANN),
    ]
    rows = list(csv.DictReader(io.StringIO(exports.as_csv(run).decode())))
    assert [row["note"] for row in rows] == ["=1+1", ""] and rows[0]["identity"] == ANN
    tasks = json.loads(exports.as_label_studio(run, most=5))
    assert len(tasks) == 5
    said = {task["data"]["sample_id"]: task["annotations"][0]["result"][0]["value"]["choices"] for task in tasks if "annotations" in task}
    assert said == {key(9): ["relabel"], key(0): ["drop"]}
    sure = {task["data"]["sample_id"]: (task["predictions"][0]["score"], task["data"]["noise_probability"]) for task in tasks}
    assert sure[key(9)][0] == pytest.approx(sure[key(9)][1]) and sure[key(0)][0] == pytest.approx(1 - sure[key(0)][1])
    assert all(task["data"]["image"].startswith("data:image/jpeg;base64,/9j/") for task in tasks)


def test_exports_of_a_run_without_decisions(run: Path) -> None:
    assert pq.read_table(io.BytesIO(exports.as_parquet(run))).num_rows == 0
    assert exports.as_csv(run).decode().count("\n") == 1
    assert not any(RunLayout(run).decisions.glob("*"))
