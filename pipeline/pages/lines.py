"""Curves as inline SVG, for the overview: loss over steps, shares over cuts, true accepts over false ones. Curves differ by dash as well as by colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

_WIDTH, _HEIGHT = 520, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 26, 30, 46
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def curves_svg(
    curves: Sequence[Curve],
    *,
    name: str,
    description: str,
    x_label: str,
    top: float | None = None,
    is_log: bool = False,
    unit: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """An `<svg>` of curves over one pair of axes; y begins at 0 and ends at `top`, or above the highest point.

    `is_log`: x is drawn by its logarithm, and points at x <= 0 are left out. `marks`: labelled vertical lines. What is not finite is left out.
    """
    drawn = [[(x, y) for x, y in one.points if isfinite(x) and isfinite(y) and (x > 0 or not is_log)] for one in curves]
    across = [log10(x) if is_log else x for points in drawn for x, _ in points]
    first, last = (min(across), max(across)) if across else (0.0, 1.0)
    first, last = (floor(first), max(ceil(last), floor(first) + 1)) if is_log else (first, last if last > first else first + 1)
    highest = top or _above(max((y for points in drawn for _, y in points), default=1.0))

    def at_x(value: float) -> float:
        place = log10(value) if is_log else value
        return _LEFT + (place - first) / (last - first) * _PLOT_WIDTH

    def at_y(value: float) -> float:
        return _TOP + (1 - min(max(value, 0.0), highest) / highest) * _PLOT_HEIGHT

    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-labelledby="{escape(name)}-title">',
        f'<title id="{escape(name)}-title">{escape(description)}</title>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = at_y(share * highest)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:g}{escape(unit)}</text>')
    for value, label in _ticks(first, last, is_log=is_log):
        parts.append(f'<text class="tick" x="{at_x(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for value, label in marks:
        if first <= value <= last:
            x = at_x(value)
            anchor, shift = ("end", -6) if value > (first + last) / 2 else ("start", 6)
            parts.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 18}" y2="{_HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="cut-label" x="{x + shift:.1f}" y="{_TOP - 9}" text-anchor="{anchor}">{escape(label)}</text>')
    for number, points in enumerate(drawn):
        if points:
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
            parts.append(f'<polyline class="curve curve-{number}" points="{path}"/>')
    parts.append(
        f'<text class="tick" x="{_LEFT + _PLOT_WIDTH / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text></svg>'
    )
    return "".join(parts)


def _above(highest: float) -> float:
    """The least of 1, 2, 4, 5, 8 and 10 times a power of ten that is not below `highest`; 1 for 0."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** floor(log10(highest))
    return next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= highest * (1 - 1e-12))


def _ticks(first: float, last: float, *, is_log: bool) -> list[tuple[float, str]]:
    if is_log:
        every = max(1, ceil((last - first) / 6))
        return [(10.0**power, f"1e{power}" if power < -2 else f"{10.0**power:g}") for power in range(int(first), int(last) + 1, every)]
    step = _above((last - first) / 6)
    start = ceil(first / step - 1e-9)
    return [(number * step, f"{number * step:,.6g}") for number in range(start, floor(last / step + 1e-9) + 1)]
