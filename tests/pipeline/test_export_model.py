"""Backbones as ONNX files: the same features, what the file says of itself, and the way back in as an embedder."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from arcface_core.backbones import build_backbone
from flows import cli
from pipeline import export_model, onnx_files
from pipeline.config import EmbedderConfig
from pipeline.embedders import Embedder, load_embedder
from pipeline.errors import BadConfig, BadInput, PurifyError
from pipeline.export_model import export_onnx
from pipeline.models import save_tensors

CPU = torch.device("cpu")


def training(folder: Path, name: str, input_px: int = 32) -> Path:
    """A training of random weights, its BatchNorm statistics too."""
    torch.manual_seed(0)
    net = build_backbone(name, embedding_dim=16, input_px=input_px)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(4, 3, input_px, input_px))
    folder.mkdir()
    save_tensors(folder / "backbone.safetensors", net.state_dict())
    (folder / "model.json").write_text(json.dumps({"backbone": name, "embedding_dim": 16, "input_px": input_px}))
    return folder


def images(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["tiny", "iresnet18", "mobilefacenet", "vit_t"])
def test_onnxruntime_gives_what_torch_gives(tmp_path: Path, name: str) -> None:
    source = training(tmp_path / "train", name)
    embedder, error = export_onnx(source, tmp_path / "out.onnx")
    found = load_embedder(tmp_path / "out.onnx", CPU)
    wanted = load_embedder(source, CPU)
    for count in (1, 5):
        features = wanted.embed(images(count))
        assert float((found.embed(images(count)) - features).abs().max() / features.abs().max()) < 1e-5
    assert error < 1e-5 and embedder.name == name and (found.dim, found.input_px) == (16, 32)
    model = onnx.load(str(tmp_path / "out.onnx"))
    onnx.checker.check_model(model)
    said = {entry.key.removeprefix("arcface_purify."): entry.value for entry in model.metadata_props}
    assert said == {"backbone": name, "weights_sha256": wanted.sha256, "input_px": "32", "channels": "rgb",
                    "mean": "127.5,127.5,127.5", "std": "127.5,127.5,127.5"}  # fmt: skip
    assert list(tmp_path.glob(".export*")) == []


def test_weights_that_want_other_pixels_are_exported_with_their_scale_inside(tmp_path: Path) -> None:
    source = training(tmp_path / "train", "tiny")
    facts = json.loads((source / "model.json").read_text()) | {"channels": "bgr", "mean": [120.0, 110.0, 100.0], "std": 64.0}
    (source / "model.json").write_text(json.dumps(facts))
    export_onnx(source, tmp_path / "out.onnx")
    wanted = load_embedder(source, CPU).embed(images(3))
    assert torch.allclose(load_embedder(tmp_path / "out.onnx", CPU).embed(images(3)), wanted, atol=1e-5 * float(wanted.abs().max()))


def test_what_the_file_says_is_done_unless_settings_say_otherwise(tmp_path: Path) -> None:
    export_onnx(training(tmp_path / "train", "tiny"), tmp_path / "out.onnx")
    content = (tmp_path / "out.onnx").read_bytes()
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx_files.with_metadata(content, {"arcface_purify.channels": "bgr", "arcface_purify.std": "64,65,66"}))
    told = load_embedder(tmp_path / "out.onnx", CPU, EmbedderConfig(channels="bgr", std=(64.0, 65.0, 66.0))).embed(images(3))
    assert torch.equal(load_embedder(other, CPU).embed(images(3)), told)
    usual = load_embedder(other, CPU, EmbedderConfig(channels="rgb", std=127.5)).embed(images(3))
    assert torch.equal(usual, load_embedder(tmp_path / "out.onnx", CPU).embed(images(3))) and not torch.allclose(usual, told)
    long = "x" * 300
    other.write_bytes(onnx_files.with_metadata(content, {long: long}))
    assert onnx.load(str(other)).metadata_props[-1].value == long


def test_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = training(tmp_path / "train", "tiny")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-model", str(source), str(tmp_path / "new" / "out.onnx")])
    assert ended.value.code == 2 and "There is no folder" in capsys.readouterr().err and not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-model", str(source), str(tmp_path / "new" / "out.onnx")])
    assert ended.value.code in (0, None) and "tiny, 32 px, 16 dimensions" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-model", str(tmp_path / "new" / "out.onnx"), str(tmp_path / "again.onnx")])
    assert ended.value.code == 1 and "is an ONNX model already" in capsys.readouterr().err


def test_nothing_is_written_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = training(tmp_path / "train", "tiny")
    with pytest.raises(BadConfig, match=r"ends in \.onnx"):
        export_onnx(source, tmp_path / "out.pt")
    with pytest.raises(BadInput, match="There is no model"):
        export_onnx(tmp_path / "none.pt", tmp_path / "out.onnx")

    def wrong(source: Path, *_: object) -> Embedder:
        return load_embedder(other if source.suffix == ".onnx" else source, CPU)

    other = training(tmp_path / "other", "vit_t")
    monkeypatch.setattr(export_model, "load_embedder", wrong)
    with pytest.raises(PurifyError, match="was not written: onnxruntime's features differ"):
        export_onnx(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
