"""What to mind before a training: said of the crawls that want it and of no others, of a sample as of a run's raw shards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import minds
from pipeline.config import Config, EmbedderConfig, IngestConfig, TrainConfig
from pipeline.ingest import ingest
from pipeline.inspection import inspect
from pipeline.layout import RunLayout
from pipeline.minds import minds_of_run
from pipeline.receipts import run_stage
from tests.pipeline.crawl_forms import folder, picture, write

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=5))
Said = Callable[..., list[str]]


@pytest.fixture(params=["a sample", "a run"])
def said(request: pytest.FixtureRequest, tmp_path: Path) -> Said:
    """What is minded of a crawl, by `purify inspect` and by `purify run`."""

    def ask(crawl: Path, config: Config = CONFIG) -> list[str]:
        if request.param == "a sample":
            return list(inspect(crawl, config).warnings)
        run = RunLayout(tmp_path / "run")
        ingest(crawl, run.raw, config)
        return minds_of_run(run, config)

    return ask


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minds, "ENOUGH", 8)


def people(count: int = 4, each: int = 2, side: int = 112) -> dict[str, list[bytes]]:
    return {f"P{who}": [picture(10 * who + n, size=(side, side)) for n in range(each)] for who in range(count)}


def test_of_a_crawl_as_it_should_be_nothing_is_said(said: Said, tmp_path: Path) -> None:
    assert said(folder(tmp_path / "crawl", people() | {"Val": [picture(91), picture(92)]})) == []


@pytest.mark.parametrize(
    ("changed", "is_said"),
    [
        ({}, True),
        ({"train": TrainConfig(init="weights.pt")}, False),
        ({"embedder": EmbedderConfig(model="model.onnx")}, False),
        ({"mode": "judge"}, False),
    ],
)
def test_too_few_pictures_to_learn_from(said: Said, tmp_path: Path, changed: dict[str, object], is_said: bool) -> None:
    few = said(folder(tmp_path / "crawl", people(count=3)), replace(CONFIG, **changed))  # type: ignore[arg-type]
    assert len(few) == is_said and all("6 pictures are few" in one and "--embedder" in one and "--init" in one for one in few)


@pytest.mark.parametrize(("side", "is_said"), [(112, False), (160, False), (161, True), (250, True)])
def test_large_squares_may_be_photos(said: Said, tmp_path: Path, side: int, is_said: bool) -> None:
    found = said(folder(tmp_path / "crawl", people(side=side)))
    assert len(found) == is_said and all("8 of 8 pictures looked into are squares of more than 160 px" in one for one in found)


def test_photos_beside_crops(said: Said, tmp_path: Path) -> None:
    photos = {f"Q{n}": [picture(50 + n, size=(200, 150)), picture(60 + n)] for n in range(4)}
    [one] = said(folder(tmp_path / "crawl", people() | photos))
    assert "4 of 16 items looked into are photographs" in one and "--detector yunet" in one


def test_splits_that_are_taken_for_people(said: Said, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    for where, first in (("train", 0), ("val", 2)):
        write(crawl, {f"{where}/P{first + who}/{n}.jpg": picture(10 * (first + who) + n) for who in range(2) for n in range(2)})
    assert said(crawl) == [], "the Hugging Face form, which reads the folders below"


def test_splits_beside_another_folder_are_minded(said: Said, tmp_path: Path) -> None:
    files = {
        f"{split}/P{who}/{n}.jpg": picture(100 * len(split) + 10 * who + n)
        for split in ("Train", "val")
        for who in range(2)
        for n in range(2)
    }
    crawl = write(tmp_path / "crawl", {**files, "others/1.jpg": picture(7), "others/2.jpg": picture(8)})
    [one] = said(crawl)
    assert (
        one.startswith("'Train' and 'val' are each taken for one identity, with 4 folders of pictures below")
        and "--source huggingface" in one
    )


def test_a_folder_around_the_people_is_minded(tmp_path: Path) -> None:
    crawl = write(tmp_path / "crawl", {f"images/P{who}/{n}.jpg": picture(10 * who + n) for who in range(4) for n in range(2)})
    assert any(one.startswith("'images' is taken for one identity, with 4 folders") for one in inspect(crawl, CONFIG).warnings)


def test_once_its_training_stands_a_run_is_not_warned_again(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    ingest(folder(tmp_path / "crawl", people(count=3)), run.raw, CONFIG)
    assert minds_of_run(run, CONFIG)
    run_stage(run.round(1).train, stage="train", mark="0" * 64, work=lambda _: {})
    assert minds_of_run(run, CONFIG) == []
