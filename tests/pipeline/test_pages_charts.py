"""Charts of the audit pages: what is drawn is as long, as high and where its figure says."""

import itertools
import re

import pytest

from pipeline.pages.flow import Route, flow_svg
from pipeline.pages.histogram import Series, histogram_svg
from pipeline.pages.lines import Curve, curves_svg

HOSTILE = '"><script>alert(1)</script>'


def bars(svg: str, order: int) -> list[tuple[float, ...]]:
    found = re.findall(rf'<rect class="series-{order}"[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"/>', svg)
    return [tuple(map(float, numbers)) for numbers in found]


def test_bars_are_as_high_as_their_counts_and_stand_on_each_other() -> None:
    low, high = [0] * 60, [0] * 60
    low[10], low[20], high[10] = 10, 20, 5
    svg = histogram_svg(
        [Series("low", low), Series("high", high)], bin_deg=3, cuts=[(70.04, "cut at 70.0°")], name="a", description='"<b>"'
    )
    (first, second), (upper,) = bars(svg, 0), bars(svg, 1)
    assert second[3] == pytest.approx(2 * first[3], abs=0.02) and upper[3] == pytest.approx(first[3] / 2, abs=0.02)
    assert upper[0] == first[0] and upper[1] + upper[3] == pytest.approx(first[1], abs=0.02)
    assert second[0] - first[0] == pytest.approx(30 / 50 * 446, abs=0.1)  # 30 of the 50 degrees shown, in a plot 446 wide
    assert "cut at 70.0°" in svg and "&quot;&lt;b&gt;&quot;" in svg


def test_the_cut_stands_at_its_angle() -> None:
    counts = [0] * 60
    counts[0] = counts[59] = 1
    line = re.search(
        r'class="cut" x1="([\d.]+)"', histogram_svg([Series("s", counts)], bin_deg=3, cuts=[(90.0, "here")], name="a", description="d")
    )
    assert line and float(line[1]) == pytest.approx(52 + 446 / 2, abs=0.1)


@pytest.mark.parametrize("counts", [[0] * 60, [1] + [0] * 59, [0] * 59 + [7_000_000]])
def test_extreme_histograms_stay_inside(counts: list[int]) -> None:
    svg = histogram_svg([Series("s", counts)], bin_deg=3, cuts=[], name="a", description="d")
    assert all(x >= 52 and x + width <= 498.5 and y >= 29.9 and y + height <= 218.1 for x, y, width, height in bars(svg, 0))
    assert "nan" not in svg.replace("dominant", "") and 'class="cut"' not in svg


def test_bins_must_span_180_degrees() -> None:
    with pytest.raises(ValueError, match="divisor of 180"):
        histogram_svg([Series("s", [1, 2])], bin_deg=3, cuts=[], name="a", description="d")


def bands(svg: str) -> list[tuple[str, float, float, float, float]]:
    """(kind, left edge, top on the left, top on the right, thickness) of every band."""
    found = re.findall(r'<path class="band (\w+)" d="M([\d.]+) ([\d.]+)C[\d.]+ [\d.]+ [\d.]+ [\d.]+ [\d.]+ ([\d.]+)V([\d.]+)', svg)
    return [(kind, float(x), float(y), float(z), float(bottom) - float(z)) for kind, x, y, z, bottom in found]


def test_bands_are_as_thick_as_their_items_and_what_enters_a_node_leaves_it() -> None:
    routes = [
        Route(("all", "good", "kept"), "keep", 60),
        Route(("all", "good", "gone"), "drop", 30),
        Route(("all", "bad"), "unusable", 10),
    ]
    svg = flow_svg(routes, ["a", "b", "c"], name="n", description="d")
    drawn = bands(svg)
    assert [(kind, round(thick)) for kind, *_, thick in drawn] == [
        ("keep", 180),
        ("keep", 180),
        ("drop", 90),
        ("drop", 90),
        ("unusable", 30),
    ]
    heights = {label: float(height) for height, label in re.findall(r'height="([\d.]+)"/><text class="node-label"[^>]*>(\w+)', svg)}
    assert heights == {"all": 300, "good": 270, "bad": 30, "kept": 180, "gone": 90}
    first = [band for band in drawn if band[1] == 12]
    assert [band[2] for band in first] == [30, 210, 300], "bands leave a node one below the other"


def test_labels_of_thin_nodes_do_not_touch() -> None:
    routes = [Route(("all", f"{number}"), "drop", 1) for number in range(8)] + [Route(("all", "rest"), "keep", 10**6)]
    tops = [
        float(y)
        for y in re.findall(r'class="node-label" x="[\d.]+" y="([\d.]+)"', flow_svg(routes, ["a", "b"], name="n", description="d"))[1:]
    ]
    assert all(later - earlier >= 20 for earlier, later in itertools.pairwise(tops))


def test_a_flow_of_nothing_and_hostile_labels() -> None:
    assert "<path" not in flow_svg([], ["a"], name="n", description="d")
    svg = flow_svg([Route((HOSTILE,), HOSTILE, 1)], [HOSTILE], name=HOSTILE, description=HOSTILE)
    assert "<script" not in svg and "&quot;&gt;" in svg
    with pytest.raises(ValueError, match="at most 1 nodes"):
        flow_svg([Route(("a", "b"), "keep", 1)], ["one"], name="n", description="d")


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in re.findall(r'points="([^"]*)"', svg)]  # type: ignore[misc]


def test_curves_go_through_their_points() -> None:
    svg = curves_svg([Curve("a", [(0, 0), (50, 25), (100, 100)])], name="n", description="d", x_label="x", top=100, marks=[(75, "here")])
    (line,) = points(svg)
    assert line == [(52, 218), pytest.approx((273, 171), abs=0.1), (494, 30)]
    mark = re.search(r'class="cut" x1="([\d.]+)"', svg)
    assert mark and float(mark[1]) == pytest.approx(52 + 442 * 0.75, abs=0.1)


def test_a_logarithmic_axis_leaves_zero_out() -> None:
    svg = curves_svg(
        [Curve("a", [(0.0, 0.5), (1e-4, 0.0), (1e-2, 1.0), (1.0, 1.0)])], name="n", description="d", x_label="x", top=1, is_log=True
    )
    (line,) = points(svg)
    assert [x for x, _ in line] == [52, 273, 494]
    assert all(label in svg for label in (">1e-4<", ">0.01<", ">1<"))


@pytest.mark.parametrize("some", [[], [(1.0, 0.0)], [(1.0, float("nan")), (2.0, float("inf"))], [(3.0, 7e9), (3.0, 7e9)]])
def test_extreme_curves_stay_inside(some: list[tuple[float, float]]) -> None:
    svg = curves_svg([Curve(HOSTILE, some)], name=HOSTILE, description=HOSTILE, x_label=HOSTILE)
    assert all(52 <= x <= 494 and 30 <= y <= 218 for line in points(svg) for x, y in line) and "nan" not in svg and "<script" not in svg
