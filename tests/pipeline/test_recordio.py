"""RecordIO: records of several parts, damage, labels, indexes."""

import io
import itertools
import struct
from pathlib import Path

import pytest

from pipeline import recordio
from pipeline.config import IngestConfig
from pipeline.recordio import MAGIC
from tests.pipeline.crawl_forms import (
    image_record,
    items_of,
    people,
    picture,
    rec_bytes,
    record,
    status_of,
    write,
)


def read_all(content: bytes, limit: int = 10**6) -> list[recordio.Record]:
    return list(recordio.read(io.BytesIO(content), 0, len(content), len(content), limit=limit))


def test_records_of_several_parts_come_back_whole() -> None:
    contents = [
        b"",
        b"a",
        b"abcd",
        MAGIC,
        MAGIC * 3,
        b"abcd" + MAGIC,
        b"abc" + MAGIC + b"x",
        b"abcd" + MAGIC + b"efgh" + MAGIC + MAGIC + b"i",
        b"x" * 5000,
    ]
    stream = b"".join(map(record, contents))
    assert [one.content for one in read_all(stream)] == contents
    assert list(recordio.starts(io.BytesIO(stream), len(stream))) == [one.start for one in read_all(stream)]


@pytest.mark.parametrize("kind", ["magic", "longer", "shorter", "much longer", "flag", "zeros"])
def test_a_damaged_record_costs_itself_and_says_so(kind: str) -> None:
    contents = [bytes([n]) * (400 + 4 * n) for n in range(10)]
    records = [record(one) for one in contents]
    for place in (0, 4, 9):
        hurt = bytearray(b"".join(records))
        at = sum(map(len, records[:place]))
        length = len(contents[place])
        wrong = {"longer": length + 100, "shorter": length - 100, "much longer": 2**29 - 1, "flag": length | 5 << 29}
        if kind == "magic":
            hurt[at] ^= 1
        elif kind == "zeros":
            hurt[at : at + 200] = bytes(200)
        else:
            hurt[at + 4 : at + 8] = struct.pack("<I", wrong[kind])
        found = read_all(bytes(hurt))
        whole = [one.content for one in found if one.problem is None]
        others = contents[:place] + contents[place + 1 :]
        assert [one for one in whole if one in others] == others, (kind, place)
        assert len([one for one in found if one.problem]) == 1, (kind, place)
        assert found[0].start == 0 and all(one.end == two.start for one, two in itertools.pairwise(found)), "no byte is left out"


def test_a_record_file_cut_anywhere_gives_what_is_whole() -> None:
    contents = [bytes([n + 1]) * (50 + n) for n in range(6)]
    stream = b"".join(map(record, contents))
    for cut in range(1, len(stream)):
        found = read_all(stream[:cut])
        whole = [one.content for one in found if one.problem is None]
        assert whole == contents[: len(whole)]
        ends = [sum(len(record(one)) for one in contents[: n + 1]) for n in range(len(contents))]
        assert len(whole) == sum(end <= cut for end in ends)
        assert sum(one.problem is not None for one in found) == (cut not in ends)


def test_records_may_be_larger_than_allowed() -> None:
    stream = record(b"x" * 5000) + record(b"abcd" + MAGIC + b"y" * 5000) + record(b"z")
    assert [(one.too_large, one.content) for one in read_all(stream, limit=100)] == [(True, b""), (True, b""), (False, b"z")]


def test_labels_of_records(tmp_path: Path) -> None:
    labels: list[float | tuple[float, ...]] = [3.0, (4.0, 0.0), (5.0,), 1.5, float("nan"), 2.0**25]
    stream = b"".join(record(image_record(label, n, picture(n))) for n, label in enumerate(labels))
    stream += record(b"short") + record(struct.pack("<IfQQ", 2**31, 0, 0, 0)) + record(image_record(6.0, 9, b""))
    items = items_of(write(tmp_path / "crawl", {"train.rec": stream}), tmp_path / "plan", IngestConfig())
    assert [(item.identity, item.problem[0] if item.problem else "ok") for item in items] == [
        *[("3", "ok"), ("4", "ok"), ("5", "ok"), ("", "bad_identity"), ("", "bad_identity"), ("33554432", "bad_identity")],
        *[("", "unreadable"), ("", "unreadable"), ("6", "ok")],
    ]
    assert items[-1].content == b"", "a picture of no bytes is an item; ingest calls it empty"


def test_an_index_is_a_help_and_no_authority(tmp_path: Path) -> None:
    stream, index = rec_bytes(people(each=8))
    lines = index.decode().splitlines()
    whole = status_of(items_of(write(tmp_path / "whole", {"train.rec": stream, "train.idx": index}), tmp_path / "plan"))
    for number, wrong in enumerate(
        ["\n".join(lines[::7]), "\n".join(f"{n}\t{n * 123 * 4}" for n in range(99)), "no index", "1\t-5\n2\t99999999999999999999"]
    ):
        crawl = write(tmp_path / str(number), {"train.rec": stream, "train.idx": wrong.encode()})
        assert status_of(items_of(crawl, tmp_path / f"plan{number}")) == whole, wrong[:20]
