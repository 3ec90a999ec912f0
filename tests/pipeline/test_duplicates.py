"""Near duplicates by perceptual hash: the best first, no chains, inside an identity only; and a crawl of garbage stops."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import shards, tables
from pipeline.config import Config, IngestConfig
from pipeline.duck import every, spilling
from pipeline.duplicates import mark_duplicates
from pipeline.errors import BadCrawl
from pipeline.ingest import ingest
from pipeline.measures import distance_bits


def photo(seed: int, size: int = 112, quality: int = 90) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC).resize((size, size)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_one_photo_in_many_copies_is_one_set_named_after_the_largest(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    files = {f"A/{size}-{quality}.jpg": photo(1, size, quality) for size, quality in ((112, 90), (112, 60), (224, 80), (64, 95))}
    files |= {"A/other.jpg": photo(2), "B/112.jpg": photo(1, 112, 85), "B/other.jpg": photo(3)}
    for name, content in files.items():
        (crawl / name).parent.mkdir(parents=True, exist_ok=True)
        (crawl / name).write_bytes(content)
    ingest(crawl, tmp_path / "raw", Config(workers=1, ingest=IngestConfig(samples_per_shard=3)))
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "raw").glob("raw-*.parquet"))]).to_pylist()
    best = next(row["sample_id"] for row in rows if row["source_uri"] == "A/224-80.jpg")
    sets = {row["source_uri"]: row["near_duplicate_set"] for row in rows}
    assert sets == {name: (best if name.startswith("A") and "other" not in name else None) for name in files}
    assert {row["status"] for row in rows} == {"ok"}, "alike is told, not dropped"


def test_what_is_more_than_the_memory_goes_to_the_folder_and_leaves_it(tmp_path: Path) -> None:
    with spilling(tmp_path / "spill") as db:
        db.execute("CREATE TABLE texts AS SELECT md5(i::VARCHAR) AS text FROM range(3_000_000) numbers(i)")
        assert db.execute("SELECT count(DISTINCT text) FROM texts").fetchall() == [(3_000_000,)]
        used = dict(db.execute("SELECT 'memory', sum(memory_usage_bytes) FROM duckdb_memory()").fetchall())["memory"]
        spilled = sum(path.stat().st_size for path in (tmp_path / "spill").iterdir())
        assert used <= 128_000_000 and spilled > 10_000_000, (used, spilled)
    assert not (tmp_path / "spill").exists() or not any((tmp_path / "spill").iterdir())


Sample = tuple[str, int, int]
"""(identity, hash, side)"""


def marked(samples: list[Sample], bits: int, folder: Path) -> list[str | None]:
    import duckdb

    rows: list[dict[str, Any]] = [
        {"sample_id": f"{n:032x}", "identity": who, "source_uri": f"{n:04d}", "shard": f"raw-{n % 2:06d}", "status": "ok", "sharpness": 1.0,
         "content_sha256": f"{n:064x}", "width_px": side, "height_px": side, "perceptual_hash": f"{look:016x}", "crop_offset": n, "is_gone": False}
        for n, (who, look, side) in enumerate(samples)
    ]  # fmt: skip
    facts = {"num_samples": "0", "tar_bytes": "0", "tar_sha256": "0"}
    for number in (0, 1):
        shards.write_twin(folder / f"raw-{number:06d}.parquet", shards.table_of(rows[number::2], tables.ITEMS), facts)
    with duckdb.connect() as db:
        db.read_parquet(every(folder, "raw-*.parquet")).create_view("items")
        mark_duplicates(db, folder, bits)
    found = pa.concat_tables([pq.read_table(folder / f"raw-{number:06d}.parquet") for number in (0, 1)]).to_pylist()
    return [row["near_duplicate_set"] for row in sorted(found, key=lambda row: str(row["source_uri"]))]


def reference(samples: list[Sample], bits: int) -> list[str | None]:
    """All pairs, best first."""
    head: dict[int, int] = {}
    order = sorted(range(len(samples)), key=lambda n: (-(samples[n][2] ** 2), n))
    for n in order:
        if n in head:
            continue
        head[n] = n
        for other in order:
            same = samples[n][0] == samples[other][0]
            if other not in head and same and distance_bits(f"{samples[n][1]:x}", f"{samples[other][1]:x}") <= bits:
                head[other] = n
    sizes = [list(head.values()).count(head[n]) for n in range(len(samples))]
    return [f"{head[n]:032x}" if size > 1 else None for n, size in enumerate(sizes)]


@given(
    samples=st.lists(
        st.tuples(
            st.sampled_from(["A", "B"]),
            st.lists(st.integers(0, 63), max_size=5).map(lambda on: sum({1 << bit for bit in on})),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=14,
    ),
    bits=st.integers(0, 8),
)
def test_bands_find_what_all_pairs_find(samples: list[Sample], bits: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert marked(samples, bits, tmp_path_factory.mktemp("near")) == reference(samples, bits)


def test_a_chain_is_not_one_set(tmp_path: Path) -> None:
    chain = [("A", 0, 9), ("A", 0b111, 5), ("A", 0b111111, 4)]
    assert marked(chain, 3, tmp_path) == [f"{0:032x}", f"{0:032x}", None]


def test_a_crawl_of_garbage_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    for n in range(10):
        (crawl / f"P{n % 2}").mkdir(parents=True, exist_ok=True)
        (crawl / f"P{n % 2}" / f"{n}.jpg").write_bytes(photo(n) if n < 4 else b"<html>404</html>" + bytes([n]))
    with pytest.raises(BadCrawl, match=r"60% of the items .* are no sample, 50% are allowed.*6 unsupported_format.*--max-bad-items"):
        ingest(crawl, tmp_path / "raw", Config(workers=1, ingest=IngestConfig(max_bad_items=0.5)))
    assert ingest(crawl, tmp_path / "raw", Config(workers=1, ingest=IngestConfig(max_bad_items=0.6))).counts["ok"] == 4
