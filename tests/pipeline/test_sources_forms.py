"""All sources: the same pictures in every form give the same samples; listings depend on no order; nothing is lost and no name is twice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline import config as settings
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.examine import examine
from pipeline.places import located
from pipeline.sources import SOURCES, recognise
from tests.pipeline.crawl_forms import FORMS, Pictures, folder, items_of, people, status_of

CONFIG = IngestConfig(samples_per_shard=5)


def findings(crawl: Path, plan: Path) -> set[tuple[str, str | None, str]]:
    rows = [row for item in items_of(crawl, plan) for row, _ in examine(item, CONFIG)]
    return {(row["identity"], row.get("sample_id"), row["status"]) for row in rows}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str | None, str]]:
    """What the plainest form gives."""
    root = tmp_path_factory.mktemp("wanted")
    found = findings(folder(root / "crawl", people()), root / "plan")
    assert len(found) == 14 and {status for _, _, status in found} == {"ok", "truncated", "unsupported_format"}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str, wanted: set[tuple[str, str | None, str]], tmp_path: Path) -> None:
    source, writes = FORMS[form]
    crawl = writes(tmp_path / "crawl", people())
    assert recognise(located(crawl), CONFIG) == source
    found = findings(crawl, tmp_path / "plan")
    lost = {("0", None, "unreadable")} if form == "img2dataset" else set()
    assert found == wanted | lost


def test_every_source_has_a_form_and_a_setting() -> None:
    assert {source for source, _ in FORMS.values()} | {"export"} == set(SOURCES), "exports have tests of their own"
    assert get_args(settings.SourceName) == ("auto", *SOURCES)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_file_system_changes_nothing(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    source = SOURCES[FORMS[form][0]]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = source.list_slices(str(crawl), tmp_path / "a", CONFIG)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Any) -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[Any]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("pipeline.places.os.scandir", Backwards)
    second = source.list_slices(str(crawl), tmp_path / "b", CONFIG)
    assert first == second
    for number in range(first.slices):
        one, two = (list(source.read_slice(str(crawl), tmp_path / plan, number, CONFIG)) for plan in "ab")
        assert one == two


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_file_changes_the_digest(form: str, tmp_path: Path) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    source = SOURCES[FORMS[form][0]]
    plan = tmp_path / "plan"
    plan.mkdir()
    before = source.list_slices(str(crawl), plan, CONFIG)
    assert source.list_slices(str(crawl), plan, CONFIG) == before
    files = sorted(
        path for path in ([crawl] if crawl.is_file() else crawl.rglob("*")) if path.is_file() and path.name not in {"README.md", "property"}
    )
    biggest = max(files, key=lambda path: (path.suffix in {".rec", ".parquet", ".csv", ".tar"}, path.stat().st_size))
    os.utime(biggest, ns=(1, 1))
    assert source.list_slices(str(crawl), plan, CONFIG).digest != before.digest


@pytest.mark.parametrize("form", ["recordio", "table of bytes", "folder"])
def test_slices_of_other_sizes_hold_the_same_items(form: str, tmp_path: Path) -> None:
    pictures: Pictures = people(identities=6, each=20)
    crawl = FORMS[form][1](tmp_path / "crawl", pictures)
    found = [status_of(items_of(crawl, tmp_path / str(size), IngestConfig(samples_per_shard=size))) for size in (7, 32, 1000)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 122


def test_recordio_slices_mix_identities(tmp_path: Path) -> None:
    crawl = FORMS["recordio"][1](tmp_path / "crawl", people(identities=40, each=16))
    config = IngestConfig(samples_per_shard=160)
    source = SOURCES["recordio"]
    (tmp_path / "plan").mkdir()
    source.list_slices(str(crawl), tmp_path / "plan", config)
    numbers = sorted({int(item.identity) for item in source.read_slice(str(crawl), tmp_path / "plan", 0, config)})
    assert numbers[-1] - numbers[0] > 20, "a run of the file would span ten"


@pytest.mark.parametrize(
    "form", ["folder", "table of bytes", "hugging face, parquet", "hugging face, class folders", "hugging face, metadata"]
)
def test_identities_are_counted_without_reading_pictures(form: str, tmp_path: Path) -> None:
    crawl = FORMS[form][1](tmp_path / "crawl", people())
    source = SOURCES[FORMS[form][0]]
    (tmp_path / "plan").mkdir()
    source.list_slices(str(crawl), tmp_path / "plan", CONFIG)
    assert source.count_identities is not None
    assert source.count_identities(tmp_path / "plan", CONFIG) == {"0": 3, "1": 4, "2": 4, "3": 3}


def test_a_source_can_be_forced_and_nothing_is_guessed(tmp_path: Path) -> None:
    crawl = FORMS["hugging face, class folders"][1](tmp_path / "crawl", people())
    forced = IngestConfig(source="folder")
    assert recognise(str(crawl), forced) == "folder"
    assert {item.identity for item in items_of(crawl, tmp_path / "plan", forced)} == {"train", "test", ""}
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadCrawl, match="is no crawl that is known"):
        recognise(str(tmp_path / "notes.txt"), CONFIG)
    with pytest.raises(BadCrawl, match="There is no crawl at"):
        recognise(str(tmp_path / "nowhere"), CONFIG)


def test_a_table_without_pictures_says_which_columns_are_known(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("identity,photo\nAnn,a.jpg\n")
    with pytest.raises(BadCrawl, match=r"none of the columns that are known for pictures \(image, bytes, .*image_column=NAME"):
        items_of(tmp_path / "list.csv", tmp_path / "plan", CONFIG)


@pytest.mark.parametrize("writes", [folder])
def test_a_stray_table_does_not_hide_a_folder_crawl(writes: Callable[[Path, Pictures], Path], tmp_path: Path) -> None:
    crawl = writes(tmp_path / "crawl", people())
    (crawl / "list.csv").write_text("name,count\n0,3\n")
    assert recognise(str(crawl), CONFIG) == "folder"
