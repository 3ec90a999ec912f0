"""MobileFaceNet: bottlenecks with depthwise convolutions, and a depthwise convolution over the whole last map in place of pooling.

Names of parameters are those of arcface_torch (`mbf`, `mbf_large`), so that its published weights load: hence the many modules that are nothing
but `layers`. Source: Chen et al., "MobileFaceNets", CCBR 2018; widths and depths, twice and four times the paper's, are arcface_torch's.
"""

from torch import Tensor, nn

BLOCKS = {"mobilefacenet": (2, (1, 4, 6, 2)), "mobilefacenet_large": (4, (2, 8, 12, 4))}
"""Width as a multiple of the paper's, and how many blocks each of the four stages repeats."""


class _Layers(nn.Module):
    """A sequence under the name `layers`; `adds`: to its input."""

    def __init__(self, *modules: nn.Module, adds: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def _linear(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1) -> _Layers:
    return _Layers(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1) -> _Layers:
    *convolved, norm = _linear(inputs, outputs, kernel=kernel, stride=stride, padding=padding, groups=groups).layers
    return _Layers(*convolved, norm, nn.PReLU(outputs))


def _bottleneck(inputs: int, outputs: int, inner: int, *, stride: int = 1) -> _Layers:
    """1 x 1 to `inner` channels, 3 x 3 on each of them, 1 x 1 back; added to the input where nothing changes its shape."""
    return _Layers(
        _conv(inputs, inner),
        _conv(inner, inner, kernel=3, stride=stride, padding=1, groups=inner),
        _linear(inner, outputs),
        adds=stride == 1,
    )


def _repeated(width: int, inner: int, count: int) -> _Layers:
    return _Layers(*(_bottleneck(width, width, inner) for _ in range(count)))


class MobileFaceNet(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> features [B, embedding_dim], not normalised. H = W = `input_px`, a multiple of 16."""

    def __init__(self, scale: int, blocks: tuple[int, int, int, int], *, embedding_dim: int, input_px: int, dropout: float) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        first = _conv(narrow, narrow, kernel=3, padding=1, groups=64) if blocks[0] == 1 else _repeated(narrow, 128, blocks[0])
        self.layers = nn.ModuleList(
            [
                _conv(3, narrow, kernel=3, stride=2, padding=1),
                first,
                _bottleneck(narrow, narrow, 128, stride=2),
                _repeated(narrow, 128, blocks[1]),
                _bottleneck(narrow, wide, 256, stride=2),
                _repeated(wide, 256, blocks[2]),
                _bottleneck(wide, wide, 512, stride=2),
                _repeated(wide, 256, blocks[3]),
            ]
        )
        self.conv_sep = _conv(wide, 512)
        self.features = _Layers(
            _linear(512, 512, kernel=input_px // 16, groups=512),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        *head, norm = self.features.layers
        x = self.conv_sep(x)
        for layer in head:
            x = layer(x)
        out: Tensor = norm(x.float())
        return out
