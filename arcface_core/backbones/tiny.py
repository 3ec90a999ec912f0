"""A small residual backbone for processors without a GPU: about 27 million multiplications for a 48 x 48 image."""

from torch import Tensor, nn

from arcface_core.backbones.iresnet import Block


class TinyResNet(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> features [B, embedding_dim], not normalised. H = W = `input_px`, a multiple of 16."""

    def __init__(self, *, embedding_dim: int, input_px: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.PReLU(32))
        self.down1 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.block1 = Block(64, 64, 1)
        self.down2 = nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.PReLU(128))
        self.block2 = Block(128, 128, 1)
        self.bn = nn.BatchNorm2d(128)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(128 * (input_px // 8) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.down1(self.stem(x)))
        x = self.bn(self.block2(self.down2(x)))
        out: Tensor = self.features(self.fc(self.dropout(x.flatten(1))).float())
        return out
