"""What a run is given is looked at before anything is done."""

from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import PurifyError
from pipeline.inputs import check_inputs
from pipeline.layout import RunLayout


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.init='{}/no.pt'", r"There are no weights at .*no\.pt \(--init"),
        ("protect.sets=['{}/no.bin']", r"There is no set to protect at .*no\.bin"),
        ("evaluate.bins=['{}/no.bin']", r"There is no verification file .*no\.bin"),
        ("embedder.model='{}/no.onnx'", r"There is no model at .*no\.onnx"),
        ("ingest.detector=yunet", "needs --detector-model FILE"),
    ],
)
def test_what_is_not_there_is_said_at_once(tiny_crawl: tuple[Path, Path], tmp_path: Path, setting: str, message: str) -> None:
    crawl, run = tiny_crawl[0], RunLayout(tmp_path / "run")
    with pytest.raises(PurifyError, match=message):
        check_inputs(crawl, run, load(overrides=[setting.format(tmp_path)]))
    assert check_inputs(crawl, run, load()) == "folder"


def test_a_run_folder_is_no_part_of_its_crawl(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_crawl[0])
    for run in (tiny_crawl[0] / "run", tmp_path / "link" / "run", tiny_crawl[0]):
        with pytest.raises(PurifyError, match="lies in the crawl"):
            check_inputs(tiny_crawl[0], RunLayout(run), load())
