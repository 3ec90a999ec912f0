"""Conformance of every backbone, and the layout that insightface's weights have."""

import pytest
import torch

from arcface_core.backbones import BACKBONES, build_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    net = build_backbone(name, embedding_dim=16, input_px=32)
    features = net(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 16) and features.dtype == torch.float32 and bool(features.isfinite().all())
    kinds = {type(module) for module in net.modules()}
    assert {torch.nn.BatchNorm2d, torch.nn.BatchNorm1d} <= kinds, "inversion needs BatchNorm statistics"
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "millions"), [("iresnet18", 24.02), ("iresnet34", 34.14), ("iresnet50", 43.59), ("iresnet100", 65.15)])
def test_parameter_counts_are_those_of_insightface(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = build_backbone(name)
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_names_are_insightfaces() -> None:
    with torch.device("meta"):
        names = set(build_backbone("iresnet50").state_dict())
    some = {"conv1.weight", "bn1.running_mean", "prelu.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight", "layer1.0.prelu.weight"}
    some |= {
        "layer3.13.bn3.bias",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.running_var",
        "bn2.weight",
        "fc.bias",
        "features.running_var",
    }
    assert some <= names
    assert {name.split(".")[0] for name in names} == {
        "conv1",
        "bn1",
        "prelu",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "bn2",
        "fc",
        "features",
    }


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Use one of: tiny, iresnet18"):
        build_backbone("resnet")
    with pytest.raises(ValueError, match="multiple of 16"):
        build_backbone("tiny", input_px=50)
