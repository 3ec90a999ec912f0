"""Where every item went, as bands between columns that add up (a Sankey diagram), in inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABEL_PX, _NODE_PX, _SLOT_PX, _HEIGHT = 1000, 150, 12, 30, 300
_TOP = 30


@dataclass(frozen=True)
class Route:
    """Items that went one way: their node in each column, as far as they came; `kind` is the CSS class of their band."""

    nodes: tuple[str, ...]
    kind: str
    items: int


@dataclass
class _Node:
    items: int = 0
    top: float = 0.0
    left_from: float = 0.0
    right_from: float = 0.0


def flow_svg(routes: Sequence[Route], columns: Sequence[str], *, name: str, description: str) -> str:
    """An `<svg>` of the routes; what enters a node of a column either leaves it to the next, or ends there.

    Bands are as thick as their items, and the nodes of a column stand in the order in which the routes name them first. Raises ValueError for
    a route with more nodes than there are columns.
    """
    if any(len(route.nodes) > len(columns) for route in routes):
        raise ValueError(f"A route has at most {len(columns)} nodes.")
    nodes: list[dict[str, _Node]] = [{} for _ in columns]
    for route in routes:
        for column, label in enumerate(route.nodes):
            nodes[column].setdefault(label, _Node()).items += route.items
    total = max((sum(node.items for node in column.values()) for column in nodes), default=0) or 1
    scale = _HEIGHT / total
    height = _TOP + max(_place(column, scale) for column in nodes)
    step = (_WIDTH - _LABEL_PX - _NODE_PX) / max(1, len(columns) - 1)
    parts = [
        f'<svg class="chart flow" role="img" viewBox="0 0 {_WIDTH} {height:.0f}" aria-labelledby="{escape(name)}-title">',
        f'<title id="{escape(name)}-title">{escape(description)}</title>',
    ]
    for route in routes:
        thick = route.items * scale
        for column, (start, end) in enumerate(zip(route.nodes, route.nodes[1:], strict=False)):
            one, other = nodes[column][start], nodes[column + 1][end]
            left, right = column * step + _NODE_PX, (column + 1) * step
            middle = (left + right) / 2
            y, z = one.top + one.right_from, other.top + other.left_from
            one.right_from += thick
            other.left_from += thick
            parts.append(
                f'<path class="band {escape(route.kind)}" d="M{left:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {z:.1f} {right:.1f} {z:.1f}'
                f'V{z + thick:.1f}C{middle:.1f} {z + thick:.1f} {middle:.1f} {y + thick:.1f} {left:.1f} {y + thick:.1f}Z"/>'
            )
    for column, (title, found) in enumerate(zip(columns, nodes, strict=True)):
        x = column * step
        parts.append(f'<text class="tick" x="{x:.1f}" y="14">{escape(title)}</text>')
        for label, node in found.items():
            parts.append(
                f'<rect class="node" x="{x:.1f}" y="{node.top:.1f}" width="{_NODE_PX}" height="{max(node.items * scale, 1):.1f}"/>'
                f'<text class="node-label" x="{x + _NODE_PX + 6:.1f}" y="{node.top + 13:.1f}">{escape(label)} <tspan>{node.items:,}</tspan></text>'
            )
    return "".join([*parts, "</svg>"])


def _place(column: dict[str, _Node], scale: float) -> float:
    """Gives each node its top, at least a label's height apart; where the column ends."""
    top = float(_TOP)
    for node in column.values():
        node.top = top
        top += max(node.items * scale + 8, _SLOT_PX)
    return top - _TOP
