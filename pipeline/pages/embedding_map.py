"""A map of chosen identities: every sample a small face, near to those whose embeddings are near (t-SNE). Needs the extra `figures` (scikit-learn).

One HTML file and one sheet of faces; no script. What is far apart on a map may be near in truth, and sizes of groups say nothing: it is a
picture to find cases by, not evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import simplejpeg

from pipeline.duck import every, fetch
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.pages.people import Crops, ranked
from pipeline.pages.text import page
from pipeline.receipts import atomic
from pipeline.run_folder import require_whole
from pipeline.shards import decode_crop

MOST = 3_000
"""Faces on a map; of more, evenly chosen ones are drawn, so many of each identity as its share."""
COLOURS = 12
TILE_PX = 48
_COLUMNS, _SIDE, _FACE = 50, 1000, 26


@dataclass(frozen=True)
class Mapped:
    """What was drawn."""

    page: Path
    faces: int
    identities: int


def draw_map(run: Path, out: Path, *, identities: Sequence[str] = (), most: int = 12, seed: int = 0, title: str = "A run") -> Mapped:
    """Draw `out`/index.html and faces.jpg: the samples of `identities`, or of the `most` noisiest, by their embeddings of the last round.

    Raises BadInput: without scikit-learn, without embeddings, for a name that the run does not have, and for fewer than four samples.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise BadInput("A map needs scikit-learn: pip install 'arcface-purify[figures]'.") from error
    numbers = RunLayout(run).round_numbers
    layout = RunLayout(run)
    require_whole(layout)
    if not numbers or not any(layout.round(numbers[-1]).embeddings.glob("raw-*.parquet")) or not any(layout.manifest.glob("*.parquet")):
        raise BadInput(f"{run} has no embeddings, or no manifest yet. Run `purify run CRAWL {run}` first.")
    names = list(dict.fromkeys(identities)) or ranked(run)["identity"].slice(0, most).to_pylist()
    rows = _rows(RunLayout(run), numbers[-1], names)
    if unknown := set(names) - {row["identity"] for row in rows}:
        raise BadInput(f"{len(unknown)} of {len(names)} names have no sample in this run; the first is {sorted(unknown)[0][:80]!r}.")
    if len(rows) < 4:
        raise BadInput(f"A map wants at least four samples; these identities have {len(rows)}.")
    vectors_ND = np.asarray([row.pop("embedding") for row in rows], np.float32)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    spread_N2 = TSNE(perplexity=perplexity, metric="cosine", init="pca", learning_rate="auto", random_state=seed, n_jobs=1).fit_transform(
        vectors_ND
    )
    low_2, high_2 = spread_N2.min(axis=0), spread_N2.max(axis=0)
    at_N2 = (spread_N2 - low_2) / np.maximum(high_2 - low_2, 1e-9) * (_SIDE - 2 * _FACE) + _FACE / 2
    place = {name: number for number, name in enumerate(names)}
    faces = [
        row | {"x": round(float(x), 1), "y": round(float(y), 1), "colour": place[row["identity"]] % COLOURS, "tile_x": number % _COLUMNS * TILE_PX,
               "tile_y": number // _COLUMNS * TILE_PX}
        for number, (row, (x, y)) in enumerate(zip(rows, at_N2.tolist(), strict=True))
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    height = _write_faces(run, rows, out / "faces.jpg")
    counts = [
        {"name": name, "colour": number % COLOURS, "samples": sum(row["identity"] == name for row in rows)}
        for name, number in place.items()
    ]
    html = page(
        "map.html.jinja", style=("base.css", "map.css"), script=(), title=title, faces=faces, identities=counts, side=_SIDE, face=_FACE, tile=TILE_PX,
        sheet_width=_COLUMNS * TILE_PX, sheet_height=height, round=numbers[-1], perplexity=perplexity,
    )  # fmt: skip
    with atomic(out / "index.html") as temporary:
        temporary.write_text(html, "utf-8")
    return Mapped(out / "index.html", len(rows), len(names))


_ROWS_SQL = """
    WITH mine AS (
        SELECT e.identity, e.source_uri, e.embedding, m.verdict, m.clean_identity, nullif(m.angle_deg, 'NaN') AS angle_deg, m.shard, r.crop_offset, r.crop_size,
            row_number() OVER (PARTITION BY e.identity ORDER BY md5(e.source_uri), e.source_uri) / count(*) OVER (PARTITION BY e.identity) AS share
        FROM read_parquet($embeddings) e
        JOIN read_parquet($manifest) m ON m.identity = e.identity AND m.source_uri = e.source_uri
        JOIN read_parquet($raw) r ON r.identity = e.identity AND r.source_uri = e.source_uri
        WHERE m.status = 'ok' AND e.identity IN (SELECT unnest($names)))
    SELECT * EXCLUDE (share) FROM (FROM mine ORDER BY share, identity, source_uri LIMIT $most) ORDER BY identity, source_uri
"""


def _rows(run: RunLayout, number: int, names: list[str]) -> list[dict[str, Any]]:
    files = {
        "embeddings": every(run.round(number).embeddings, "raw-*.parquet"),
        "manifest": every(run.manifest, "part-*.parquet"),
        "raw": every(run.raw, "raw-*.parquet"),
    }
    with duckdb.connect() as db:
        rows: list[dict[str, Any]] = fetch(db, _ROWS_SQL, files | {"names": names, "most": MOST}).to_pylist()
    return rows


def _write_faces(run: Path, rows: list[dict[str, Any]], path: Path) -> int:
    """The sheet of small faces; its height in pixels."""
    lines = -(-len(rows) // _COLUMNS)
    pixels = np.zeros((lines * TILE_PX, _COLUMNS * TILE_PX, 3), np.uint8)
    with Crops(run) as crops:
        for number, row in enumerate(rows):
            small = cv2.resize(decode_crop(crops.read(row), 112), (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
            top, left = number // _COLUMNS * TILE_PX, number % _COLUMNS * TILE_PX
            pixels[top : top + TILE_PX, left : left + TILE_PX] = small
    with atomic(path) as temporary:
        temporary.write_bytes(simplejpeg.encode_jpeg(pixels, quality=85, colorspace="RGB", colorsubsampling="420"))
    return lines * TILE_PX
