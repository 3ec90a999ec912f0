"""The audit page: planted faces and counts must stand on it, hostile names as text, and nothing may point outside."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.audit import AuditCounts, noisiest, visible, write_audit
from pipeline.charts import Series, histogram_svg
from pipeline.errors import BadInput, BadShard
from pipeline.layout import RunLayout
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

    def images(self) -> dict[str, str]:
        return {str(attrs["src"]): str(attrs["alt"]) for tag, attrs in self.tags if tag == "img"}

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def audit(run: Path, out: Path, *, faces: int = 4, identities: int = 10, with_inversion: bool = True) -> tuple[AuditCounts, Page, str]:
    out.mkdir()
    inversions = {SCRIPT: (png(), 12.34)} if with_inversion else {}
    counts = write_audit(run, out, title="My <crawl>", identities=identities, faces=faces, inversions=inversions)
    html = (out / "index.html").read_text("utf-8")
    return counts, Page(html), html


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "Bob's run", PLANTED)


def test_noisiest_come_first_then_review_then_the_largest(run: Path) -> None:
    assert noisiest(run, 10) == [SCRIPT, OVERRIDE, "Lone", "Clean"]
    assert noisiest(run, 2) == [SCRIPT, OVERRIDE]


def test_every_tile_shows_its_own_crop_verdict_and_angle(run: Path, tmp_path: Path) -> None:
    counts, page, _ = audit(run, tmp_path / "audit")
    spread = {0: "kept, 30.0 degrees", 3: "kept, 33.0 degrees", 6: "kept, 36.0 degrees", 9: "kept, 39.0 degrees"}
    rest = {10: "dropped, 80.0 degrees", 11: "dropped, 81.0 degrees", 12: "dropped, 82.0 degrees", 13: "relabel proposed, 88.5 degrees"}
    rest |= {14: "kept, 33.0 degrees", 15: "kept, 25.0 degrees", 16: "kept, 26.0 degrees", 18: "to review, angle unknown"}
    wanted = {f"images/{key_of(PLANTED, position)}.jpg": alt for position, alt in (spread | rest).items()}
    inverted = {"images/inversion-0000.png": f"The face the network imagines for {SCRIPT}, 12.3 degrees from its center"}
    assert page.images() == wanted | inverted
    assert counts == AuditCounts(identities=4, faces=len(wanted), inversions=1)
    for position in spread | rest:
        assert (tmp_path / "audit" / "images" / f"{key_of(PLANTED, position)}.jpg").read_bytes() == crop(position)
    assert {f"images/{path.name}" for path in (tmp_path / "audit" / "images").iterdir()} == set(page.images())


def test_sums_on_the_page_add_up(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert "19 crawl items" in page.words
    first = html.split("</table>")[0]
    cells = [[int(cell) for cell in re.findall(r">(\d+)<", row)] for row in first.split("<tr>")[2:]]
    *body, total = cells
    assert total == [13, 4, 1, 1, 19] and [sum(column) for column in zip(*body, strict=True)] == total
    assert all(sum(row[:-1]) == row[-1] for row in cells)
    assert "13 samples = 10 kept + 3 dropped + 0 relabel proposed + 0 to review" in page.words
    assert "12.3 % 10.1 % to 14.9 % of samples" in page.words.replace("12.3 %10.1", "12.3 % 10.1")


def test_relabel_names_the_other_identity_and_its_angle(run: Path, tmp_path: Path) -> None:
    _, page, _ = audit(run, tmp_path / "audit")
    assert f"too far from the center 31.2° from {SCRIPT}" in page.words


def test_hostile_names_are_text_and_overrides_are_spelled_out(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert "script" not in {tag for tag, _ in page.tags} and not re.search(r"\son\w+\s*=", html)
    assert SCRIPT in page.text and "\u202e" not in html and "abc⟨U+202E⟩cba" in page.text and "My <crawl>" in page.text
    assert visible("Zoë\u200dX\x1b\u2066") == "Zoë\u200dX⟨U+001B⟩⟨U+2066⟩"


def test_the_page_asks_for_nothing_outside(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", html)
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href"} and value]
    assert links and all(link.startswith(("images/", "#identity-")) for link in links)
    (policy,) = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'") and "script-src" not in policy


def test_evaluation_stands_side_by_side_with_its_change(run: Path, tmp_path: Path) -> None:
    _, page, _ = audit(run, tmp_path / "audit")
    assert "round-1round-2Change" in page.words.replace("</th>", "")
    assert "accuracy 0.91000.9000–0.9200 0.95000.9400–0.9600 +0.0400" in page.words and "too few pairs" in page.words


def test_each_round_is_drawn_with_its_cut_and_only_the_first_has_other_subcenters(run: Path, tmp_path: Path) -> None:
    _, page, html = audit(run, tmp_path / "audit")
    assert html.count("cut at 75.0°") == 2 and html.count("<svg") == 2
    assert "nearest to another sub-center: 2" in page.words and "all samples (one center): 17" in page.words


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        (
            [Planted(identity="A"), Planted(identity="A", angle_deg=40.0)],
            ["No sample was removed", "Nothing was removed from this identity"],
        ),
        ([Planted(identity="A", angle_deg=99.0, verdict="drop", reason="angle")], ["Nothing was kept of this identity"]),
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


def test_the_page_depends_on_the_run_alone(run: Path, tmp_path: Path) -> None:
    assert audit(run, tmp_path / "one")[2] == audit(run, tmp_path / "two")[2]


def test_progress_counts_identities(run: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    write_audit(run, tmp_path, title="t", identities=3, faces=1, inversions={}, on_progress=seen.append)
    assert seen == [1, 2, 3]


def test_a_crop_that_is_not_where_its_row_says_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLANTED)
    twin = RunLayout(run).raw / "raw-000000.parquet"
    table = pq.read_table(twin)
    place = table.column_names.index("crop_offset")
    pq.write_table(table.set_column(place, table.schema.field(place), [[0] * table.num_rows]), twin)
    with pytest.raises(BadShard, match=r"raw-000000.tar has no JPEG at the offset of .*Remove"):
        write_audit(run, tmp_path / "audit", title="t", identities=5, faces=4, inversions={})


def test_an_identity_that_a_missing_manifest_hides_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="purify run"):
        write_audit(tmp_path, tmp_path / "audit", title="t", identities=5, faces=4, inversions={})


def test_inversions_must_be_png(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG bytes"):
        write_audit(run, tmp_path, title="t", identities=5, faces=4, inversions={SCRIPT: (b"<svg>", 1.0)})


def bars(svg: str, order: int) -> list[tuple[float, ...]]:
    found = re.findall(rf'<rect class="series-{order}"[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"/>', svg)
    return [tuple(map(float, numbers)) for numbers in found]


def test_bars_are_as_high_as_their_counts_and_stand_on_each_other() -> None:
    low, high = [0] * 60, [0] * 60
    low[10], low[20], high[10] = 10, 20, 5
    svg = histogram_svg([Series("low", low), Series("high", high)], bin_deg=3, cut_deg=70.04, name="a", description='"<b>"')
    (first, second), (upper,) = bars(svg, 0), bars(svg, 1)
    assert second[3] == pytest.approx(2 * first[3], abs=0.02) and upper[3] == pytest.approx(first[3] / 2, abs=0.02)
    assert upper[0] == first[0] and upper[1] + upper[3] == pytest.approx(first[1], abs=0.02)
    assert second[0] - first[0] == pytest.approx(30 / 50 * 454, abs=0.1)  # 30 of the 50 degrees shown, in a plot 454 wide
    assert "cut at 70.0°" in svg and "&quot;&lt;b&gt;&quot;" in svg


def test_the_cut_stands_at_its_angle() -> None:
    counts = [0] * 60
    counts[0] = counts[59] = 1
    line = re.search(r'class="cut" x1="([\d.]+)"', histogram_svg([Series("s", counts)], bin_deg=3, cut_deg=90.0, name="a", description="d"))
    assert line and float(line[1]) == pytest.approx(52 + 454 / 2, abs=0.1)


@pytest.mark.parametrize("counts", [[0] * 60, [1] + [0] * 59, [0] * 59 + [7_000_000]])
def test_extreme_histograms_stay_inside(counts: list[int]) -> None:
    svg = histogram_svg([Series("s", counts)], bin_deg=3, cut_deg=None, name="a", description="d")
    assert all(x >= 52 and x + width <= 506.5 and y >= 29.9 and y + height <= 218.1 for x, y, width, height in bars(svg, 0))
    assert "nan" not in svg.replace("dominant", "") and 'class="cut"' not in svg


def test_bins_must_span_180_degrees() -> None:
    with pytest.raises(ValueError, match="divisor of 180"):
        histogram_svg([Series("s", [1, 2])], bin_deg=3, cut_deg=None, name="a", description="d")
