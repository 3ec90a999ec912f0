"""The paper's figures 6 and 7 for any run, as SVG and PDF. Needs the extra `figures` (matplotlib).

Angles are those of the first round, the one with sub-centers, but for 7a, which is the last round's with one center. Clean and noisy are what the
truth table says, if one is given, and else what the last verdict says; the paper took them from a cleaned list of the same crawl.

Source: Deng et al., ArcFace, TPAMI 2022, figures 6 and 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from pipeline.duck import every, fetch, literal
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.pages.people import Crops
from pipeline.run_folder import require_whole
from pipeline.shards import decode_crop

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS_DEG = range(0, 121, 2)
_RED, _BLUE = "#c0392b", "#2c5f8a"
_STYLE: Any = {
    "font.family": "serif", "font.serif": ["DejaVu Serif"], "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "svg.hashsalt": "arcface-purify", "svg.fonttype": "path", "pdf.fonttype": 42,
    "figure.dpi": 150, "savefig.bbox": "tight", "savefig.pad_inches": 0.03,
}  # fmt: skip
_COLUMN_INCHES, _PAGE_INCHES = 3.4, 7.0


@dataclass(frozen=True)
class Figures:
    """What was drawn."""

    files: tuple[Path, ...]
    identity: str
    """Whose sub-centers figure 6a shows; its name is in no figure."""
    labels: str
    """Where clean and noisy come from: `truth` or `verdicts`."""


def draw_figures(run: Path, out: Path, *, identity: str | None = None, truth: Path | None = None, faces: int = 10) -> Figures:
    """Draw figure-6a, -6b and -7 into `out`, each as .svg and .pdf; the same run gives the same bytes.

    `identity`: whose sub-centers 6a shows, else that with the most samples away from its dominant sub-center. `truth`: a Parquet file with
    columns item (a source_uri) and is_noise, such as `purify synthesize` writes. `faces`: in a row of 6a.
    Raises BadInput: without matplotlib, without a round that judged, for an identity that the run does not have, and for a truth of other items.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("Figures need matplotlib: pip install 'arcface-purify[figures]'.") from error
    require_whole(RunLayout(run))
    numbers = RunLayout(run).round_numbers
    if not numbers or not any(RunLayout(run).manifest.glob("part-*.parquet")):
        raise BadInput(f"{run} is no finished run: it has no round that judged. Run `purify run CRAWL {run}` first.")
    with duckdb.connect() as db:
        first = _angles(db, RunLayout(run), numbers[0], truth)
        last = _angles(db, RunLayout(run), numbers[-1], truth)
        shown, rows = _subcenters(db, RunLayout(run), numbers[0], identity, faces)
    with mpl.rc_context(_STYLE):
        figures: dict[str, Figure] = {
            "figure-6a": _contact_sheet(run, rows),
            "figure-6b": _figure_6b(first),
            "figure-7": _figure_7(first, last),
        }
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for name, figure in figures.items():
            for suffix, metadata in (
                ("svg", {"Date": None, "Creator": None}),
                ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
            ):
                files.append(out / f"{name}.{suffix}")
                figure.savefig(files[-1], metadata=metadata)
    return Figures(tuple(files), shown, "truth" if truth else "verdicts")


@dataclass(frozen=True)
class _Angles:
    """Histograms of samples [len(BINS_DEG) - 1] and their sums, by (dominant or not, clean or not), of one kind of angle each."""

    to_nearest: dict[tuple[bool, bool], NDArray[np.int64]]
    to_dominant: dict[tuple[bool, bool], NDArray[np.int64]]
    samples: dict[tuple[bool, bool], int]


def _angles(db: duckdb.DuckDBPyConnection, run: RunLayout, number: int, truth: Path | None) -> _Angles:
    files = {
        "noise": every(run.round(number).noise, "raw-*.parquet"),
        "labels": literal(truth) if truth else every(run.manifest, "part-*.parquet"),
    }
    label = "SELECT item AS source_uri, NOT is_noise AS is_clean" if truth else "SELECT source_uri, verdict = 'keep' AS is_clean"
    step, last = BINS_DEG.step, len(BINS_DEG) - 2
    try:
        rows = fetch(db, _ANGLES_SQL.format(label=label), files | {"step": step, "last": last}).to_pylist()
    except duckdb.Error as error:
        if truth is None:
            raise
        raise BadInput(f"{truth} is no truth table, a Parquet file with columns item and is_noise.") from error
    if truth is not None and (unknown := _unknown(db, files["noise"], truth)):
        raise BadInput(f"{truth} does not know {unknown} of the samples of round {number}. Give the truth table of this run's crawl.")
    if not rows:
        raise BadInput(f"No sample of round {number} has an angle, so there is nothing to draw.")
    keys = [(dominant, clean) for dominant in (True, False) for clean in (True, False)]
    nearest, dominant = ({key: np.zeros(last + 1, np.int64) for key in keys} for _ in range(2))
    samples = dict.fromkeys(keys, 0)
    for row in rows:
        key = row["is_dominant"], row["is_clean"]
        samples[key] += row["samples"]
        nearest[key][row["near"]] += row["samples"]
        dominant[key][row["far"]] += row["samples"]
    return _Angles(nearest, dominant, samples)


def _unknown(db: duckdb.DuckDBPyConnection, noise: str, truth: Path) -> int:
    """Samples of a round that the truth table does not have."""
    sql = "SELECT count(*) AS n FROM read_parquet($noise) n ANTI JOIN read_parquet($truth) t ON t.item = n.source_uri"
    return int(fetch(db, sql, {"noise": noise, "truth": literal(truth)})["n"][0].as_py())


_ANGLES_SQL = """
    WITH labels AS ({label} FROM read_parquet($labels))
    SELECT n.nearest_subcenter = n.dominant_subcenter AS is_dominant, l.is_clean,
        CAST(least(floor(n.nearest_angle_deg / $step), $last) AS INTEGER) AS near, CAST(least(floor(n.angle_deg / $step), $last) AS INTEGER) AS far,
        count(*) AS samples
    FROM read_parquet($noise) n JOIN labels l ON l.source_uri = n.source_uri
    WHERE n.angle_deg IS NOT NULL AND NOT isnan(n.angle_deg) AND n.nearest_angle_deg IS NOT NULL AND NOT isnan(n.nearest_angle_deg)
        AND n.nearest_subcenter IS NOT NULL AND n.dominant_subcenter IS NOT NULL AND l.is_clean IS NOT NULL
    GROUP BY ALL ORDER BY ALL
"""


def _bars(axes: "Axes", series: Sequence[tuple[str, str, NDArray[np.int64], int]], total: int, title: str) -> None:
    """Filled histograms over degrees; the legend has each series' share of all `total` samples, as in the paper."""
    edges = np.asarray(BINS_DEG, float)
    highest = max(int(counts.max()) for _, _, counts, _ in series)
    for label, colour, counts, samples in series:
        share = 100 * samples / max(total, 1)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.stairs(counts, edges, color=colour, linewidth=0.9, label=f"{label}, {share:.2f} %")
    axes.set_title(title, loc="left")
    axes.set_xlim(BINS_DEG.start, 120)
    axes.set_xticks(range(0, 121, 20))
    axes.set_ylim(0, max(highest, 1) * 1.35)  # room for the legend
    axes.set_xlabel("angle (degrees)")
    axes.set_ylabel("samples")
    axes.legend(frameon=False, loc="upper left", handlelength=1.2)


def _figure_6b(found: _Angles) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_COLUMN_INCHES, 2.2))
    total = sum(found.samples.values())
    series = []
    for label, colour, dominant in (("dominant", _RED, True), ("non-dominant", _BLUE, False)):
        counts = found.to_dominant[dominant, True] + found.to_dominant[dominant, False]
        series.append((label, colour, counts, found.samples[dominant, True] + found.samples[dominant, False]))
    _bars(figure.subplots(), series, total, "")
    return figure


def _figure_7(first: _Angles, last: _Angles) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PAGE_INCHES, 4.2), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)

    def pair(angles: dict[tuple[bool, bool], NDArray[np.int64]], samples: dict[tuple[bool, bool], int], kinds: Sequence[bool]) -> list[Any]:
        return [
            (
                label,
                colour,
                sum((angles[kind, clean] for kind in kinds), np.zeros(len(BINS_DEG) - 1, np.int64)),
                sum(samples[kind, clean] for kind in kinds),
            )
            for label, colour, clean in (("clean", _RED, True), ("noisy", _BLUE, False))
        ]

    everyone, judged = sum(first.samples.values()), sum(last.samples.values())
    _bars(a, pair(last.to_dominant, last.samples, (True, False)), judged, "(a) last round, one center")
    _bars(b, pair(first.to_nearest, first.samples, (True,)), everyone, "(b) dominant, to their sub-center")
    _bars(c, pair(first.to_nearest, first.samples, (False,)), everyone, "(c) non-dominant, to the nearest sub-center")
    _bars(d, pair(first.to_dominant, first.samples, (False,)), everyone, "(d) non-dominant, to the dominant sub-center")
    return figure


_SHOWN_SQL = """
    SELECT identity FROM read_parquet($noise) WHERE nearest_subcenter IS NOT NULL AND ($identity IS NULL OR identity = $identity)
    GROUP BY identity
    ORDER BY count(DISTINCT nearest_subcenter) DESC, count(*) FILTER (nearest_subcenter <> dominant_subcenter) DESC, identity LIMIT 1
"""
_SHEET_SQL = """
    SELECT n.nearest_subcenter AS subcenter, count(*) OVER (PARTITION BY n.nearest_subcenter) AS samples, n.nearest_angle_deg AS angle_deg,
        n.nearest_subcenter = n.dominant_subcenter AS is_dominant, r.shard, r.source_uri, r.crop_offset, r.crop_size
    FROM read_parquet($noise) n JOIN read_parquet($raw) r ON r.identity = n.identity AND r.source_uri = n.source_uri
    WHERE n.identity = $identity AND n.nearest_subcenter IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY n.nearest_subcenter ORDER BY n.nearest_angle_deg, n.source_uri) <= $faces
    ORDER BY samples DESC, subcenter, n.nearest_angle_deg, n.source_uri
"""


def _subcenters(
    db: duckdb.DuckDBPyConnection, run: RunLayout, number: int, identity: str | None, faces: int
) -> tuple[str, list[dict[str, Any]]]:
    """(the identity shown, rows of the faces nearest to each of its sub-centers, the largest sub-center first)."""
    noise = every(run.round(number).noise, "raw-*.parquet")
    found = fetch(db, _SHOWN_SQL, {"noise": noise, "identity": identity}).to_pylist()
    if not found:
        raise BadInput(
            f"No sample of {identity!r} was judged. `purify report {run.root} noisiest` lists identities."
            if identity
            else "No sample was judged."
        )
    shown = found[0]["identity"]
    given = {"noise": noise, "raw": every(run.raw, "raw-*.parquet"), "identity": shown, "faces": faces}
    return shown, fetch(db, _SHEET_SQL, given).to_pylist()


def _contact_sheet(run: Path, rows: list[dict[str, Any]]) -> "Figure":
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["subcenter"] for row in rows))
    columns = max(sum(row["subcenter"] == kind for row in rows) for kind in kinds)
    figure = Figure(figsize=(_PAGE_INCHES, _PAGE_INCHES / max(columns, 4) * len(kinds) * 1.28))
    grid = figure.subplots(len(kinds), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    with Crops(run) as crops:
        for kind, line in zip(kinds, grid, strict=True):
            mine = [row for row in rows if row["subcenter"] == kind]
            for row, axes in zip(mine, line, strict=False):
                axes.imshow(decode_crop(crops.read(row), 112), interpolation="none")
                axes.text(0.5, -0.04, f"{row['angle_deg']:.0f}°", transform=axes.transAxes, ha="center", va="top", fontsize=6)
            name = f"sub-center {kind}, {mine[0]['samples']} samples" + (" (dominant)" if mine[0]["is_dominant"] else "")
            line[0].text(0, 1.05, name, transform=line[0].transAxes, fontsize=7)
    figure.subplots_adjust(wspace=0.06, hspace=0.34)
    return figure
