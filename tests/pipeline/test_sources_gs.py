"""Crawls and exports at gs://, on Google's store as gcp-storage-emulator plays it on loopback.

Neither it nor gcsfs is among the packages of the tests: `pip install gcsfs gcp-storage-emulator`, and run this file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, IngestConfig
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.ingest import ingest
from pipeline.sources import recognise
from pipeline.verify import verify
from tests.pipeline.clean_run import write_clean_run
from tests.pipeline.crawl_forms import FORMS, folder, items_of, people

OPEN = IngestConfig(samples_per_shard=5, allow_private_addresses=True)


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """gcsfs, led to a server that has an empty bucket `crawls`."""
    with pytest.MonkeyPatch.context() as patch:
        # gcsfs asks by gRPC what kind of bucket it has, which the emulator does not speak
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        emulator = pytest.importorskip("gcp_storage_emulator.server", reason="no gcp-storage-emulator here (pip install it, and gcsfs)")
        gcsfs = pytest.importorskip("gcsfs", reason="no gcsfs here (pip install it, and gcp-storage-emulator)")
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="crawls")
        server.start()
        host, port = server._api._httpd.server_address
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        yield gcsfs.GCSFileSystem(token="anon")
        server.stop()


def uploaded(store: Any, crawl: Path, name: str) -> str:
    root = crawl if crawl.is_dir() else crawl.parent
    for path in [crawl] if crawl.is_file() else sorted(crawl.rglob("*")):
        if path.is_file():
            store.pipe_file(f"crawls/{name}/{path.relative_to(root)}", path.read_bytes())
    return f"gs://crawls/{name}" + (f"/{crawl.name}" if crawl.is_file() else "")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_at_gs(form: str, store: Any, tmp_path: Path) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    url = uploaded(store, crawl, form)
    assert recognise(url, OPEN) == FORMS[form][0]
    here, there = items_of(crawl, tmp_path / "here"), items_of(url, tmp_path / "there")
    assert sorted(here, key=lambda item: item.source_uri) == sorted(there, key=lambda item: item.source_uri)


def test_a_crawl_at_gs_is_ingested_by_several_processes(store: Any, tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", people())
    url = uploaded(store, crawl, "two")
    for place, name in ((url, "there"), (crawl, "here")):
        assert ingest(place, tmp_path / name / "raw", Config(workers=2, ingest=OPEN)).counts["ok"] == 12
    for path in (tmp_path / "here" / "raw").glob("raw-*"):
        assert path.read_bytes() == (tmp_path / "there" / "raw" / path.name).read_bytes()
    assert ingest(url, tmp_path / "there" / "raw", Config(workers=1, ingest=OPEN)).reused


def test_an_export_at_gs_is_what_was_written(store: Any, tmp_path: Path) -> None:
    run = write_clean_run(tmp_path / "run")
    export_to(run.clean, "gs://crawls/out", Wanted(form="webdataset", samples_per_shard=9, val=0.4), workers=1)
    assert verify("gs://crawls/out", workers=1).findings == []
    [name, *_] = [path for path in store.find("crawls/out") if path.endswith(".tar")]
    store.pipe_file(name, store.cat_file(name)[:-1])
    assert {one.name for one in verify("gs://crawls/out", workers=1).findings} == {name.rpartition("/")[2]}
