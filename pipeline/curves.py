"""ROC curves and score histograms as SVG files that stand alone: no plotting library, no script, models told apart by dashes as well as by colour."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 48, 56
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_COLOURS = ("#1b5e8c", "#b4432a", "#4b7d2c", "#7a4b99", "#8a6d1f")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}.grid{stroke:#ddd}.axis{stroke:#888}"
    "@media(prefers-color-scheme:dark){svg{background:#1c1c1c}text{fill:#ddd}.grid{stroke:#3a3a3a}}"
)
Curve = Sequence[tuple[float, float]]


def roc_svg(curves: Mapping[str, Curve], dataset: str) -> str:
    """True accept rate over false accept rate, the latter on a logarithmic axis; a line a model. A rate of 0 is drawn at the left edge."""
    lowest = min((far for curve in curves.values() for far, _ in curve if far > 0), default=1e-4)
    first = min(-1, floor(log10(lowest)))
    parts = _frame(f"ROC, {dataset}", "false accept rate", "true accept rate")

    def x(far: float) -> float:
        return _LEFT + (max(log10(far), first) - first) / -first * _PLOT_WIDTH if far > 0 else _LEFT

    for power in range(first, 1):
        parts += _tick_x(_LEFT + (power - first) / -first * _PLOT_WIDTH, "1" if power == 0 else f"1e{power}")
    parts += [part for tenth in range(0, 11, 2) for part in _tick_y(tenth / 10, f"{tenth / 10:g}")]
    for number, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x(far):.1f},{_y(tar):.1f}" for far, tar in curve)
        look = f'stroke="{_COLOURS[number % 5]}" stroke-dasharray="{_DASHES[number % 5]}"'
        parts.append(f'<polyline fill="none" stroke-width="2" {look} points="{points}"/>')
        above = _HEIGHT - _BOTTOM - 14 - 18 * (len(curves) - 1 - number)
        parts.append(f'<line x1="{_WIDTH - 230}" x2="{_WIDTH - 200}" y1="{above - 4}" y2="{above - 4}" stroke-width="2" {look}/>')
        parts.append(f'<text x="{_WIDTH - 192}" y="{above}">{escape(name)}</text>')
    return "".join([*parts, "</svg>\n"])


def scores_svg(genuine_M: NDArray[np.int64], impostor_M: NDArray[np.int64], dataset: str) -> str:
    """Shares of genuine and impostor pairs by cosine, in equal bins over [-1, 1], each kind over its own total."""
    parts = _frame(f"Scores, {dataset}", "cosine", "share of pairs, highest bin = 1")
    parts += [part for tenth in range(-10, 11, 5) for part in _tick_x(_LEFT + (tenth + 10) / 20 * _PLOT_WIDTH, f"{tenth / 10:g}")]
    kinds = (("genuine", genuine_M), ("impostor", impostor_M))
    shares = [counts / max(1, int(counts.sum())) for _, counts in kinds]
    highest = max(float(share.max()) for share in shares) or 1.0
    for number, ((name, counts), share) in enumerate(zip(kinds, shares, strict=True)):
        step = _PLOT_WIDTH / len(share)
        points = [f"{_LEFT + bin_ * step + side:.1f},{_y(value / highest):.1f}" for bin_, value in enumerate(share) for side in (0.0, step)]
        look = f'stroke="{_COLOURS[number]}" stroke-dasharray="{_DASHES[number]}"'
        parts.append(f'<polyline fill="none" stroke-width="1.6" {look} points="{" ".join(points)}"/>')
        parts.append(
            f'<line x1="{_LEFT + 12}" x2="{_LEFT + 42}" y1="{_TOP + 12 + 18 * number}" y2="{_TOP + 12 + 18 * number}" stroke-width="2" {look}/>'
        )
        parts.append(f'<text x="{_LEFT + 50}" y="{_TOP + 16 + 18 * number}">{name}, {int(counts.sum()):,} pairs</text>')
    return "".join([*parts, "</svg>\n"])


def _frame(title: str, across: str, up: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(title)}"><style>{_STYLE}</style>',
        f'<text class="title" x="{_LEFT}" y="26">{escape(title)}</text>',
        f'<rect class="axis" fill="none" x="{_LEFT}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}"/>',
        f'<text x="{_LEFT + _PLOT_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(18 {_TOP + _PLOT_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]


def _y(share: float) -> float:
    return _TOP + (1 - share) * _PLOT_HEIGHT


def _tick_x(at: float, text: str) -> list[str]:
    return [
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_TOP + _PLOT_HEIGHT}"/>',
        f'<text x="{at:.1f}" y="{_TOP + _PLOT_HEIGHT + 18}" text-anchor="middle">{text}</text>',
    ]


def _tick_y(share: float, text: str) -> list[str]:
    return [
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{_y(share):.1f}" y2="{_y(share):.1f}"/>',
        f'<text x="{_LEFT - 8}" y="{_y(share) + 4:.1f}" text-anchor="end">{text}</text>',
    ]
