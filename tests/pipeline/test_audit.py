"""The audit pages: planted faces and counts must stand on them, hostile names as text, and nothing may point outside."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from pipeline import tables
from pipeline.audit import AuditCounts, noisiest, write_audit
from pipeline.errors import BadInput, BadShard
from pipeline.imagine import Imagined
from pipeline.layout import RunLayout
from pipeline.pages import people
from pipeline.pages.text import data_script, shortened
from pipeline.shards import read_facts, write_twin
from pipeline.visible import visible
from tests.pipeline.fake_run import Planted, crop, key_of, write_run

SCRIPT, OVERRIDE = "<script>alert(1)</script>", "abc\u202ecba"
PLANTED = [
    *(Planted(identity=SCRIPT, angle_deg=30.0 + number) for number in range(10)),
    *(Planted(identity=SCRIPT, angle_deg=80.0 + number, verdict="drop", reason="angle", is_dominant=number == 0) for number in range(3)),
    Planted(identity=OVERRIDE, angle_deg=88.5, verdict="relabel", reason="angle", other_identity=SCRIPT, other_angle_deg=31.25),
    Planted(identity=OVERRIDE, angle_deg=33.0),
    Planted(identity="Clean", angle_deg=25.0),
    Planted(identity="Clean", angle_deg=26.0),
    Planted(identity="Clean", status="truncated"),
    Planted(identity="Lone", angle_deg=float("nan"), verdict="review", reason="no_evidence"),
]
ORDER = [SCRIPT, OVERRIDE, "Lone", "Clean"]
"""By noise, as the pages have them."""


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (112, 112), (120, 90, 80)).save(stream, "PNG")
    return stream.getvalue()


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def told(out: Path, name: str) -> Any:
    """What the script of data `name` hands to a page."""
    text = (out / "data" / f"{name}.js").read_text("ascii")
    found = re.fullmatch(r"purify\((.*)\)\n", text, re.DOTALL)
    assert found
    given, value = json.loads(f"[{found[1]}]")
    assert given == name
    return value


def person(out: Path, name: str, order: list[str] | None = None) -> dict[str, Any]:
    """What the page of an identity is told."""
    number = (order or ORDER).index(name)
    facts: dict[str, Any] = told(out, f"people-{number // people.BLOCK:05d}")[number % people.BLOCK]
    assert facts["number"] == number
    return facts


def tile_of(out: Path, facts: dict[str, Any], tile: int) -> np.ndarray:
    """Pixels of a face on an identity's sheet."""
    sheet = simplejpeg.decode_jpeg((out / facts["sheet"]).read_bytes(), colorspace="RGB")
    top, left = tile // 16 * 112, tile % 16 * 112
    pixels: np.ndarray = sheet[top : top + 112, left : left + 112]
    return pixels


def is_crop(pixels: np.ndarray, position: int) -> bool:
    wanted = simplejpeg.decode_jpeg(crop(position), colorspace="RGB")
    return bool(np.abs(pixels.astype(int) - wanted.astype(int)).mean() < 4)


def audit(run: Path, out: Path, *, faces: int = 4, identities: int = 10, with_inversion: bool = True) -> tuple[AuditCounts, Page, str]:
    inversions = {SCRIPT: [Imagined(png(), "the dominant sub-center", 12.34)]} if with_inversion else {}
    counts = write_audit(run, out, title="My <crawl>", identities=identities, faces=faces, inversions=inversions)
    html = (out / "index.html").read_text("utf-8")
    return counts, Page(html), html


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "Bob's run", PLANTED)


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages")
    audit(run, out)
    return out


def test_noisiest_come_first_then_review_then_the_largest(run: Path) -> None:
    assert noisiest(run, 10) == ORDER
    assert noisiest(run, 2) == ORDER[:2]


def test_the_list_has_every_identity_with_its_counts(pages: Path) -> None:
    listed = told(pages, "list-00000")
    assert listed == {
        "names": [SCRIPT, "abc⟨U+202E⟩cba", "Lone", "Clean"],
        "samples": [13, 2, 1, 2],
        "verdicts": [[10, 1, 0, 2], [3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    }


def test_every_tile_is_its_own_crop_with_its_verdict_and_angle(pages: Path) -> None:
    spread = {0: ("keep", 30.0), 3: ("keep", 33.0), 6: ("keep", 36.0), 9: ("keep", 39.0)}
    wanted = {
        SCRIPT: spread | {10: ("drop", 80.0), 11: ("drop", 81.0), 12: ("drop", 82.0)},
        OVERRIDE: {13: ("relabel", 88.5), 14: ("keep", 33.0)},
        "Clean": {15: ("keep", 25.0), 16: ("keep", 26.0)},
        "Lone": {18: ("review", None)},
    }
    for name, faces in wanted.items():
        facts = person(pages, name)
        by_id = {face["id"]: face for face in facts["faces"]}
        assert by_id.keys() == {key_of(PLANTED, position) for position in faces}
        for position, (verdict, angle) in faces.items():
            face = by_id[key_of(PLANTED, position)]
            assert (face["verdict"], face.get("angle")) == (verdict, angle)
            assert is_crop(tile_of(pages, facts, face["tile"]), position)


def test_faces_are_told_by_subcenter_of_the_first_round_and_by_angle(pages: Path) -> None:
    facts = person(pages, SCRIPT)
    assert facts["subcenters"] == [[0, 11, 10], [2, 2, 0]]
    seen = [(face["subcenter"], face["angle"]) for face in facts["faces"]]
    assert seen == sorted(seen) and {face["angle"] for face in facts["faces"] if face["subcenter"] == 2} == {81.0, 82.0}


def test_the_strip_counts_every_sample(pages: Path) -> None:
    strip = person(pages, SCRIPT)["strip"]
    assert strip == {"drop": [[80, 1], [81, 1], [82, 1]], "keep": [[30 + number, 1] for number in range(10)]}
    assert person(pages, "Lone")["strip"] == {}


def test_a_relabel_has_the_surest_face_of_the_other_identity_beside(pages: Path) -> None:
    facts = person(pages, OVERRIDE)
    (face,) = [face for face in facts["faces"] if face["verdict"] == "relabel"]
    assert (face["other"], face["other_angle"], face["why"]) == (SCRIPT, 31.2, "too far from the center")
    assert is_crop(tile_of(pages, facts, face["other_tile"]), 0)


def test_every_proposed_relabel_is_shown_up_to_the_number_of_faces(tmp_path: Path) -> None:
    planted = [Planted(identity="A", angle_deg=80.0 + number, verdict="drop", reason="angle") for number in range(9)]
    near = [
        Planted(identity="A", angle_deg=84.5 + number / 10, verdict="relabel", other_identity="B", other_angle_deg=30.0 + number)
        for number in range(5)
    ]
    audit(write_run(tmp_path / "run", [*planted, *near]), tmp_path / "audit", faces=3, with_inversion=False)
    told = [face for face in person(tmp_path / "audit", "A", ["A"])["faces"] if face["verdict"] == "relabel"]
    assert {face["other_angle"] for face in told} >= {30.0, 31.0, 32.0}, "the nearest to the other identity"


def test_a_relabel_that_people_decided_is_shown_as_exported_and_its_merge_as_done(tmp_path: Path) -> None:
    planted = [Planted(identity=name, angle_deg=30.0) for name in ("Ada", "Ada", "Bob", "Cyd")]
    planted.append(Planted(identity="Ada", angle_deg=84.0, verdict="relabel", other_identity="Cyd", other_angle_deg=31.0))
    run = write_run(tmp_path / "run", planted)
    audit(run, tmp_path / "before", faces=9, with_inversion=False)
    (face,) = [one for one in person(tmp_path / "before", "Ada", ["Ada"])["faces"] if one["verdict"] == "relabel"]
    assert (face["other"], face["other_angle"], face.get("exported")) == ("Cyd", 31.0, None)
    assert "decided:" not in (tmp_path / "before" / "index.html").read_text("utf-8")
    part = RunLayout(run).manifest / "part-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[4] |= {"decided_by": "person:Ann", "reason": "decision", "clean_identity": "Bob", "clean_shard": "clean-000000"}
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.MANIFEST), part)
    audit(run, tmp_path / "after", faces=9, with_inversion=False)
    (face,) = [one for one in person(tmp_path / "after", "Ada", ["Ada"])["faces"] if one["verdict"] == "relabel"]
    assert (face["other"], face.get("other_angle"), face["exported"], face["by"]) == ("Bob", None, True, "Ann"), "whom a person chose"
    text = (tmp_path / "after" / "index.html").read_text("utf-8")
    assert "decided: 1 exported under the other name" in text and "relabel proposed" not in text
    assert "imagines for either name" not in text, "no face is there"


def test_near_duplicates_are_told_together_and_a_set_of_one_is_none(tmp_path: Path) -> None:
    planted = [
        Planted(identity="A", angle_deg=30.0),
        *(Planted(identity="A", angle_deg=31.0 + number) for number in range(6)),
        Planted(identity="A", angle_deg=34.5, verdict="drop", reason="near_duplicate", near_duplicate_of=0),
        Planted(identity="A", angle_deg=33.2, near_duplicate_set="alone"),
    ]
    out = tmp_path / "audit"
    audit(write_run(tmp_path / "run", planted), out, faces=2, with_inversion=False)
    facts = person(out, "A", ["A"])
    pairs = {face["id"]: face.get("pair") for face in facts["faces"]}
    assert pairs[key_of(planted, 0)] == pairs[key_of(planted, 7)] == 1
    assert all(pair is None for key, pair in pairs.items() if key not in {key_of(planted, 0), key_of(planted, 7)})


def test_the_nearest_the_farthest_and_even_steps_between_are_shown(tmp_path: Path) -> None:
    planted = [Planted(identity="A", angle_deg=30.0 + 7 * number % 9) for number in range(9)]
    audit(write_run(tmp_path / "run", planted), tmp_path / "audit", faces=3, with_inversion=False)
    assert [face["angle"] for face in person(tmp_path / "audit", "A", ["A"])["faces"]] == [30.0, 34.0, 38.0]


def test_sums_on_the_page_add_up(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert "19 crawl items" in page.words
    first = html.split("</table>")[0]
    cells = [[int(cell) for cell in re.findall(r">(\d+)<", row)] for row in first.split("<tr>")[2:]]
    *body, total = cells
    assert total == [13, 4, 1, 1, 19] and [sum(column) for column in zip(*body, strict=True)] == total
    assert all(sum(row[:-1]) == row[-1] for row in cells)
    assert "12.3 % 10.1 % to 14.9 % of samples" in page.words.replace("12.3 %10.1", "12.3 % 10.1")


def test_hostile_names_are_data_and_overrides_are_spelled_out(pages: Path) -> None:
    files = [path for path in pages.rglob("*") if path.suffix in {".html", ".js"}]
    assert len(files) == 4
    for path in files:
        text = path.read_text("utf-8")
        assert "alert(1)" not in text or path.suffix == ".js", "names are no part of the HTML"
        assert "\u202e" not in text and "<script>alert" not in text
    page = Page((pages / "index.html").read_text("utf-8"))
    assert "My <crawl>" in page.text and visible("Zoë\u200dX\x1b\u2066") == "Zoë\u200dX⟨U+001B⟩⟨U+2066⟩"


def test_a_script_of_data_is_ascii_and_ends_no_element() -> None:
    hostile = '</script><!-- & \u2028 "); alert(1); //'
    script = data_script("list-00000", [hostile])
    assert not re.search(rb"[<>&\x80-\xff]", script) and json.loads(script[len(b"purify(") : -2].join([b"[", b"]"])) == [
        "list-00000",
        [hostile],
    ]
    with pytest.raises(ValueError, match="JSON compliant"):
        data_script("list-00000", float("nan"))


def test_a_long_name_is_cut_in_the_list_alone(tmp_path: Path) -> None:
    name = "W" * 1000
    out = tmp_path / "audit"
    audit(write_run(tmp_path / "run", [Planted(identity=name)]), out, with_inversion=False)
    assert told(out, "list-00000")["names"] == ["W" * 119 + "…"] and person(out, name, [name])["name"] == name
    assert shortened("W" * 120) == "W" * 120


def test_the_pages_ask_for_nothing_outside(pages: Path) -> None:
    for path in pages.glob("*.html"):
        html = path.read_text("utf-8")
        page = Page(html)
        assert not re.search(r"https?:|@import|url\((?!#)", html.replace("http://www.w3.org/2000/svg", ""))
        assert not any(name.startswith("on") or name == "style" for _, attrs in page.tags for name in attrs)
        links = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href"} and value]
        assert all(re.fullmatch(r"(index|identity)\.html|#\w+", link) for link in links)
        (given,) = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv")]
        assert given is not None and given.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in given


def test_only_the_noisiest_have_a_page_and_all_are_in_the_list(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    counts, page, html = audit(run, out, identities=2)
    assert counts == AuditCounts(identities=4, drawn=2, inversions=1) and 'data-drawn="2"' in html
    assert len(told(out, "people-00000")) == 2 and len(told(out, "list-00000")["names"]) == 4
    assert "The 2 with the most noise have a page with faces" in page.words


def test_the_inversion_is_told_with_its_angle(pages: Path) -> None:
    (one,) = person(pages, SCRIPT)["imagined"]
    assert one == {"file": "inversions/000000-0.png", "about": "the dominant sub-center", "angle": 12.3}
    assert (pages / one["file"]).read_bytes() == png() and person(pages, OVERRIDE)["imagined"] == []


def test_parts_are_even_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine identities in blocks of two and waves of four give what one block of all gives."""
    planted = [Planted(identity=f"P{number}", angle_deg=30.0 + number + more) for number in range(9) for more in range(2)]
    run = write_run(tmp_path / "run", planted)
    audit(run, tmp_path / "one", with_inversion=False)
    for name, size in (("BLOCK", 2), ("WAVE", 4), ("LIST_ROWS", 4)):
        monkeypatch.setattr(people, name, size)
    audit(run, tmp_path / "many", with_inversion=False)
    whole, parts = told(tmp_path / "one", "people-00000"), [told(tmp_path / "many", f"people-{part:05d}") for part in range(5)]
    without = [{key: value for key, value in facts.items() if key != "sheet"} for facts in whole]
    assert [{key: value for key, value in facts.items() if key != "sheet"} for part in parts for facts in part] == without
    assert [(tmp_path / "one" / facts["sheet"]).read_bytes() for facts in whole] == [
        (tmp_path / "many" / facts["sheet"]).read_bytes() for part in parts for facts in part
    ]
    lists = [told(tmp_path / "many", f"list-{part:05d}") for part in range(3)]
    assert [name for one in lists for name in one["names"]] == told(tmp_path / "one", "list-00000")["names"]


def test_what_was_drawn_before_is_not_drawn_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "BLOCK", 1)
    monkeypatch.setattr(people, "WAVE", 2)
    audit(run, tmp_path / "whole")
    waves = people.waves(run, tmp_path / "killed", ORDER, 4, {})
    people.write_wave(waves[0])
    first = tmp_path / "killed" / "sheets" / "00000" / "000000.jpg"
    before = first.stat().st_mtime_ns
    assert [wave.names for wave in people.waves(run, tmp_path / "killed", ORDER, 4, {})] == [("Lone", "Clean")]
    audit(run, tmp_path / "killed")
    assert first.stat().st_mtime_ns == before
    assert {path.relative_to(tmp_path / "killed") for path in (tmp_path / "killed").rglob("*")} == {
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")
    }


def test_evaluation_stands_side_by_side_with_its_change(run: Path, tmp_path: Path) -> None:
    _, page, _ = audit(run, tmp_path / "audit")
    assert "round-1round-2Change" in page.words.replace("</th>", "")
    assert "accuracy 0.91000.9000–0.9200 0.95000.9400–0.9600 +0.0400" in page.words and "too few pairs" in page.words


def test_each_round_is_drawn_with_its_cut_and_only_the_first_has_other_subcenters(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert html.count("cut at 75.0°") == 3, "in both rounds, and in the sweep"
    assert "nearest to another sub-center: 2" in page.words and "all samples (one center): 17" in page.words


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        ([Planted(identity="A"), Planted(identity="A", angle_deg=40.0)], ["No sample was removed"]),
        ([Planted(identity="A", angle_deg=99.0, verdict="drop", reason="angle")], ["1 identity"]),
        ([Planted(identity="A", status="empty")], ["No item of this crawl could be judged", "No round has left its angles"]),
    ],
)
def test_empty_cases_say_so(tmp_path: Path, planted: list[Planted], says: list[str]) -> None:
    run = write_run(tmp_path / "run", planted, evaluated=False, cut_deg=None)
    counts, page, html = audit(run, tmp_path / "audit", with_inversion=False)
    assert all(words in page.words for words in [*says, "This run has no evaluation"])
    assert "cut at" not in html and counts.inversions == 0


def test_a_run_without_judge_facts_has_no_noise_rate(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    RunLayout(run).round(1).noise.joinpath("judge.json").unlink()
    RunLayout(run).round(2).noise.joinpath("judge.json").write_text(
        json.dumps({"noise_rate": float("nan"), "warning": "It learned nothing."})
    )
    _, page, _ = audit(run, tmp_path / "audit")
    assert "Estimated noise rate" not in page.words and "Look at this first. It learned nothing." in page.words


def test_the_pages_depend_on_the_run_alone(run: Path, pages: Path, tmp_path: Path) -> None:
    audit(run, tmp_path)
    files = {path.relative_to(pages): path.read_bytes() for path in pages.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_crop_that_is_not_where_its_row_says_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    twin = RunLayout(run).raw / "raw-000000.parquet"
    table = pq.read_table(twin)
    place = table.column_names.index("crop_offset")
    write_twin(twin, table.set_column(place, table.schema.field(place), [[0] * table.num_rows]), read_facts(twin))
    with pytest.raises(BadShard, match=r"raw-000000.tar has no JPEG at the offset of .*Remove"):
        audit(run, tmp_path / "audit")


def test_an_identity_that_a_missing_manifest_hides_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="purify run"):
        audit(tmp_path, tmp_path / "audit")


def test_inversions_must_be_png(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG bytes"):
        write_audit(run, tmp_path, title="t", identities=5, faces=4, inversions={SCRIPT: [Imagined(b"<svg>", "", 1.0)]})


def test_two_names_that_may_be_one_person_stand_side_by_side(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", [Planted(identity=name) for name in ("Ada", "Bob")]), tmp_path / "audit"
    faces = {"Ada": [Imagined(png(), "of round 1", 9.0), Imagined(png(), "of round 2", 8.0)]}
    write_audit(run, out, title="t", identities=9, faces=2, inversions=faces)
    page = Page((out / "index.html").read_text("utf-8"))
    pictures = {attrs["src"]: attrs["alt"] for tag, attrs in page.tags if tag == "img"}
    assert pictures == {"inversions/pair-00-0.png": "The face imagined for Ada"} and (out / "inversions" / "pair-00-0.png").is_file()
    assert "Two names, perhaps one person" in page.words and "21.0°" in page.words
