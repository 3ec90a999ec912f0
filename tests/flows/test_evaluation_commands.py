from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from arcface_core.backbones import build_backbone
from flows.cli import app, main
from pipeline.models import save_tensors
from tests.pipeline.evaluation_sets import write_ijb, write_lfw


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small backbones that were never trained, as .safetensors and as insightface's .pt."""
    root = tmp_path_factory.mktemp("models")
    for number in range(2):
        torch.manual_seed(number)
        net = build_backbone("tiny", embedding_dim=32, input_px=64)
        if number == 0:
            save_tensors(root / "ours.safetensors", net.state_dict())
        else:
            torch.save(net.state_dict(), root / "theirs.pt")
    return root / "ours.safetensors", root / "theirs.pt"


def test_two_models_side_by_side(models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lfw, ijb = write_lfw(tmp_path / "lfw"), write_ijb(tmp_path / "ijb")
    given = ["evaluate", str(models[0]), "--against", str(models[1]), "--out", str(tmp_path / "out"), "--device", "cpu"]
    app([*given, "--protocol", f"mine={lfw}", "--protocol", f"toy={ijb}", "--no-keep-norm"], result_action="return_value")
    said = capsys.readouterr().out
    assert all(word in said for word in ("mine", "accuracy_by_distance", "toy 1:N", "rank-1", "too few pairs"))
    metrics = pq.read_table(tmp_path / "out" / "metrics.parquet").to_pylist()
    assert {row["backbone"] for row in metrics} == {"ours.safetensors", "theirs.pt"}
    assert {row["protocol"] for row in metrics} == {"verification/1", "templates/1 N0D1F2"}
    assert pq.read_table(tmp_path / "out" / "differences.parquet").num_rows > 10
    assert (tmp_path / "out" / "roc-mine.svg").is_file() and len(list((tmp_path / "out" / "features").glob("*.npy"))) == 4


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["--protocol", "lfw"], 2, "NAME=PATH"),
        (["--protocol", "mine={lfw}", "--protocol", "mine={lfw}"], 2, "each name once"),
        (["--protocol", "lfw={lfw}"], 1, "60 pairs, and lfw has 6,000"),
        (["--protocol", "mine=nowhere"], 2, "Nothing tells how to read mine=nowhere"),
        (["--protocol", "mine={lfw}", "--ceiling", "x.pt"], 2, "--ceiling wants --against"),
        (["--protocol", "mine={lfw}", "--against", "{model}"], 2, "compared with itself"),
        (["--protocol", "mine={lfw}", "--set", "colour=red"], 2, "--set takes channels"),
    ],
)
def test_what_cannot_be_measured_is_told(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], code: int, message: str
) -> None:
    lfw = write_lfw(tmp_path / "lfw", people=3, each=3, pairs=3)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(models[0]), *(part.format(lfw=lfw, model=models[0]) for part in given), "--out", str(tmp_path / "out")])
    assert stopped.value.code == code and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_share_of_the_gap_is_told(models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(2)
    save_tensors(tmp_path / "true.safetensors", build_backbone("tiny", embedding_dim=32, input_px=64).state_dict())
    lfw = write_lfw(tmp_path / "lfw")
    given = ["evaluate", str(models[0]), "--against", str(models[1]), "--ceiling", str(tmp_path / "true.safetensors")]
    app([*given, "--protocol", f"mine={lfw}", "--out", str(tmp_path / "out"), "--device", "cpu"], result_action="return_value")
    assert "gap" in capsys.readouterr().out
