"""What `purify export` wrote is a crawl again: in every form, from its top folder, with the identities it was exported with; or refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import Config, IngestConfig
from pipeline.errors import BadCrawl
from pipeline.exporters import EXPORTERS
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.inspection import inspect
from pipeline.places import located
from pipeline.sources import SOURCES, exported, recognise
from tests.pipeline.clean_run import NAMES, write_clean
from tests.pipeline.crawl_forms import items_of, picture

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=5, identity_key="person", image_column="photo"))
SAMPLES = [(name, picture(10 * number + place)) for place in range(3) for number, name in enumerate((*NAMES, "jpg", "0", "Train"))]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    clean = write_clean(root / "clean", SAMPLES)
    for form in EXPORTERS:
        export_to(clean, root / form, Wanted(form=form, samples_per_shard=4, val=0.4), workers=1)
    return root


def test_every_form_of_export_is_known() -> None:
    assert set(exported._FORMS) == set(EXPORTERS)


@pytest.mark.parametrize("form", EXPORTERS)
def test_an_export_is_read_with_its_identities(exports: Path, form: str, tmp_path: Path) -> None:
    told = json.loads((exports / form / "identities.json").read_text())
    assert set(told) == {"train", "val"} and all(told.values()), "both splits have somebody"
    assert recognise(located(exports / form), CONFIG.ingest) == "export"
    items = items_of(exports / form, tmp_path, CONFIG.ingest)
    assert Counter((item.identity, item.content) for item in items if item.problem is None) == Counter(SAMPLES)
    assert all(item.problem is None for item in items) and len({item.source_uri for item in items}) == len(items)
    found = inspect(exports / form, CONFIG)
    assert (found.source, found.items, found.items_are_exact) == ("export", len(SAMPLES), True)
    assert (found.identities, found.identities_are_exact, found.statuses) == (len(NAMES) + 3, True, {"ok": len(SAMPLES)})
    assert {count for _, count in (*found.largest, *found.smallest)} == {3}


@pytest.mark.parametrize("form", EXPORTERS)
def test_an_export_that_lacks_something_is_refused(exports: Path, form: str, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    shutil.copytree(exports / form, crawl)
    suffix = exported._FORMS[form].suffix
    one = next(crawl / file["name"] for file in json.loads((crawl / "dataset.json").read_text())["files"] if file["name"].endswith(suffix))
    content = one.read_bytes()
    one.write_bytes(content[:-1])
    with pytest.raises(BadCrawl, match=r"has [\d,]+ bytes, and [\d,]+ were written"):
        inspect(crawl, CONFIG)
    one.unlink()
    with pytest.raises(BadCrawl, match=r"is gone, says its dataset\.json"):
        inspect(crawl, CONFIG)
    one.write_bytes(content)
    one.with_name(f"zz{suffix}").write_bytes(content)
    with pytest.raises(BadCrawl, match=f"zz{suffix} is no part of it"):
        inspect(crawl, CONFIG)
    one.with_name(f"zz{suffix}").unlink()
    (crawl / "identities.json").write_text('{"train": ["Ada"]}')
    with pytest.raises(BadCrawl, match=r"identities\.json is not as `purify export` wrote it"):
        inspect(crawl, CONFIG)


@pytest.mark.parametrize("form", EXPORTERS)
def test_a_source_that_would_misread_it_is_refused(exports: Path, form: str, tmp_path: Path) -> None:
    for source in SOURCES:
        forced = IngestConfig(samples_per_shard=5, source=source)  # type: ignore[arg-type]
        if source in {"export", exported._FORMS[form].also}:
            items = items_of(exports / form, tmp_path / source, forced)
            assert Counter((item.identity, item.content) for item in items) == Counter(SAMPLES)
        else:
            with pytest.raises(BadCrawl, match=f"is an export of purify .{form}., which the source {source} would misread"):
                recognise(located(exports / form), forced)


def test_pictures_put_into_an_imagefolder_or_taken_out_are_rows(exports: Path, tmp_path: Path) -> None:
    crawl = shutil.copytree(exports / "imagefolder", tmp_path / "crawl")
    gone = next((crawl / "train").rglob("*.jpg"))
    gone.unlink()
    (gone.parent / "new.jpg").write_bytes(picture(999))
    problems = {item.source_uri: item.problem for item in items_of(crawl, tmp_path / "plan", CONFIG.ingest) if item.problem}
    assert problems == {
        str(gone.relative_to(crawl)): ("unreadable", "named by the metadata, but not there"),
        f"{gone.parent.relative_to(crawl)}/new.jpg": ("bad_identity", "no line of the metadata names it"),
    }


def test_a_folder_of_exports_is_no_crawl(exports: Path, tmp_path: Path) -> None:
    for form in ("hf", "imagefolder"):
        shutil.copytree(exports / form, tmp_path / form)
    with pytest.raises(BadCrawl, match=r"holds exports of purify \(hf, imagefolder\).* Give one of them"):
        recognise(located(tmp_path), CONFIG.ingest)


def test_a_run_is_no_crawl_and_its_clean_shards_are(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "clean", tmp_path / "clean")
    (tmp_path / "run.json").write_text('{"crawl": "x", "finished": true}')
    for source in ("auto", "webdataset"):
        with pytest.raises(BadCrawl, match=r"is a run of purify, not a crawl\. Give its clean/"):
            recognise(located(tmp_path), IngestConfig(source=source))
    assert recognise(located(tmp_path / "clean"), CONFIG.ingest) == "webdataset"


def test_another_dataset_json_is_no_export(exports: Path, tmp_path: Path) -> None:
    assert recognise(located(exports / "clean"), CONFIG.ingest) == "webdataset", "clean/ of a run"
    for number, text in enumerate(
        ("[]", "{", '{"format": "imagefolder", "files": [1], "fingerprint": ""}', '{"format": ["hf"], "files": []}')
    ):
        crawl = tmp_path / str(number)
        (crawl / "Ann").mkdir(parents=True)
        (crawl / "dataset.json").write_text(text)
        assert recognise(located(crawl), CONFIG.ingest) == "folder"
        with pytest.raises(BadCrawl, match=r"has no dataset\.json of `purify export`"):
            inspect(crawl, Config(ingest=IngestConfig(source="export")))
