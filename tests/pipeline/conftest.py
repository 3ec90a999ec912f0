"""What tests of pages share, and those of forgetting."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.browser import Browser, browser_in, is_there
from tests.pipeline.forgetting import purified


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not is_there():
        pytest.skip("chromium or chromedriver is not installed")
    with browser_in(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def finished(tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(crawl, finished run, a name of it with samples in `clean/`). One of its pictures also stands under another name."""
    crawl = tmp_path_factory.mktemp("forget") / "crawl"
    shutil.copytree(tiny_crawl[0], crawl)
    names = sorted(path.name for path in crawl.iterdir() if path.is_dir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copy(sorted((crawl / name).glob("*.jpg"))[0], crawl / other / "same bytes.jpg")
    run = crawl.parent / "run"
    purified(crawl, run)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((run / "manifest").glob("*.parquet"))]).to_pylist()
    trained = set(pq.read_table(run / "rounds" / "2" / "train" / "classes.parquet")["identity"].to_pylist())
    exported = [row["identity"] for row in rows if row["clean_shard"] and row["identity"] in trained]
    return crawl, run, max(sorted(set(exported)), key=exported.count)


@pytest.fixture
def copied(finished: tuple[Path, Path, str], tmp_path: Path) -> tuple[Path, Path, str]:
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run", finished[2]
