"""Conformance of every backbone, and insightface's layouts: names, shapes, sizes, arithmetic."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from arcface_core.backbones import BACKBONES, build_backbone
from arcface_core.backbones.vit import VisionTransformer

NAMES = Path(__file__).with_name("insightface_names")
LAYOUTS = {
    "iresnet18": (187, 24_025_600, "68eaf02af455cf330fd87f24afa1c20a"),
    "iresnet34": (331, 34_139_328, "f184bfe8178b94e88cba48dbc4e0ed1b"),
    "iresnet50": (475, 43_590_848, "87577a0a9c1c1505b4d3ab32b2cfb4f1"),
    "iresnet100": (925, 65_156_160, "30c5c94b2426b4144146680ae1a2f668"),
    "iresnet200": (1807, 118_833_920, "99ee48c6fb84881f035efca57c740c12"),
    "mobilefacenet": (333, 2_059_520, "83ce66f2a8d96e251396dcc5382e9fa9"),
    "mobilefacenet_large": (606, 6_314_880, "e8ba8ded5aa610fc7d49439d9c9a8f38"),
    "vit_t": (150, 19_137_792, "6e9807688ae1dd4b0521d8fc6d1bd95a"),
    "vit_s": (150, 76_023_296, "9cd3bd9f20c3d65b80fd9bf43d46a892"),
    "vit_b": (282, 113_833_472, "e3d238d5b1e2426f3f849c6cacfb90b2"),
}
"""State-dict entries, parameters, and a digest of `name [shape]` in sorted lines: what the modules of insightface @7fadd42 (arcface_torch: r18 ...,
mbf, mbf_large, vit_t, vit_s, vit_b) list, built and printed. Three of the lists stand in insightface_names/."""
GIGA_MULTIPLICATIONS = {
    "iresnet18": 2.6,
    "iresnet50": 6.3,
    "iresnet100": 12.1,
    "mobilefacenet": 0.45,
    "vit_t": 1.5,
    "vit_s": 5.7,
    "vit_b": 11.4,
}
"""As published in arcface_torch's README, for a crop of 112 x 112."""


def layout(net: nn.Module) -> list[str]:
    return sorted(f"{name} {list(tensor.shape)}" for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    net = build_backbone(name, embedding_dim=16, input_px=16)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0  # so that one batch sets the statistics, without which hundreds of fresh blocks overflow
    images = torch.randn(3, 3, 16, 16, requires_grad=True)
    features = net(images)
    assert features.shape == (3, 16) and features.dtype == torch.float32 and bool(features.isfinite().all())
    assert any(isinstance(module, _BatchNorm) for module in net.modules()), "inversion needs BatchNorm statistics"
    (features * torch.randn(3, 16)).sum().backward()
    assert images.grad is not None and images.grad.shape == images.shape and bool((images.grad != 0).any())
    for parameter in net.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.shape == parameter.shape)
    net.eval()
    with torch.no_grad():
        together = net(images)
        assert torch.equal(together, net(images)) and torch.allclose(together[:1], net(images[:1]), atol=1e-4 * float(together.abs().max()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_shapes_and_sizes_are_insightfaces(name: str) -> None:
    with torch.device("meta"):
        net = build_backbone(name)
    lines = layout(net)
    count, parameters, digest = LAYOUTS[name]
    assert (len(lines), sum(parameter.numel() for parameter in net.parameters())) == (count, parameters)
    if (NAMES / f"{name}.txt").exists():
        assert lines == (NAMES / f"{name}.txt").read_text("utf-8").splitlines()
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.parametrize(("name", "giga"), GIGA_MULTIPLICATIONS.items())
def test_the_arithmetic_is_as_published(name: str, giga: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counted, torch.no_grad():
        build_backbone(name).eval()(torch.zeros(1, 3, 112, 112))
    assert counted.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.03)


def test_a_transformer_masks_and_skips_only_while_training() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_b", embedding_dim=8, input_px=48)
    assert isinstance(net, VisionTransformer) and net.patches == 25
    seen: list[int] = []
    net.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    images = torch.randn(2, 3, 48, 48)
    net(images).sum().backward()
    assert net.mask_token.grad is not None, "what is masked is learned"
    with torch.no_grad():
        net.eval()(images)
    assert seen == [23, 25], "5 % of 25 patches are hidden"
    dropped = [block.dropped for block in net.blocks]
    assert dropped[0] == 0 and dropped[-1] == 0.05 and dropped == sorted(dropped)
    assert not build_backbone("vit_t", input_px=16).mask_token.requires_grad, "what is never used is not trained"


def test_hidden_patches_come_back_to_their_places() -> None:
    """With blocks that do nothing, all patches seen and the token zero, training sees what evaluation sees, but for the hidden ones."""
    torch.manual_seed(0)
    net = VisionTransformer(16, 2, 0.25, embedding_dim=4, input_px=48, dropout=0.0)
    net.blocks = nn.ModuleList()
    net.norm = nn.Identity()
    nn.init.zeros_(net.mask_token)
    found: list[torch.Tensor] = []
    net.feature[0].register_forward_pre_hook(lambda _, given: found.append(given[0].detach().view(2, 25, 16)))
    images = torch.randn(2, 3, 48, 48)
    net.train()(images)
    net.eval()(images)
    hidden = (found[0] == 0).all(dim=2)
    assert hidden.sum(dim=1).tolist() == [7, 7] and torch.equal(found[0][~hidden], found[1][~hidden])


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Use one of: tiny, iresnet18"):
        build_backbone("resnet")
    for side in (0, 50, -16):
        with pytest.raises(ValueError, match="multiple of 16"):
            build_backbone("vit_t", input_px=side)
