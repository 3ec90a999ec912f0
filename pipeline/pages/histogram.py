"""Histograms as inline SVG: no plotting library, no script, colours from the page's own style sheet.

Series differ by pattern as well as by colour (the CSS classes `series-0`, `series-1`), so that print and colour-blind eyes read them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

_WIDTH, _HEIGHT = 520, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 30, 46
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_DEGREES = 180


@dataclass(frozen=True)
class Series:
    """Counts per bin, the first bin from 0 degrees, the last up to 180."""

    name: str
    counts: Sequence[int]


def histogram_svg(series: Sequence[Series], *, bin_deg: int, cuts: Sequence[tuple[float, str]], name: str, description: str) -> str:
    """An `<svg>` of stacked bars over degrees, with `cuts` as lines of (degrees, label); `name` makes its ids unique in the page.

    Shows the whole tens of degrees in which there are samples or cuts. Raises ValueError unless every series spans 180 degrees.
    """
    bins = _DEGREES // bin_deg
    if bins * bin_deg != _DEGREES or any(len(one.counts) != bins for one in series):
        raise ValueError(f"Every series needs 180 / bin_deg counts, bin_deg a divisor of 180; got bin_deg {bin_deg}.")
    totals = [sum(counts) for counts in zip(*(one.counts for one in series), strict=True)] or [0] * bins
    first_deg, last_deg = _shown(totals, bin_deg, [at for at, _ in cuts])
    step, top = _nice(max(totals))

    def x(degrees: float) -> float:
        return _LEFT + (degrees - first_deg) / (last_deg - first_deg) * _PLOT_WIDTH

    def y(count: float) -> float:
        return _TOP + (1 - count / top) * _PLOT_HEIGHT

    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-labelledby="{escape(name)}-title">',
        f'<title id="{escape(name)}-title">{escape(description)}</title>',
        f'<defs><pattern id="{escape(name)}-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" class="hatch-ground"/><rect width="2.4" height="6" class="hatch-line"/></pattern></defs>',
    ]
    for count in range(0, top + 1, step):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{_short(count)}</text>')
    tick_deg = 10 if last_deg - first_deg <= 100 else 20
    for degrees in range(-(-first_deg // tick_deg) * tick_deg, last_deg + 1, tick_deg):
        parts.append(f'<text class="tick" x="{x(degrees):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{degrees}°</text>')
    width = _PLOT_WIDTH * bin_deg / (last_deg - first_deg) - 1
    below = [0] * bins
    for order, one in enumerate(series):
        fill = "" if order == 0 else f' fill="url(#{escape(name)}-hatch)"'
        for number, count in enumerate(one.counts):
            if count:
                height = y(below[number]) - y(below[number] + count)
                parts.append(
                    f'<rect class="series-{order}"{fill} x="{x(number * bin_deg) + 0.5:.1f}" y="{y(below[number] + count):.2f}" '
                    f'width="{width:.2f}" height="{height:.2f}"/>'
                )
                below[number] += count
    for order, (cut_deg, label) in enumerate(sorted(cuts)):
        at = x(cut_deg)
        anchor, shift = (
            ("end", -6) if (len(cuts) > 1 and order == 0) or (len(cuts) == 1 and cut_deg > (first_deg + last_deg) / 2) else ("start", 6)
        )
        parts.append(f'<line class="cut" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 18}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="cut-label" x="{at + shift:.1f}" y="{_TOP - 9}" text-anchor="{anchor}">{escape(label)}</text>')
    axis = _LEFT + _PLOT_WIDTH / 2
    parts.append(f'<text class="tick" x="{axis:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">angle to the dominant sub-center</text></svg>')
    return "".join(parts)


def _shown(totals: Sequence[int], bin_deg: int, cuts: Sequence[float]) -> tuple[int, int]:
    """The whole tens of degrees, at least twenty of them, that hold every sample and every cut."""
    edges = [float(number * bin_deg) for number, count in enumerate(totals) if count]
    edges += [*(edge + bin_deg for edge in edges), *cuts]
    if not edges:
        return 0, _DEGREES
    first, last = floor(min(edges) / 10) * 10, ceil(max(edges) / 10) * 10
    return (first, last) if last - first >= 20 else (max(0, min(first, 160)), max(0, min(first, 160)) + 20)


def _nice(highest: int) -> tuple[int, int]:
    """(step, top): at most five steps of 1, 2 or 5 times a power of ten that reach above `highest`."""
    power = 10 ** max(0, floor(log10(max(highest, 1))) - 1)
    step = next(factor * power for factor in (1, 2, 5, 10, 20, 50) if factor * power * 5 >= highest)
    return step, max(step, -(-highest // step) * step)


def _short(count: int) -> str:
    for limit, suffix in ((1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            return f"{count / limit:g}{suffix}"
    return str(count)
