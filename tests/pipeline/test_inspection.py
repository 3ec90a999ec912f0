"""`purify inspect`: what it says is what was planted, for every form; it writes nothing, and the same question has the same answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from flows import cli
from pipeline.config import Config, EmbedderConfig, IngestConfig, TrainConfig
from pipeline.errors import BadConfig, BadCrawl, BadInput
from pipeline.inspection import inspect
from tests.pipeline.crawl_forms import FORMS, folder, people, picture, webdataset, write

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=5))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_told_as_it_is(form: str, tmp_path: Path) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = inspect(crawl, CONFIG)
    assert found == inspect(crawl, CONFIG)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "nothing is written"
    lost = {"unreadable": 1} if form == "img2dataset" else {}
    assert found.source == FORMS[form][0]
    assert found.statuses == {"ok": 12, "truncated": 1, "unsupported_format": 1} | lost
    assert (found.items, found.items_are_exact, found.identities, found.identities_are_exact) == (14 + len(lost), True, 4, True)
    assert dict(found.largest) == {"0": 3 + len(lost), "1": 4, "2": 4, "3": 3} and found.largest[-1][1] == 3
    assert found.formats == {"JPEG": 13, "a web page or XML": 1} and found.side_px == (112, 112, 112)
    assert found.shards >= 1 and found.disk_bytes > 12 * 5000


def test_a_large_crawl_is_sampled_and_says_so(tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", people(identities=30, each=10))
    found = inspect(crawl, CONFIG, sample=40)
    assert found.sampled == 40 and found.items == 302 and found.identities == 30 and found.identities_are_exact
    tars = inspect(webdataset(tmp_path / "tars", people(identities=30, each=10)), CONFIG, sample=40)
    assert not tars.items_are_exact and not tars.identities_are_exact and abs(tars.items - 302) < 100 and tars.identities == 16


def test_warnings(tmp_path: Path) -> None:
    crawl = folder(
        tmp_path / "crawl",
        {"Ann": [picture(1), picture(2)], "ann": [picture(3)], "Bob": [picture(n, size=(160, 120)) for n in range(4, 9)]},
    )
    (crawl / "Bob" / "link.jpg").symlink_to(crawl / "Ann" / "0.jpg")
    said = "\n".join(inspect(crawl, CONFIG).warnings)
    for expected in (
        "1 names differ in letter case or form alone, as Ann and ann",
        "1 identities have one item",
        "1 items of the sample are links",
        "5 of 9 items looked into are photographs",
        "3 pictures are few",
    ):
        assert expected in said
    plain = folder(tmp_path / "plain", {"A": [picture(1)] * 2, "B": [picture(2)] * 2})
    assert inspect(plain, replace(CONFIG, train=TrainConfig(init="weights.pt"))).warnings == ()
    alone = inspect(folder(tmp_path / "alone", {"A": [b"x", b"y"]}), CONFIG)
    assert any("fewer than two" in one for one in alone.warnings) and any("a run stops" in one for one in alone.warnings)


def test_the_largest_and_the_smallest_are_others(tmp_path: Path) -> None:
    seven = inspect(folder(tmp_path / "seven", {str(n): [picture(n)] * 2 for n in range(7)}), CONFIG)
    assert [who for who, _ in seven.largest] == list("01234") and [who for who, _ in seven.smallest] == ["6", "5"]
    assert inspect(folder(tmp_path / "three", {str(n): [picture(n)] * 2 for n in range(3)}), CONFIG).smallest == ()


def test_what_a_run_would_do_is_counted_right(tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", {"A": [picture(1)] * 2, "B": [picture(2)] * 2})
    assert "; 1 raw shard, by 1 process" in inspect(crawl, CONFIG).would_do[0]
    given = replace(CONFIG, embedder=EmbedderConfig(model="model.onnx"))
    assert inspect(crawl, given).would_do[1] == "2 rounds: embed by the model given, find centers, isolate by the rule calibrated"


def test_a_detector_without_its_file_is_refused(tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", {"A": [picture(1)] * 2, "B": [picture(2)] * 2})
    with pytest.raises(BadConfig, match="needs --detector-model FILE"):
        inspect(crawl, replace(CONFIG, ingest=IngestConfig(detector="yunet")))


def test_the_sheet_shows_crops_and_overwrites_nothing(tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", people())
    inspect(crawl, CONFIG, sheet=tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (1120, 224) and sheet.format == "JPEG"
    for name in ("sheet.jpg", "sheet.png", "nowhere/sheet.jpg"):
        with pytest.raises(BadInput, match=r"has to be a new \.jpg file"):
            inspect(crawl, CONFIG, sheet=tmp_path / name)


def test_crawls_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCrawl, match="is empty"):
        inspect(tmp_path / "empty", CONFIG)
    with pytest.raises(BadCrawl, match="There is no crawl at"):
        inspect(tmp_path / "nowhere", CONFIG)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crawl = write(folder(tmp_path / "crawl", people()), {"a\x1b[31m/1.jpg": picture(1), "a\x1b[31m/2.jpg": picture(2)})
    with pytest.raises(SystemExit) as done:
        cli.app(["inspect", str(crawl), "--format", "json", "--sample", "10"])
    assert done.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["items"], found["sampled"]) == ("folder", 16, 10)
    with pytest.raises(SystemExit):
        cli.app(["inspect", str(crawl), "--source", "folder", "--set", "ingest.min_side_px=200", "--faces", "all"])
    told = capsys.readouterr().out
    assert "13 too_small, 2 bad_key, 1 unsupported_format" in told and "\x1b[31m" not in told
