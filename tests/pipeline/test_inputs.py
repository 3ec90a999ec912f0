"""What a run is given is looked at before anything is done."""

import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.config import load
from pipeline.errors import PurifyError
from pipeline.inputs import check_inputs
from pipeline.layout import RunLayout
from pipeline.run_folder import read_finished
from pipeline.verification_bin import write_bin


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


def test_a_set_to_protect_is_looked_at_by_its_kind(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "x.json").write_text('{"a": 1}')
    for name, message in (("notes", "holds no image to protect"), ("x.json", "is no verification file of insightface")):
        with pytest.raises(PurifyError, match=message):
            check_inputs(tiny_crawl[0], RunLayout(tmp_path / "run"), load(overrides=[f"protect.sets=['{tmp_path / name}']"]))
    write_bin(tmp_path / "x.bin", [b"1", b"2"], [True])
    (tmp_path / "old.bin").write_bytes(pickle.dumps(([b"1", b"2"], [True]), protocol=0))
    sets = [str(tmp_path / "x.bin"), str(tmp_path / "old.bin"), str(tiny_crawl[0])]
    assert check_inputs(tiny_crawl[0], RunLayout(tmp_path / "run"), load(overrides=[f"protect.sets={sets}"])) == "folder"


@pytest.mark.parametrize("crawl", ["", " "])
def test_a_crawl_without_a_name_is_not_the_folder_one_stands_in(crawl: str, tmp_path: Path) -> None:
    with pytest.raises(PurifyError, match=r"No crawl is given.*CRAWL and RUN are to be set in the shell that deploys it"):
        check_inputs(crawl, RunLayout(tmp_path / "run"), load())


def test_a_run_folder_is_no_part_of_its_crawl(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_crawl[0])
    for run in (tiny_crawl[0] / "run", tmp_path / "link" / "run", tiny_crawl[0]):
        with pytest.raises(PurifyError, match="lies in the crawl"):
            check_inputs(tiny_crawl[0], RunLayout(run), load())


def test_a_log_of_the_forgotten_without_its_key_stops_the_run(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    run.forgotten.mkdir()
    pq.write_table(tables.FORGOTTEN.empty_table(), run.forgotten / "log.parquet")
    with pytest.raises(PurifyError, match="its key is gone"):
        check_inputs(tiny_crawl[0], run, load())


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{", "utf-8")
    with pytest.raises(PurifyError, match="damaged or not ours"):
        read_finished(RunLayout(tmp_path))
