"""What exporters write with: each gives the bytes of the plain way, however much comes at a time."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import hashed
from pipeline.exporters import parquet, recordio
from pipeline.exporters.base import FACTS
from pipeline.hashed import HashedFile
from pipeline.shards import ShardWriter, json_bytes, json_rows

TEXTS = (
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(['"', "\\", "%s", "\x00\x1f", "é\u2028"])
)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=5))
def test_rows_as_json_are_those_of_the_encoder(rows: list[tuple[str | None, ...]]) -> None:
    names = ("b%d", "a", 'c"')
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    assert list(json_rows(columns)) == [json_bytes(dict(zip(names, row, strict=True))) for row in rows]


def test_a_file_is_hashed_as_it_is_written_and_the_disk_is_asked_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    begin = hashed.begin_writing
    monkeypatch.setattr(hashed, "_PIECE", 1000)
    monkeypatch.setattr(hashed, "begin_writing", lambda number, start, end: (asked.append((start, end)), begin(number, start, end)))
    contents = [bytes([number]) * size for number, size in enumerate((400, 700, 0, 1, 2500))]
    with HashedFile(tmp_path / "file") as file:
        for content in contents:
            assert file.write(content) == len(content)
    whole = b"".join(contents)
    assert (tmp_path / "file").read_bytes() == whole
    assert (file.sha256, file.tell()) == (hashlib.sha256(whole).hexdigest(), len(whole))
    assert asked == [(0, 1100), (1100, 3601)]


def test_what_was_flushed_may_change(tmp_path: Path) -> None:
    crop = bytearray(b"first")
    with ShardWriter(tmp_path / "x.tar") as shard:
        places = [shard.add("0" * 32, {"jpg": memoryview(crop)})["jpg"]]
        shard.flush()
        crop[:] = b"other"
        places.append(shard.add("1" * 32, {"jpg": memoryview(crop)})["jpg"])
    written = (tmp_path / "x.tar").read_bytes()
    assert [written[place : place + 5] for place in places] == [b"first", b"other"]
    assert (len(written), hashlib.sha256(written).hexdigest()) == (int(shard.sidecar["tar_bytes"]), shard.sidecar["tar_sha256"])


@pytest.mark.parametrize("at_a_time", [1, 4, 7, 100])
def test_row_groups_do_not_depend_on_how_samples_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(parquet, "_GROUP", 10)
    random = np.random.default_rng(3)
    crops = [random.bytes(int(size)) for size in random.integers(0, 300, 34)]
    told = [{"identity": f"P{n % 3}", "crawled_identity": f"P{n % 4}", "class_index": n % 3, "source_uri": f"{n}.jpg"} for n in range(34)]
    rows = pa.Table.from_pylist([{"sample_id": f"{n:032x}", **one} for n, one in enumerate(told)], schema=FACTS)
    whole, pieces = (
        parquet.ParquetPart(tmp_path / "data" / name, name, parquet.SCHEMA, "jpg", parquet._laid_out) for name in ("whole", "pieces")
    )
    whole.add(rows, [memoryview(crop) for crop in crops])
    for first in range(0, 34, at_a_time):
        views = [bytearray(crop) for crop in crops[first : first + at_a_time]]
        pieces.add(rows.slice(first, at_a_time), [memoryview(view) for view in views])
        for view in views:
            view[:] = bytes(len(view))  # as the next block does
    facts = whole.close()[0], pieces.close()[0]
    assert facts[0].sha256 == facts[1].sha256 and facts[0].samples == 34
    read = pq.ParquetFile(tmp_path / "data" / "pieces")
    assert [read.metadata.row_group(number).num_rows for number in range(read.num_row_groups)] == [10, 10, 10, 4]
    assert read.read()["jpg"].to_pylist() == crops


def test_pieces_are_written_whole_though_the_system_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_less(number: int, pieces: list[Any]) -> int:
        return os.write(number, b"".join(pieces)[:5])

    monkeypatch.setattr(recordio, "_PER_CALL", 3)
    monkeypatch.setattr(os, "writev", takes_less)
    pieces = [b"abc", memoryview(b"defg"), b"", b"h" * 20, b"i"]
    with (tmp_path / "file").open("wb", buffering=0) as file:
        recordio._write_all(file, pieces)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
