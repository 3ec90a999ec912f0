"""Small ONNX models that embed crops, exported from torch as other people's are."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

DIM = 16


class Net(nn.Module):
    """[B, 3, H, W] -> [B, 16]: a convolution, BatchNorm, the mean over the picture, a linear layer. H and W are free."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, DIM)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
        return out


class ScalesItself(Net):
    """Takes pixels 0..255, as models converted from MXNet."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 127.5) * (1 / 127.5))


class ChannelsLast(Net):
    """[B, H, W, 3], as models converted from Keras."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class OneAtATime(Net):
    """A graph that says it takes any number, and has one fixed inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(1, DIM)


def write(path: Path, net: nn.Module, *, shape: tuple[int, ...] = (1, 3, 32, 32), free: bool = True, training: bool = False) -> Path:
    """`net` as an ONNX file; `free`: of any number of pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the exporter says of itself
        torch.onnx.export(
            net.train() if training else net.eval(),
            (torch.zeros(shape),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["feature"],
            dynamic_axes={"image": {0: "batch"}} if free else None,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=not training,
        )
    return path
