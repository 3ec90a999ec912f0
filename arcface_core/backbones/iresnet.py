"""IResNet, the paper's backbone: a ResNet whose blocks begin with BatchNorm and whose first convolution keeps the resolution.

Names of parameters are insightface's, so that its published weights load. Source: Duta et al., "Improved Residual Networks", and the
head `BN -> Dropout -> FC -> BN` of the ArcFace paper, section 4.1.
"""

from torch import Tensor, nn

DEPTHS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
_WIDTHS = (64, 128, 256, 512)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Block(nn.Module):
    """BN -> conv -> BN -> PReLU -> conv (stride) -> BN, added to the input (1 x 1 convolution and BN where its shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = _conv3x3(outputs, outputs, stride)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.conv2(self.prelu(self.bn2(y)))
        out: Tensor = self.bn3(y) + (x if self.downsample is None else self.downsample(x))
        return out


class IResNet(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> features [B, embedding_dim], not normalised. H = W = `input_px`, a multiple of 16."""

    def __init__(self, depths: tuple[int, int, int, int], *, embedding_dim: int, input_px: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        stages, inputs = [], 64
        for depth, width in zip(depths, _WIDTHS, strict=True):
            stages.append(nn.Sequential(*(Block(inputs if n == 0 else width, width, 2 if n == 0 else 1) for n in range(depth))))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * (input_px // 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)  # stays 1, as insightface's: the scale of a feature carries no meaning
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.fc(self.dropout(self.bn2(x).flatten(1)))
        out: Tensor = self.features(x.float())
        return out
