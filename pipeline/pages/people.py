"""Identities as data for pages: the list of all of them, and for those with a page of their own, their faces.

Everything is in parts, so that ten identities or a hundred thousand make no difference to who opens the page, and little to memory here:
`data/list-00000.js` names 5,000 identities; `data/people-00000.js` describes 16, and each of these has one sheet of faces. A part that is
there is whole, so a stage that was killed goes on behind it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import simplejpeg

from pipeline import tables
from pipeline.duck import every, fetch
from pipeline.errors import BadShard
from pipeline.layout import RunLayout
from pipeline.pages.text import data_script, reason_in_words, shortened
from pipeline.receipts import atomic
from pipeline.shards import CropReader, decode_crop
from pipeline.visible import visible

LIST_ROWS = 5_000
BLOCK = 16
"""Identities described by one script of data."""
WAVE = 256
"""Identities asked for by one query: what a process holds at a time."""
TILE_PX = 112
_COLUMNS = 16
_QUALITY = 80
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Inversion:
    """A face that the network imagined for an identity, as a page shows it: the file that holds it, of what it is, and its angle to that in degrees."""

    file: str
    about: str
    angle_deg: float


@dataclass(frozen=True)
class Wave:
    """Identities whose pages are made in one go. `first` is the place of the first among all, a multiple of `BLOCK`."""

    run: Path
    out: Path
    first: int
    names: tuple[str, ...]
    faces: int
    imagined: Mapping[str, Sequence[Inversion]]


def ranked(run: Path) -> pa.Table:
    """Every identity that has a sample, with its counts by verdict: most samples dropped or to relabel first, then most to review, most samples, by name."""
    with duckdb.connect() as db:
        return fetch(db, _RANKED_SQL.format(verdict="verdict"), {"manifest": every(RunLayout(run).manifest, "part-*.parquet")})


def ranked_by_rule(run: Path) -> pa.Table:
    """As `ranked`, by the rule's verdicts where people decided otherwise."""
    said = "coalesce(rule_verdict, verdict)"
    with duckdb.connect() as db:
        return fetch(db, _RANKED_SQL.format(verdict=said), {"manifest": every(RunLayout(run).manifest, "part-*.parquet")})


def write_list(people: pa.Table, out: Path) -> list[str]:
    """Names of the scripts that list all identities, written to `out`/data, in order."""
    names = []
    for first in range(0, people.num_rows, LIST_ROWS):
        part = people.slice(first, LIST_ROWS)
        names.append(f"list-{first // LIST_ROWS:05d}")
        _write_script(out, names[-1], list_facts(part))
    return names


def list_facts(people: pa.Table) -> dict[str, Any]:
    """Columns of the list: names as shown, samples, and counts in the order of `tables.VERDICTS`."""
    counts = [people[verdict].to_pylist() for verdict in tables.VERDICTS]
    return {
        "names": [shortened(name) for name in people["identity"].to_pylist()],
        "samples": people["samples"].to_pylist(),
        "verdicts": counts,
    }


def waves(run: Path, out: Path, names: Sequence[str], faces: int, imagined: Mapping[str, Sequence[Inversion]]) -> list[Wave]:
    """The work of drawing the pages of `names`, without the waves whose last script stands already."""
    made = []
    for first in range(0, len(names), WAVE):
        some = tuple(names[first : first + WAVE])
        if not _script(out, f"people-{(first + len(some) - 1) // BLOCK:05d}").exists():
            made.append(Wave(run, out, first, some, faces, {name: imagined[name] for name in some if name in imagined}))
    return made


def write_wave(wave: Wave) -> int:
    """Faces shown, after the sheets and scripts of a wave are written. Raises BadShard for a crop that is not where its row says."""
    found = _Found(wave)
    shown = 0
    with Crops(wave.run) as crops:
        for start in range(0, len(wave.names), BLOCK):
            described = []
            for number, name in enumerate(wave.names[start : start + BLOCK], wave.first + start):
                facts, tiles = found.describe(name, wave.imagined.get(name, ()))
                if tiles:
                    facts["sheet"] = f"sheets/{number // BLOCK:05d}/{number:06d}.jpg"
                    _write_sheet(wave.out / facts["sheet"], [crops.read(row) for row in tiles])
                facts["number"] = number
                shown += len(facts["faces"])
                described.append(facts)
            _write_script(wave.out, f"people-{(wave.first + start) // BLOCK:05d}", described)
    return shown


def _script(out: Path, name: str) -> Path:
    return out / "data" / f"{name}.js"


def _write_script(out: Path, name: str, value: Any) -> None:
    path = _script(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_bytes(data_script(name, value))


def _write_sheet(path: Path, crops: list[bytes]) -> None:
    """One JPEG of the crops, `_COLUMNS` in a row."""
    rows, columns = -(-len(crops) // _COLUMNS), min(_COLUMNS, len(crops))
    pixels = np.zeros((rows * TILE_PX, columns * TILE_PX, 3), np.uint8)
    for place, content in enumerate(crops):
        top, left = place // _COLUMNS * TILE_PX, place % _COLUMNS * TILE_PX
        pixels[top : top + TILE_PX, left : left + TILE_PX] = decode_crop(content, TILE_PX)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_bytes(simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorspace="RGB", colorsubsampling="420"))


_RANKED_SQL = """
    SELECT identity, count(*) AS samples, count(*) FILTER ({verdict} = 'keep') AS keep, count(*) FILTER ({verdict} = 'drop') AS "drop",
        count(*) FILTER ({verdict} = 'relabel') AS relabel, count(*) FILTER ({verdict} = 'review') AS review
    FROM read_parquet($manifest) WHERE status = 'ok'
    GROUP BY identity ORDER BY "drop" + relabel DESC, review DESC, samples DESC, identity
"""
_MINE_SQL = """
    CREATE TEMP TABLE mine AS
    SELECT m.sample_id, m.identity, m.source_uri, m.shard, m.verdict, m.reason, m.other_identity, m.clean_identity, m.noise_probability,
        nullif(m.angle_deg, 'NaN') AS angle_deg, nullif(m.other_angle_deg, 'NaN') AS other_angle_deg,
        coalesce(m.near_duplicate_of, m.near_duplicate_set) AS twin, m.decided_by, r.crop_offset, r.crop_size, {subcenter} AS subcenter
    FROM read_parquet($manifest) m
    JOIN read_parquet($raw) r ON r.identity = m.identity AND r.source_uri = m.source_uri
    {joined}
    WHERE m.status = 'ok' AND m.identity IN (SELECT unnest($names))
"""
_SUBCENTER_SQL = "LEFT JOIN read_parquet($first) f ON f.identity = m.identity AND f.source_uri = m.source_uri"
# Of n samples in order of angle, the first of each of `faces` even steps: the nearest and the farthest are always among them. And what looks
# the same as another sample, with that one, since only side by side they can be judged; and what is proposed for another identity.
_FACES_SQL = """
    WITH paired AS (
        SELECT *, coalesce(twin, CASE WHEN (identity, sample_id) IN (SELECT (identity, twin) FROM mine WHERE twin IS NOT NULL) THEN sample_id END) AS pair
        FROM mine),
    sized AS (SELECT * REPLACE (CASE WHEN count(*) OVER (PARTITION BY identity, pair) > 1 THEN pair END AS pair) FROM paired),
    placed AS (
        SELECT *, row_number() OVER line - 1 AS place, count(*) OVER (PARTITION BY identity, verdict = 'keep') AS n,
            row_number() OVER (PARTITION BY identity, pair IS NULL ORDER BY pair, angle_deg NULLS LAST, source_uri) AS pair_place,
            row_number() OVER (PARTITION BY identity, verdict = 'relabel' ORDER BY other_angle_deg NULLS LAST, source_uri) AS relabel_place
        FROM sized
        WINDOW line AS (PARTITION BY identity, verdict = 'keep' ORDER BY angle_deg NULLS LAST, source_uri)
    )
    SELECT * EXCLUDE (place, n, pair_place, relabel_place) FROM placed
    WHERE n <= $faces OR place = 0 OR place * ($faces - 1) // (n - 1) > (place - 1) * ($faces - 1) // (n - 1)
        OR (pair IS NOT NULL AND pair_place <= $faces) OR (verdict = 'relabel' AND relabel_place <= $faces)
    ORDER BY identity, subcenter, angle_deg NULLS LAST, source_uri
"""
_STRIP_SQL = """
    SELECT identity, verdict, CAST(floor(angle_deg) AS INTEGER) AS degree, count(*) AS samples
    FROM mine WHERE angle_deg IS NOT NULL GROUP BY ALL ORDER BY ALL
"""
_SUBCENTERS_SQL = """
    SELECT identity, subcenter, count(*) AS samples, count(*) FILTER (verdict = 'keep') AS kept
    FROM mine GROUP BY ALL ORDER BY identity, samples DESC, subcenter
"""
_OTHERS_SQL = """
    SELECT m.identity, m.source_uri, m.sample_id, m.shard, r.crop_offset, r.crop_size
    FROM read_parquet($manifest) m JOIN read_parquet($raw) r ON r.identity = m.identity AND r.source_uri = m.source_uri
    WHERE m.status = 'ok' AND m.verdict = 'keep' AND m.identity IN (SELECT unnest($names))
    QUALIFY row_number() OVER (PARTITION BY m.identity ORDER BY coalesce(nullif(m.angle_deg, 'NaN'), 180), m.source_uri) = 1
"""


class _Found:
    """What the tables say of the identities of a wave."""

    def __init__(self, wave: Wave) -> None:
        layout = RunLayout(wave.run)
        first = layout.round(1).noise
        has_first = any(first.glob("raw-*.parquet"))
        given = {"manifest": every(layout.manifest, "part-*.parquet"), "raw": every(layout.raw, "raw-*.parquet")}
        names = {"names": list(wave.names)}
        with duckdb.connect() as db:
            fetched = {"first": every(first, "raw-*.parquet")} if has_first else {}
            text = _MINE_SQL.format(
                subcenter="f.nearest_subcenter" if has_first else "NULL::SMALLINT", joined=_SUBCENTER_SQL if has_first else ""
            )
            db.execute(text, given | names | fetched)
            faces = fetch(db, _FACES_SQL, {"faces": wave.faces}).to_pylist()
            strip = fetch(db, _STRIP_SQL).to_pylist()
            subcenters = fetch(db, _SUBCENTERS_SQL).to_pylist()
            wanted = sorted({whose for row in faces if (whose := _whose(row))})
            others = fetch(db, _OTHERS_SQL, given | {"names": wanted}).to_pylist() if wanted else []
        self._faces, self._strip, self._subcenters = _by_identity(faces), _by_identity(strip), _by_identity(subcenters)
        self._others = {row["identity"]: row for row in others}

    def describe(self, name: str, imagined: Sequence[Inversion]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(what the page of `name` is told, rows of the crops on its sheet in order)."""
        rows = self._faces[name]
        tiles, place_of = list(rows), dict[str, int]()
        for other in sorted({whose for row in rows if (whose := _whose(row))} & self._others.keys()):
            place_of[other] = len(tiles)
            tiles.append(self._others[other])
        strip: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in self._strip[name]:
            strip[row["verdict"]].append((row["degree"], row["samples"]))
        pairs = {pair: number for number, pair in enumerate(dict.fromkeys(row["pair"] for row in rows if row["pair"]), 1)}
        facts = {
            "name": visible(name),
            "faces": [_face(row, place, pairs, place_of) for place, row in enumerate(rows)],
            "subcenters": [[row["subcenter"], row["samples"], row["kept"]] for row in self._subcenters[name]],
            "strip": strip,
            "imagined": [{"file": one.file, "about": one.about, "angle": _tenths(one.angle_deg)} for one in imagined],
        }
        return facts, tiles


def _by_identity(rows: list[dict[str, Any]]) -> defaultdict[str, list[dict[str, Any]]]:
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["identity"]].append(row)
    return grouped


def _face(row: dict[str, Any], place: int, pairs: Mapping[str, int], place_of: Mapping[str, int]) -> dict[str, Any]:
    facts = {
        "tile": place,
        "id": row["sample_id"],
        "verdict": row["verdict"],
        "why": reason_in_words(row["reason"]),
        "angle": _tenths(row["angle_deg"]),
        "subcenter": row["subcenter"],
        "pair": pairs.get(row["pair"]),
        "by": visible(row["decided_by"].removeprefix("person:")) if row["decided_by"].startswith("person:") else None,
    }
    if (whose := _whose(row)) is not None:
        facts |= {
            "other": visible(whose),
            "other_angle": _tenths(row["other_angle_deg"]) if whose == row["other_identity"] else None,
            "other_tile": place_of.get(whose),
            "exported": row["clean_identity"] is not None or None,
        }
    return {name: value for name, value in facts.items() if value is not None}


def _whose(row: Mapping[str, Any]) -> str | None:
    """Of a relabel the identity that it is exported as, or that is proposed for it; else None."""
    return (row["clean_identity"] or row["other_identity"]) if row["verdict"] == "relabel" else None


def _tenths(angle_deg: float | None) -> float | None:
    return None if angle_deg is None else round(angle_deg, 1)


class Crops:
    """Crops of a run by their rows; a tar is opened once, and few at a time."""

    _MOST = 64

    def __init__(self, run: Path) -> None:
        self._raw = RunLayout(run).raw
        self._open: dict[str, CropReader] = {}

    def read(self, row: Mapping[str, Any]) -> bytes:
        shard = row["shard"]
        tar = self._raw / f"{shard}.tar"
        if shard not in self._open:
            if len(self._open) == self._MOST:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = CropReader(tar)
        if row["crop_offset"] is None:
            raise BadShard(f"{tar} holds no crop for {row['source_uri']}. Remove {tar.parent} and run again: it will be made anew.")
        content = self._open[shard].read(row["crop_offset"], row["crop_size"])
        if not content.startswith(_JPEG):
            raise BadShard(f"{tar} has no JPEG at the offset of {row['source_uri']}. Remove {tar.parent} and run again.")
        return content

    def __enter__(self) -> "Crops":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._open.values():
            reader.close()
