"""The overview's figures, against plain loops over what was planted."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.audit import write_audit
from pipeline.layout import RunLayout
from pipeline.pages.overview import overview
from pipeline.report import open_run
from tests.pipeline.fake_run import Planted, write_run
from tests.pipeline.test_audit import Page

HOSTILE = "<b onmouseover=alert(1)>"
PLANTED = [
    *(Planted(identity="A", angle_deg=30.0 + number) for number in range(6)),
    Planted(identity="A", angle_deg=90.0, verdict="drop", reason="angle"),
    Planted(identity="A", angle_deg=85.0, verdict="relabel", reason="angle", other_identity="B", other_angle_deg=30.0),
    Planted(identity="B", angle_deg=40.0),
    Planted(identity="B", angle_deg=None, verdict="review", reason="no_evidence"),
    Planted(identity="B", status="truncated"),
    Planted(identity="B", status="empty"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", PLANTED)


def facts(run: Path) -> dict[str, object]:
    with open_run(run) as db:
        return overview(db, run)


def test_the_flow_counts_every_item_once(run: Path) -> None:
    told = str(facts(run)["flow"])
    for words in (
        "items to samples to kept to exported: 7",
        "items to samples to dropped to not exported: 1",
        "items to samples to of another identity to not exported: 1",
        "items to samples to to review to not exported: 1",
        "items to truncated: 1",
        "items to empty: 1",
    ):
        assert words in told
    assert "People say" not in told


def test_the_flow_shows_what_people_changed(run: Path) -> None:
    part = RunLayout(run).manifest / "part-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[6] |= {"verdict": "keep", "rule_verdict": "drop", "decided_by": "person:Ann", "clean_identity": "A"}
    pq.write_table(tables.MANIFEST.empty_table().from_pylist(rows, schema=tables.MANIFEST), part)
    told = facts(run)
    assert told["by_people"] == 1 and "items to samples to dropped to kept to exported: 1" in str(told["flow"])


def test_the_sweep_agrees_with_a_loop(run: Path) -> None:
    rows = [row for row in pq.read_table(RunLayout(run).manifest / "part-000000.parquet").to_pylist() if row["angle_deg"] is not None]
    sweep = facts(run)["sweep"]
    assert isinstance(sweep, dict)
    for told in sweep["rows"]:
        kept = [row for row in rows if row["angle_deg"] <= told["cut"]]
        right = sum(1 - row["noise_probability"] for row in rows)
        assert told["kept"] == pytest.approx(len(kept) / len(rows))
        assert told["noise"] == pytest.approx(sum(row["noise_probability"] for row in kept) / len(kept))
        assert told["lost"] == pytest.approx(1 - sum(1 - row["noise_probability"] for row in kept) / right)
    assert [told["cut"] for told in sweep["rows"]] == list(range(40, 111, 5))


def test_from_round_to_round(run: Path) -> None:
    part = RunLayout(run).round(1).noise / "raw-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[0]["verdict"] = "drop"
    pq.write_table(pq.read_table(part).from_pylist(rows, schema=tables.NOISE), part)
    changes = facts(run)["changes"]
    assert isinstance(changes, dict)
    assert changes["cells"]["drop"] == {"keep": 1, "drop": 1, "relabel": 0, "review": 0} and changes["cells"]["keep"]["keep"] == 6
    assert sum(sum(cells.values()) for cells in changes["cells"].values()) == 10


def test_one_round_has_no_changes_and_no_probabilities_no_sweep(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Planted(identity="A", angle_deg=None, verdict="review", reason="no_evidence")], rounds=1)
    told = facts(run)
    assert told["changes"] is None and told["sweep"] is None


def test_sources_that_are_identities_are_left_out_and_others_are_told_as_text(run: Path, tmp_path: Path) -> None:
    assert facts(run)["sources"] == []
    part = RunLayout(run).manifest / "part-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    for number, row in enumerate(rows):
        row["source_uri"] = f"https://{HOSTILE if number == 6 else 'example.org'}/{number}.jpg"
    pq.write_table(pq.read_table(part).from_pylist(rows, schema=tables.MANIFEST), part)
    sources = facts(run)["sources"]
    assert isinstance(sources, list) and [(row["source"], row["samples"]) for row in sources] == [(HOSTILE, 1), ("example.org", 9)]
    write_audit(run, tmp_path / "audit", title="t", identities=1, faces=2, inversions={})
    page = Page((tmp_path / "audit" / "index.html").read_text("utf-8"))
    assert HOSTILE in page.text and not any("onmouseover" in attrs for _, attrs in page.tags)


def test_settings_that_differ_stand_beside_their_defaults(run: Path, tmp_path: Path) -> None:
    settings = {"seed": 7, "isolate": {"rule": "angle", "max_angle_deg": 75.0}, "evaluate": {"bins": [HOSTILE]}}
    write_audit(run, tmp_path / "audit", title="t", identities=1, faces=2, inversions={}, settings=settings)
    words = Page((tmp_path / "audit" / "index.html").read_text("utf-8")).words
    changed, rest = words.split("All settings", 1)
    assert "seed70" in changed and 'isolate.rule"angle""calibrated"' in changed and "max_angle_deg" not in changed
    assert "isolate.max_angle_deg75.0" in rest and HOSTILE in rest and "torch" in rest


def test_curves_of_training_and_evaluation_are_drawn(run: Path) -> None:
    roc = [
        {"backbone": f"round-{number}", "dataset": HOSTILE, "far": far, "tar": 1 - 0.1 / number}
        for number in (1, 2)
        for far in (0.0, 0.01, 1.0)
    ]
    pq.write_table(tables.ROC.empty_table().from_pylist(roc, schema=tables.ROC), RunLayout(run).evaluation / "roc.parquet")
    told = facts(run)
    (chart,) = told["roc"]  # type: ignore[misc]
    assert [one.points for one in chart["curves"]] == [[(0.01, 0.9), (1.0, 0.9)], [(0.01, 0.95), (1.0, 0.95)]]
    assert "<b " not in chart["svg"]
    assert isinstance(told["training"], dict) and told["training"]["told"] == "round 1 from 9.00 to 3.00; round 2 from 9.00 to 3.00"
