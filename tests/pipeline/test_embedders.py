"""Any model file as an embedder: the same features as torch, whatever layout and scale the file has; what is hostile or wrong is refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arcface_core.backbones import BACKBONES, build_backbone, recognise
from arcface_core.training import to_input
from pipeline.config import EmbedderConfig
from pipeline.embedders import load_embedder, parts
from pipeline.errors import BadCheckpoint, BadInput
from pipeline.sums import file_sha256
from tests.pipeline.detector_models import with_outside_weights
from tests.pipeline.embedder_models import DIM, ChannelsLast, Net, OneAtATime, ScalesItself, write

CPU = torch.device("cpu")


def pictures(count: int = 5, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_torch(net: torch.nn.Module, images: Tensor) -> Tensor:
    out: Tensor = net.eval()(to_input(images, CPU))
    return out


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "kind", ["usual", "one of a batch", "scales itself", "channels last", "batch of four", "one at a time", "any side"]
)
def test_onnx_gives_what_torch_gives(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    path = tmp_path / "model.onnx"
    config = EmbedderConfig(input_px=32) if kind == "any side" else EmbedderConfig()
    match kind:
        case "scales itself":
            write(path, ScalesItself())
        case "channels last":
            write(path, ChannelsLast(), shape=(1, 32, 32, 3))
        case "one of a batch":
            write(path, net, free=False)
        case "batch of four":
            write(path, net, shape=(4, 3, 32, 32), free=False)
        case "one at a time":
            write(path, OneAtATime())
        case _:
            write(path, net)
    if kind == "any side":
        model = onnx.load(str(path))
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
        onnx.save(model, str(path))
    embedder = load_embedder(path, CPU, config)
    assert (embedder.kind, embedder.name, embedder.input_px, embedder.dim, embedder.module) == ("onnx", "model", 32, DIM, None)
    assert embedder.sha256 == file_sha256(path)
    found = embedder.embed(pictures())
    monkeypatch.setattr(parts, "_PIXELS_AT_A_TIME", 2 * 32 * 32)
    in_parts = embedder.embed(pictures())
    assert torch.allclose(in_parts, found, atol=1e-6 * float(found.abs().max()))
    assert found.dtype == torch.float32 and relative_error(found, by_torch(net, pictures())) < 1e-5
    assert embedder.embed(pictures(0)).shape == (0, DIM)
    for wrong in (pictures(side=48), pictures().float()):
        with pytest.raises(ValueError, match=r"takes uint8 crops \[B, 3, 32, 32\], got .* scale them first"):
            embedder.embed(wrong)


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_features_are_the_same_to_the_bit_on_any_number_of_cores(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    path = tmp_path / f"model.{form}"
    if form == "onnx":
        write(path, Net())
    else:
        save_file(build_backbone("iresnet18", embedding_dim=DIM, input_px=32).state_dict(), path)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(load_embedder(path, CPU).embed(pictures(count=500)))
            with ThreadPoolExecutor(1) as pool:  # the number for threads to come, as the next stage's
                assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_channels_mean_and_deviation_are_the_models(tmp_path: Path, form: str) -> None:
    config = EmbedderConfig(channels="bgr", mean=(100.0, 110.0, 120.0), std=60.0)
    path = tmp_path / f"model.{form}"
    torch.manual_seed(0)
    net: torch.nn.Module = Net() if form == "onnx" else build_backbone("tiny", embedding_dim=DIM, input_px=32)
    if form == "onnx":
        write(path, net)
    else:
        save_file(net.state_dict(), path)
    given = (pictures().flip(1).float() - torch.tensor([100.0, 110.0, 120.0])[:, None, None]) / 60
    with torch.no_grad():
        wanted = net.eval()(given)
    embedder = load_embedder(path, CPU, config)
    assert relative_error(embedder.embed(pictures()), wanted) < 1e-5
    if embedder.module is not None:
        assert not any(module.training for module in embedder.module.modules())
        assert relative_error(embedder.module(to_input(pictures(), CPU)), wanted) < 1e-5, "inversion goes the same way"
    assert relative_error(load_embedder(path, CPU).embed(pictures()), wanted) > 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_known_by_its_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in build_backbone(name, embedding_dim=128, input_px=64).state_dict().items()}
    assert recognise(shapes) == (name, 128, 64)
    del shapes[next(key for key in shapes if key.endswith("weight"))]
    assert recognise({}) is None and recognise({"fc.weight": (512, 25088)}) is None


def test_weights_of_insightface_as_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = build_backbone("iresnet18", embedding_dim=DIM, input_px=16)
    state = net.state_dict()
    torch.save(state, tmp_path / "backbone.pth")
    torch.save({"epoch": 3, "state_dict_backbone": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "checkpoint.pt")
    wanted = by_torch(net, pictures(side=16))
    monkeypatch.setattr(parts, "_PIXELS_AT_A_TIME", 2 * 16 * 16)
    for name in ("backbone.pth", "checkpoint.pt"):
        embedder = load_embedder(tmp_path / name, CPU)
        assert (embedder.name, embedder.input_px, embedder.dim, embedder.kind) == ("iresnet18", 16, DIM, "torch")
        assert relative_error(embedder.embed(pictures(side=16)), wanted) < 1e-5
        assert embedder.module is not None and not any(one.requires_grad for one in embedder.module.parameters())
    with pytest.raises(BadCheckpoint, match=r"says 32\. Leave the setting out"):
        load_embedder(tmp_path / "backbone.pth", CPU, EmbedderConfig(input_px=32))
    del state["layer2.1.bn3.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(BadCheckpoint, match=r"missing: layer2\.1\.bn3\.weight"):
        load_embedder(tmp_path / "part.pt", CPU)
    torch.save({"input_layer.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(BadCheckpoint, match=r"no backbone that is known here .*input_layer.0.weight.*docs/models.md"):
        load_embedder(tmp_path / "other.pt", CPU)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("training mode", "depends on the pictures beside it"),
        ("two inputs", "2 inputs and 1 outputs"),
        ("not square", r"input tensor\(float\) \['batch', 3, 32, 48\]"),
        ("grey", r"input tensor\(float\) \['batch', 1, 32, 32\]"),
        ("a map", r"output \[1, 4, 15, 15\] of 1 pictures"),
        ("blind", "two unlike pictures have the same feature"),
        ("not finite", "not finite"),
        ("cut", "is no ONNX model"),
        ("no model", "is no ONNX model"),
        ("weights elsewhere", "keeps weights in other files"),
        ("other side", "embedder.input_px says 112"),
        ("bad metadata", "is not three numbers"),
    ],
)
def test_a_model_that_cannot_serve_is_refused_with_what_to_do(tmp_path: Path, kind: str, message: str) -> None:
    path, net, config = tmp_path / "model.onnx", Net(), EmbedderConfig()
    match kind:
        case "training mode":
            write(path, net, training=True)
        case "two inputs":
            model = onnx.load(str(write(path, net)))
            model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
            onnx.save(model, str(path))
        case "not square":
            write(path, net, shape=(1, 3, 32, 48))
        case "grey":
            net.conv = torch.nn.Conv2d(1, 4, 3, 2)
            write(path, net, shape=(1, 1, 32, 32))
        case "a map":
            write(path, torch.nn.Sequential(net.conv))
        case "blind":
            net.fc.weight.data.zero_()
            write(path, net)
        case "not finite":
            net.fc.bias.data.fill_(torch.nan)
            write(path, net)
        case "cut":
            path.write_bytes(write(path, net).read_bytes()[:-100])
        case "no model":
            path.write_bytes(b"\x00" * 1000)
        case "weights elsewhere":
            with_outside_weights(path, "/etc/passwd")
        case "other side":
            write(path, net)
            config = EmbedderConfig(input_px=112)
        case "bad metadata":
            model = onnx.load(str(write(path, net)))
            onnx.helper.set_model_props(model, {"arcface_purify.mean": "127.5,nan,1"})
            onnx.save(model, str(path))
    with pytest.raises(BadInput, match=message) as error:
        load_embedder(path, CPU, config)
    assert str(path) in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_a_program_and_is_not_loaded(tmp_path: Path) -> None:
    """A scripted module writes a file as soon as `torch.jit.load` sees it, which the second half of the test shows."""

    class Hostile(torch.nn.Module):
        target: str

        def __init__(self, target: str) -> None:
            super().__init__()
            self.target = target

        @torch.jit.export
        def __getstate__(self) -> tuple[str, bool]:
            return self.target, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]) -> None:
            torch.save(torch.ones(1), state[0])
            self.target = state[0]
            self.training = state[1]

        def forward(self, x: Tensor) -> Tensor:
            return x

    written = tmp_path / "written"
    for name in ("model.pt", "model.ts"):
        torch.jit.script(Hostile(str(written))).save(str(tmp_path / name))
        with pytest.raises(BadInput, match=r"TorchScript: a program.*docs/models.md"):
            load_embedder(tmp_path / name, CPU)
        assert not written.exists()
    torch.jit.load(str(tmp_path / "model.pt"))
    assert written.exists(), "were it harmless, it could be loaded"


def test_what_is_no_model_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no model at .*nothing is downloaded"):
        load_embedder(tmp_path / "model.onnx", CPU)
    with pytest.raises(BadInput, match="holds no training"):
        load_embedder(tmp_path, CPU)
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"no model of a kind that is known here. Give an .onnx file"):
        load_embedder(tmp_path / "model.h5", CPU)
    np.savez(tmp_path / "model.pt", a=np.zeros(2))
    (tmp_path / "model.pt.npz").rename(tmp_path / "model.pt")
    with pytest.raises(BadCheckpoint):
        load_embedder(tmp_path / "model.pt", CPU)
