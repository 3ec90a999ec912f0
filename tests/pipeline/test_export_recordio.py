"""train.rec against the specification: taken apart here by its words, without our reader, and read as insightface's own loader reads it."""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline import recordio
from pipeline.config import IngestConfig
from pipeline.errors import BadInput
from pipeline.exporters import recordio as exporter
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.sources import SOURCES
from tests.pipeline.clean_run import write_clean

MAGIC = bytes([0x0A, 0x23, 0xD7, 0xCE])


def pictures() -> list[tuple[str, bytes]]:
    """Samples of four people by turns; among them pictures of every length modulo 4, and with the magic at every kind of place."""
    random = np.random.default_rng(3)
    names = ["Bob", "Ada", "Zoë", "Cleo"]
    found = [(names[number % 4], random.bytes(40 + number)) for number in range(40)]
    at = {
        3: MAGIC,
        8: b"ab" + MAGIC + b"cd",
        9: MAGIC * 3,
        14: b"abcd" + MAGIC,
        21: b"abcd" * 9 + MAGIC + b"x",
        22: MAGIC[:3],
        30: b"x" * 7 + MAGIC,
    }
    for number, content in at.items():
        found[number] = (found[number][0], content)
    return found


@dataclass
class Words:
    """A record file taken apart by the specification alone: magic, (flag << 29 | length), content, zeros up to a multiple of 4."""

    content: bytes
    records: dict[int, bytes] = field(default_factory=dict)
    """Offset -> content, its parts joined by the magic that was left out."""

    def __post_init__(self) -> None:
        position, begin, parts = 0, 0, list[bytes]()
        while position < len(self.content):
            assert self.content[position : position + 4] == MAGIC
            (word,) = struct.unpack_from("<I", self.content, position + 4)
            flag, length = word >> 29, word & (1 << 29) - 1
            part = self.content[position + 8 : position + 8 + length]
            assert len(part) == length and all(part[at : at + 4] != MAGIC for at in range(0, length, 4)), "the magic within a part"
            padding = self.content[position + 8 + length : position + 8 + length + -length % 4]
            assert padding == bytes(-length % 4) and (flag in {0, 3} or not padding)
            assert flag in ({0, 1} if not parts else {2, 3})
            begin = begin if parts else position
            parts.append(part)
            position += 8 + length + len(padding)
            if flag in {0, 3}:
                self.records[begin] = MAGIC.join(parts)
                parts = []
        assert not parts


class MXFaceDataset:
    """insightface's loader, after its source: record 0 says which keys are pictures, or that all are; a label is one number, or the first of several."""

    def __init__(self, root: Path) -> None:
        self.offsets = dict(tuple(map(int, line.split("\t"))) for line in (root / "train.idx").read_text().splitlines())
        self.records = Words((root / "train.rec").read_bytes()).records
        flag, labels, _ = self.unpack(0)
        self.header0 = [int(label) for label in labels] if flag > 0 else None
        self.keys = list(range(1, int(labels[0]))) if flag > 0 else list(self.offsets)

    def unpack(self, key: int) -> tuple[int, tuple[float, ...], bytes]:
        record = self.records[self.offsets[key]]
        flag, label, identifier, identifier2 = struct.unpack("<IfQQ", record[:24])
        assert (identifier, identifier2) == (key, 0)
        if flag:
            return flag, struct.unpack(f"<{flag}f", record[24 : 24 + 4 * flag]), record[24 + 4 * flag :]
        return flag, (label,), record[24:]

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        _, labels, picture = self.unpack(self.keys[index])
        return int(labels[0]), picture


def exported(tmp_path: Path, samples: list[tuple[str, bytes]], **changed: float) -> Path:
    clean = write_clean(tmp_path / "clean", samples)
    export_to(clean, tmp_path / "out", Wanted(form="recordio", **changed), workers=1)  # type: ignore[arg-type]
    return tmp_path / "out"


@pytest.mark.parametrize("part_bytes", [1, 700, 10**9])
def test_the_file_is_what_the_specification_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    monkeypatch.setattr(exporter, "PART_BYTES", part_bytes)
    samples = pictures()
    out = exported(tmp_path, samples)
    found = MXFaceDataset(out)
    names = sorted({name for name, _ in samples})
    wanted = [(names.index(name), content) for name in names for one, content in samples if one == name]
    assert [found[index] for index in range(len(found.keys))] == wanted
    # record 0: the first key behind the pictures, and the first behind the identities; of each identity the range of its keys
    assert found.header0 == [41, 45] and found.unpack(0)[2] == b""
    ranges = [found.unpack(key) for key in range(41, 45)]
    assert ranges == [(2, (1.0 + 10 * number, 11.0 + 10 * number), b"") for number in range(4)]
    for number, (_, (start, end), _) in enumerate(ranges):
        assert {found.unpack(key)[1] for key in range(int(start), int(end))} == {(float(number),)}
    assert sorted(found.offsets.values()) == sorted(found.records), "an offset that is no record's, or a record without an offset"
    assert list(found.offsets) == list(range(45)) and list(found.offsets.values()) == sorted(found.offsets.values())
    assert (out / "property").read_text() == "4,112,112\n"
    listed = [line.split("\t") for line in (out / "train.lst").read_text().splitlines()]
    assert [(int(key), float(label)) for key, label, _ in listed] == [(key, float(label)) for key, (label, _) in enumerate(wanted, 1)]
    assert [samples[int(name.removesuffix(".jpg"), 16)] for *_, name in listed] == [(names[label], content) for label, content in wanted]


def test_the_first_bytes_are_these(tmp_path: Path) -> None:
    out = exported(tmp_path, [("Ada", b"\xff\xd8abc"), ("Bob", b"\xff\xd8")])
    assert (out / "train.rec").read_bytes() == b"".join(
        [
            bytes.fromhex("0a23d7ce 20000000 02000000 00000000 0000000000000000 0000000000000000"),
            struct.pack("<2f", 3.0, 5.0),
            bytes.fromhex("0a23d7ce 1d000000 00000000 00000000 0100000000000000 0000000000000000") + b"\xff\xd8abc\0\0\0",
            bytes.fromhex("0a23d7ce 1a000000 00000000 0000803f 0200000000000000 0000000000000000") + b"\xff\xd8\0\0",
            bytes.fromhex("0a23d7ce 20000000 02000000 00000000 0300000000000000 0000000000000000"),
            struct.pack("<2f", 1.0, 2.0),
            bytes.fromhex("0a23d7ce 20000000 02000000 00000000 0400000000000000 0000000000000000"),
            struct.pack("<2f", 2.0, 3.0),
        ]
    )
    assert (out / "train.idx").read_text() == "0\t0\n1\t40\n2\t80\n3\t116\n4\t156\n"
    assert (out / "train.lst").read_text() == f"1\t0.000000\t{0:032x}.jpg\n2\t1.000000\t{1:032x}.jpg\n"


def test_more_keys_than_float32_tells_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.isclose(np.float32(exporter.EXACT), exporter.EXACT) and int(np.float32(exporter.EXACT + 1)) == exporter.EXACT
    samples = pictures()
    monkeypatch.setattr(exporter, "EXACT", 45)
    assert MXFaceDataset(exported(tmp_path / "few", samples)).header0 == [41, 45]
    monkeypatch.setattr(exporter, "EXACT", 44)
    found = MXFaceDataset(exported(tmp_path / "many", samples))
    assert found.header0 is None and found.keys == list(range(40)) and len(found.records) == 40
    assert sorted(found[index] for index in range(40)) == sorted(
        (sorted({n for n, _ in samples}).index(name), content) for name, content in samples
    )
    monkeypatch.setattr(exporter, "EXACT", 3)
    with pytest.raises(BadInput, match="tells 3 identities apart"):
        exported(tmp_path / "too many", samples)


def test_val_is_a_root_of_its_own(tmp_path: Path) -> None:
    samples = pictures()
    out = exported(tmp_path, samples, val=0.75)
    train, val = MXFaceDataset(out), MXFaceDataset(out / "val")
    found = [dataset[index][1] for dataset in (train, val) for index in range(len(dataset.keys))]
    assert sorted(found) == sorted(content for _, content in samples)
    assert all({dataset[index][0] for index in range(len(dataset.keys))} == set(range(int(name.split(",")[0])))
               for dataset, name in ((train, (out / "property").read_text()), (val, (out / "val" / "property").read_text())))  # fmt: skip


def test_our_own_source_reads_it_back(tmp_path: Path) -> None:
    samples = pictures()
    out = exported(tmp_path, samples)
    (tmp_path / "plan").mkdir()
    source, settings = SOURCES["recordio"], IngestConfig()
    listing = source.list_slices(str(out), tmp_path / "plan", settings)
    items = [item for number in range(listing.slices) for item in source.read_slice(str(out), tmp_path / "plan", number, settings)]
    names = sorted({name for name, _ in samples})
    assert sorted((item.identity, item.content) for item in items) == sorted((str(names.index(name)), content) for name, content in samples)
    assert not [item for item in items if item.problem]


def test_framing_is_undone_by_the_reader() -> None:
    for content in [b"", MAGIC, b"a", MAGIC * 2, b"abc" + MAGIC, *(content for _, content in pictures())]:
        framed = recordio.framed(content)
        assert list(Words(framed).records.values()) == [content]
        assert len(framed) == 8 + -(-len(content) // 4) * 4 + 4 * recordio.count_magics(content)
