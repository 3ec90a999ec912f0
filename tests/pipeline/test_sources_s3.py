"""Crawls in a store: a real S3 server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config, IngestConfig
from pipeline.errors import BadCrawl, BadInput
from pipeline.ingest import ingest
from pipeline.sources import recognise
from tests.pipeline.crawl_forms import FORMS, folder, items_of, people, picture, write
from tests.pipeline.store_server import s3_server

OPEN = IngestConfig(samples_per_shard=5, allow_private_addresses=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server with an empty bucket `crawls`."""
    with s3_server("crawls") as (address, _):
        yield address


def uploaded(crawl: Path, name: str) -> str:
    """The crawl, put into the bucket."""
    import boto3

    client = boto3.client("s3")
    root = crawl if crawl.is_dir() else crawl.parent
    for path in [crawl] if crawl.is_file() else sorted(crawl.rglob("*")):
        if path.is_file():
            client.put_object(Bucket="crawls", Key=f"{name}/{path.relative_to(root)}", Body=path.read_bytes())
    client.close()
    return f"s3://crawls/{name}" + (f"/{crawl.name}" if crawl.is_file() else "")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_in_s3(form: str, s3: str, tmp_path: Path) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    url = uploaded(crawl, form)
    assert recognise(url, OPEN) == FORMS[form][0]
    here, there = items_of(crawl, tmp_path / "here"), items_of(url, tmp_path / "there")
    assert sorted(here, key=lambda item: item.source_uri) == sorted(there, key=lambda item: item.source_uri)


def test_a_crawl_in_s3_is_ingested_by_several_processes(s3: str, tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", people())
    url = uploaded(crawl, "two")
    for place, name in ((url, "there"), (crawl, "here")):
        receipt = ingest(place, tmp_path / name / "raw", Config(workers=2, ingest=OPEN))
        assert receipt.counts["ok"] == 12
    names = [path.name for path in (tmp_path / "here" / "raw").glob("raw-*")]
    assert all((tmp_path / "here" / "raw" / name).read_bytes() == (tmp_path / "there" / "raw" / name).read_bytes() for name in names)
    assert ingest(url, tmp_path / "there" / "raw", Config(workers=1, ingest=OPEN)).reused
    uploaded(write(tmp_path / "more", {"0/new.jpg": picture(99)}), "two")
    assert not ingest(url, tmp_path / "there" / "raw", Config(workers=1, ingest=OPEN)).reused, "a new file is seen"


def test_s3_errors_name_the_next_step(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadCrawl, match="There is no crawl at s3://nobucket/x"):
        recognise("s3://nobucket/x", OPEN)
    with pytest.raises(BadCrawl, match="There is no crawl at s3://crawls/nothing"):
        recognise("s3://crawls/nothing", OPEN)
    with pytest.raises(BadCrawl, match="There is no way to read nonsense://"):
        recognise("nonsense://a/b", OPEN)
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(BadInput, match=r"Reading s3:// needs pip install 'arcface-purify\[s3\]'"):
        recognise("s3://crawls/x", OPEN)


def test_tables_may_point_into_s3(s3: str, tmp_path: Path) -> None:
    uploaded(write(tmp_path / "crawl", {"a.jpg": picture(1)}), "pictures")
    rows = [{"identity": "A", "url": f"s3://crawls/pictures/{name}.jpg"} for name in "ab"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, second = items_of(tmp_path / "t.parquet", tmp_path / "plan")
    assert first.content == picture(1) and first.source_url == "s3://crawls/pictures/a.jpg"
    assert second.problem is not None and second.problem[0] == "unreadable"
