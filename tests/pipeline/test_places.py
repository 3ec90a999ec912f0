"""Places: what is a URL, what a pattern means, what a look sees, and what is not opened."""

import os
from pathlib import Path

import pytest

from pipeline import looks, places
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.web import TooLarge
from tests.pipeline.crawl_forms import write

CONFIG = IngestConfig(max_item_bytes=100)


@pytest.mark.parametrize(
    ("crawl", "remote", "where", "name"),
    [
        ("s3://bucket/crawl/", True, "s3://bucket/crawl", "crawl"),
        ("https://host/a.tar?x=/y", True, "https://host/a.tar?x=/y", "a.tar"),
        ("/a/./b/../c/", False, "/a/c", "c"),
        ("file:///a/c", False, "/a/c", "c"),
        (Path("/a/c"), False, "/a/c", "c"),
        ("/a/s3:/b", False, "/a/s3:/b", "b"),
    ],
)
def test_locations(crawl: places.Location, remote: bool, where: str, name: str) -> None:
    assert (places.is_remote(crawl), places.located(crawl), places.name_of(crawl)) == (remote, where, name)


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.located("crawl") == str(tmp_path.resolve() / "crawl") == places.recorded("crawl")


def test_patterns_are_of_the_last_part_and_names_that_are_there_win(tmp_path: Path) -> None:
    write(tmp_path, {f"{n:03d}.tar": b"x" for n in range(12)} | {"b.txt": b"", "[x]*.tar/a": b"", "{1..3}.tar": b"y"})

    def found(pattern: str) -> list[str]:
        return [entry.path for entry in places.matching(f"{tmp_path}/{pattern}", CONFIG)[1]]

    assert found("{008..011}.tar") == ["008.tar", "009.tar", "010.tar", "011.tar"]
    assert found("00?.tar") == [f"{n:03d}.tar" for n in range(10)]
    assert found("{1..3}.tar") == ["{1..3}.tar"]
    assert places.is_folder(f"{tmp_path}/[x]*.tar", CONFIG)
    with pytest.raises(BadCrawl, match=r"There is no .*012\.tar, though .* names it"):
        found("{010..013}.tar")
    with pytest.raises(BadCrawl, match="does not count up"):
        found("{9..1}.tar")


def test_a_look_goes_down_the_first_folder_and_no_further(tmp_path: Path) -> None:
    write(tmp_path, {"z.txt": b"", "a/b/1.jpg": b"", "a/2.jpg": b"", "c/3.jpg": b"", ".git/x": b"", "_tmp/y": b"", "a/b/c/d/e/f.jpg": b""})
    look = looks.look(str(tmp_path), CONFIG)
    assert look.kind == "folder" and look.folders == ("a", "c")
    assert look.levels == (("z.txt",), ("a/2.jpg",), ("a/b/1.jpg",), ())
    assert looks.look(f"{tmp_path}/z.txt", CONFIG).levels == (("z.txt",),)


def test_a_look_at_very_many_names_takes_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_SHOWN", 3)
    for number in range(100):
        (tmp_path / f"{(number * 37) % 100:02d}").touch()
    assert looks.look(str(tmp_path), CONFIG).top == ("00", "01", "02")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path, {"in/a": b"a" * 100, "in/big": b"b" * 101, "secret": b"s"})
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "door").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "in" / "pipe")
    assert places.read_file(f"{tmp_path}/in/a", CONFIG) == places.read_inside(str(tmp_path), "in/a", CONFIG) == b"a" * 100
    for name in ("link", "pipe", "door", "nothing"):
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system calls it
            places.read_file(f"{tmp_path}/in/{name}", CONFIG)
        with pytest.raises(OSError):  # noqa: PT011
            places.read_inside(str(tmp_path), f"in/{name}", CONFIG)
    with pytest.raises(OSError):  # noqa: PT011
        places.read_inside(f"{tmp_path}/in", "door/secret", CONFIG)
    for read in (lambda: places.read_file(f"{tmp_path}/in/big", CONFIG), lambda: places.read_inside(str(tmp_path), "in/big", CONFIG)):
        with pytest.raises(TooLarge, match="101 bytes, 100 allowed"):
            read()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(OSError):  # noqa: PT011
            places.read_inside(str(tmp_path), "in/door/secret", CONFIG)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "nothing stays open"
