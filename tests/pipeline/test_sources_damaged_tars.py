"""Damage and hostile names in tars: what is whole is read, what is not is a row, nothing is run, followed or written."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from pipeline.sources.base import uri_text
from pipeline.tars import Member, read_members
from tests.pipeline.crawl_forms import (
    items_of,
    people,
    picture,
    status_of,
    tar_bytes,
    webdataset,
    write,
)

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def members_of(content: bytes, limit: int = 10**6) -> tuple[dict[str, bytes | None], list[str]]:
    found = list(read_members(io.BytesIO(content), limit=lambda _: limit))
    return {one.name: one.content for one in found if isinstance(one, Member)}, [one for one in found if isinstance(one, str)]


@pytest.mark.parametrize("form", FORMATS)
def test_tars_are_read_as_tarfile_reads_them(form: int) -> None:
    members = [("a/b.jpg", b"x" * 1500), ("empty", b""), ("Zoë.json", b"{}"), ("block", b"y" * 512)]
    if form != tarfile.USTAR_FORMAT:
        members.append(("long/" * 60 + "name.jpg", b"z"))
    content = tar_bytes(members, form=form)
    assert members_of(content) == (dict(members), [])
    assert members_of(tar_bytes([("n" * 100, b"1"), ("m" * 99, b"2"), ("d" * 120 + "/" + "n" * 90, b"3")], form=form))[0] == {
        "n" * 100: b"1",
        "m" * 99: b"2",
        "d" * 120 + "/" + "n" * 90: b"3",
    }
    twice = members_of(content + tar_bytes([("second", b"2")]))
    assert twice == ({**dict(members), "second": b"2"}, []), "tars behind one another"


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_of_a_tar_is_told(form: int) -> None:
    members = [(f"{n}.jpg", bytes([n]) * (300 * n + 1)) for n in range(5)]
    content = tar_bytes(members, form=form)
    end = len(content.rstrip(b"\0")) + -len(content.rstrip(b"\0")) % 512
    assert members_of(content[: end + 512])[1] == [], "one block of zeros is an end"
    for cut in [*range(0, end + 1, 512), *range(7, end, 301)]:
        found, damage = members_of(content[:cut])
        assert len(damage) == 1, (cut, damage)
        assert set(found.items()) <= set(dict(members).items()), "no half member is ever given"


def test_a_broken_header_costs_its_member_and_no_more() -> None:
    members = [(f"{n}.jpg", bytes([65 + n]) * 700) for n in range(6)]
    content = bytearray(tar_bytes(members, form=tarfile.USTAR_FORMAT))
    for place in (0, 2, 5):
        for at in (3, 130, 150):  # the name, the size, the checksum
            hurt = bytearray(content)
            hurt[place * 1536 + at] ^= 1 if at == 130 else 255
            found, damage = members_of(bytes(hurt))
            assert found == {name: text for n, (name, text) in enumerate(members) if n != place}
            assert damage == [f"has no sound header at byte {place * 1536}; looking for the next one"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_is_not_given_to_another_member(form: int) -> None:
    content = bytearray(tar_bytes([("long/" * 60 + "a.jpg", b"a"), ("b.jpg", b"b")], form=form))
    at = next(at for at in range(1024, len(content), 512) if content[at : at + 5] == b"long/" and content[at + 257 : at + 262] == b"ustar")
    content[at + 150] ^= 255
    found, damage = members_of(bytes(content))
    assert found == {"b.jpg": b"b"} and len(damage) == 1


def test_lengths_in_headers_take_no_memory_and_no_place_outside() -> None:
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 10**15
    head = huge.tobuf(tarfile.GNU_FORMAT)
    assert members_of(head + b"x" * 1000) == ({}, ["ends inside 'huge.jpg'; what followed is lost"])
    negative = bytearray(tarfile.TarInfo("n.jpg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:155] = b"%06o\0" % sum(negative)
    assert members_of(bytes(negative) + tar_bytes([("a", b"1")]))[0] == {"a": b"1"}
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 21
    content = long_name.tobuf(tarfile.GNU_FORMAT) + b"n" * (1 << 21) + tar_bytes([("a.jpg", b"1")])
    found, damage = members_of(content)
    assert found == {"a.jpg": b"1"} and len(damage) == 1 and "extended header" in damage[0]


def test_links_devices_and_sparse_files_come_without_content() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    found = {one.name: one.problem for one in read_members(io.BytesIO(buffer.getvalue()), limit=lambda _: 10) if isinstance(one, Member)}
    link = "a link, which is not followed"
    assert found == {"s.jpg": link, "h.jpg": link, "c.jpg": "no regular file", "p.jpg": "no regular file"}


def test_hostile_members_are_rows_that_say_why(tmp_path: Path) -> None:
    who = json.dumps({"identity": "A"}).encode()
    hostile = ["../../evil.jpg", "/abs.jpg", "a/../b.jpg", ".jpg", "new\nline.jpg", "C:\\x.jpg", "x\\..\\y.jpg"]
    members = [(name, picture(n)) for n, name in enumerate(hostile)]
    members += [("good.jpg", picture(50)), ("good.json", who), ("run.pickle", b"cos\nsystem\n(S'touch pwned'\ntR."), ("run.pyd", b"x")]
    crawl = write(tmp_path / "crawl", {"a.tar": tar_bytes(members)})
    items = items_of(crawl, tmp_path / "plan")
    found = status_of(items)
    assert {uri for uri, status in found.items() if status == "bad_key"} == {f"a.tar/{uri_text(name)}" for name in hostile}
    assert found["a.tar/good.jpg"] == "ok" and found["a.tar/run.pickle"] == "unsupported_format" and len(found) == 9
    assert all(item.source_uri.isprintable() for item in items)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "crawl", "plan", "tars.json"], "nothing was written anywhere"


def test_half_samples_are_told_and_dotted_names_find_their_own(tmp_path: Path) -> None:
    def named_by(name: str) -> bytes:
        return json.dumps({"identity": name}).encode()

    members = [
        *[
            ("J.Smith_1.jpg", picture(1)),
            ("J.Smith_1.json", named_by("Smith")),
            ("J.Brown_1.jpg", picture(2)),
            ("J.Brown_1.json", named_by("Brown")),
        ],
        *[("late.jpg", picture(3)), ("other.jpg", picture(4)), ("other.cls", b"7"), ("late.json", named_by("Late"))],
        *[
            ("twice.jpg", picture(5)),
            ("twice.cls", b"1"),
            ("x.jpg", picture(6)),
            ("x.cls", b"2"),
            ("twice.jpg", picture(7)),
            ("twice.cls", b"3"),
        ],
        *[("Ab.jpg", picture(8)), ("Ab.cls", b"4"), ("ab.jpg", picture(9)), ("ab.cls", b"5")],
    ]
    items = items_of(write(tmp_path / "crawl", {"a.tar": tar_bytes(members)}), tmp_path / "plan")
    assert {(item.source_uri.removeprefix("a.tar/"), item.identity, item.problem[0] if item.problem else "ok") for item in items} == {
        *[("J.Smith_1.jpg", "Smith", "ok"), ("J.Brown_1.jpg", "Brown", "ok"), ("other.jpg", "7", "ok"), ("x.jpg", "2", "ok")],
        *[("late.jpg", "", "bad_identity"), ("late.json", "", "bad_key"), ("twice.jpg", "1", "ok"), ("twice.jpg#2", "3", "bad_key")],
        *[("Ab.jpg", "4", "ok"), ("ab.jpg", "5", "ok")],
    }


def test_nested_and_gzipped_tars(tmp_path: Path) -> None:
    crawl = webdataset(tmp_path / "crawl" / "part1", people()).parent
    (crawl / "part2").mkdir()
    for path in sorted((crawl / "part1").iterdir())[2:]:
        path.rename(crawl / "part2" / path.name)
    plain = status_of(items_of(crawl, tmp_path / "plan"))
    assert len(plain) == 14 and "part2/00002.tar/20003.jpg" in plain
    members = [("a.jpg", picture(1)), ("a.cls", b"A"), ("b.jpg", picture(2)), ("b.cls", b"B")]
    zipped = tar_bytes(members, mode="w:gz")
    write(tmp_path / "zipped", {"a.tar.gz": zipped, "b.tgz": zipped[: len(zipped) // 2]})
    found = status_of(items_of(tmp_path / "zipped", tmp_path / "plan2"))
    assert found["a.tar.gz/a.jpg"] == found["a.tar.gz/b.jpg"] == "ok" and found["b.tgz#damage"] == "unreadable"
