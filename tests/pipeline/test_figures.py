"""Figures 6 and 7 and the map of a run: percentages and places as planted, the same bytes again, hostile names as text."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.errors import BadInput
from pipeline.figures import _angles, _subcenters, draw_figures
from pipeline.layout import RunLayout
from pipeline.pages.embedding_map import draw_map
from tests.pipeline.fake_run import Planted, write_run
from tests.pipeline.test_audit import Page

pytest.importorskip("matplotlib")
IMG, MATH = "\"'><img src=x onerror=alert(1)>", "$\\frac{a}{"
PLANTED = [
    *(Planted(identity=MATH, angle_deg=30.0 + number) for number in range(5)),
    Planted(identity=MATH, angle_deg=85.0, verdict="drop", is_dominant=False),
    Planted(identity=MATH, angle_deg=84.0, is_dominant=False),
    Planted(identity=IMG, angle_deg=40.0),
    Planted(identity=IMG, angle_deg=41.0, verdict="drop"),
    Planted(identity=IMG, angle_deg=None, verdict="review", reason="no_evidence"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("figures") / "a [run] of 100%", PLANTED)
    folder = RunLayout(run).round(2).embeddings
    folder.mkdir()
    rows = pq.read_table(RunLayout(run).round(2).noise / "raw-000000.parquet").to_pylist()
    rng = np.random.default_rng(0)
    for row in rows:
        vector = np.eye(8)[int(row["identity"] == IMG)] + rng.normal(0, 0.05, 8)
        row["embedding"] = (vector / np.linalg.norm(vector)).tolist()
    schema = tables.embeddings(8)
    pq.write_table(
        pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema), folder / "raw-000000.parquet"
    )
    return run


def samples(run: Path, number: int, truth: Path | None = None) -> dict[tuple[bool, bool], int]:
    import duckdb

    with duckdb.connect() as db:
        return _angles(db, RunLayout(run), number, truth).samples


def test_samples_are_counted_by_dominance_and_label(run: Path) -> None:
    assert samples(run, 1) == {(True, True): 6, (True, False): 1, (False, True): 1, (False, False): 1}
    assert samples(run, 2) == {(True, True): 7, (True, False): 2, (False, True): 0, (False, False): 0}


def test_a_truth_table_says_who_is_clean(run: Path, tmp_path: Path) -> None:
    uris = pq.read_table(RunLayout(run).manifest / "part-000000.parquet")["source_uri"].to_pylist()
    pq.write_table(pa.table({"item": uris, "is_noise": [True] * len(uris)}), tmp_path / "truth.parquet")
    assert samples(run, 1, tmp_path / "truth.parquet") == {(True, True): 0, (True, False): 7, (False, True): 0, (False, False): 2}


def test_histograms_have_each_sample_in_its_bin(run: Path) -> None:
    import duckdb

    with duckdb.connect() as db:
        found = _angles(db, RunLayout(run), 1, None)
    wanted, _ = np.histogram([30, 31, 32, 33, 34, 40], bins=range(0, 121, 2))
    assert found.to_dominant[True, True].tolist() == wanted.tolist()
    assert found.to_dominant[False, False].nonzero()[0].tolist() == [42]


def test_the_figures_are_drawn_with_their_shares_and_the_same_again(run: Path, tmp_path: Path) -> None:
    drawn = draw_figures(run, tmp_path / "one")
    assert [path.name for path in drawn.files] == [f"figure-{name}.{form}" for name in ("6a", "6b", "7") for form in ("svg", "pdf")]
    assert drawn.identity == MATH and drawn.labels == "verdicts"
    draw_figures(run, tmp_path / "two")
    for path in drawn.files:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "one" / "figure-6b.svg").read_text())
    assert "dominant, 77.78 %" in texts and "non-dominant, 22.22 %" in texts
    assert all(path.stat().st_size > 3000 for path in drawn.files)


def test_the_contact_sheet_has_the_largest_sub_center_first_and_its_nearest_faces(run: Path) -> None:
    import duckdb

    with duckdb.connect() as db:
        shown, rows = _subcenters(db, RunLayout(run), 1, MATH, 3)
    assert shown == MATH
    assert [(row["subcenter"], row["angle_deg"], row["samples"]) for row in rows] == [
        (0, 30, 5),
        (0, 31, 5),
        (0, 32, 5),
        (2, 84, 2),
        (2, 85, 2),
    ]


def test_what_cannot_be_drawn_says_why(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="noisiest"):
        draw_figures(run, tmp_path, identity="nobody")
    with pytest.raises(BadInput, match="purify run"):
        draw_figures(tmp_path, tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(BadInput, match="item and is_noise"):
        draw_figures(run, tmp_path, truth=tmp_path / "x.parquet")


def test_the_map_places_alike_faces_together_and_names_are_text(run: Path, tmp_path: Path) -> None:
    drawn = draw_map(run, tmp_path / "map", title=IMG)
    assert (drawn.faces, drawn.identities) == (10, 2)
    html = drawn.page.read_text("utf-8")
    page = Page(html)
    assert IMG in page.text and MATH in page.text and not any(tag in {"img", "script"} for tag, _ in page.tags)
    assert "script-src &#39;none&#39;" in html and (tmp_path / "map" / "faces.jpg").is_file()
    frames = [
        (attrs["class"], float(str(attrs["x"])), float(str(attrs["y"]))) for tag, attrs in page.tags if tag == "rect" and attrs["x"] != "2"
    ]
    assert sum("gone" in str(kind) for kind, _, _ in frames) == 3
    places = {colour: np.mean([(x, y) for kind, x, y in frames if f"colour-{colour}" in str(kind)], axis=0) for colour in (0, 1)}
    assert np.linalg.norm(places[0] - places[1]) > 100, "two people are two groups"
    assert draw_map(run, tmp_path / "again", title=IMG).page.read_bytes() == drawn.page.read_bytes()


def test_a_map_of_nobody_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no sample in this run"):
        draw_map(run, tmp_path, identities=["nobody"])
    with pytest.raises(BadInput, match="at least four samples"):
        draw_map(run, tmp_path, identities=[IMG])
    with pytest.raises(BadInput, match="no embeddings"):
        draw_map(write_run(tmp_path / "bare", PLANTED[:2]), tmp_path / "out")
