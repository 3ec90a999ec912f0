"""Small ONNX models with the true output layouts of YuNet and SCRFD. They find a face wherever a patch of the picture is white.

Every output is a convolution over the cells of its stride: the score is the mean of the cell's pixels, boxes and points are constants.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

POINTS = np.array([[-0.9, -0.9], [0.9, -0.9], [0.0, 0.1], [-0.75, 1.0], [0.75, 1.0]], np.float32)
"""Of the planted face, in strides from the middle of its cell."""


def yunet(path: Path, *, side: int = 64, wrong: str | None = None, finds_at: Sequence[int] = (16,)) -> Path:
    """A model for cv2.FaceDetectorYN: input [1, 3, side, side], BGR 0..255; a face of 5 x 6 strides at each white cell of the strides `finds_at`."""
    graph = _Graph()
    for stride in (8, 16, 32):
        live = stride in finds_at
        mean = np.full((1, 3, stride, stride), 1 / (255 * 3 * stride * stride) if live else 0, np.float32)
        graph.cells(f"cls_{stride}", "input", mean, [0.0], stride, [1, -1, 1])
        graph.cells(f"obj_{stride}", "input", mean * 0, [1.0], stride, [1, -1, 1])
        graph.cells(f"bbox_{stride}", "input", _nothing(4, stride), [0.5, 0.5, np.log(5), np.log(6)], stride, [1, -1, 4])
        wide = 9 if wrong == "narrow" and stride == 8 else 10
        graph.cells(f"kps_{stride}", "input", _nothing(wide, stride), (POINTS + 0.5).ravel()[:wide], stride, [1, -1, wide])
    if wrong == "names":
        graph.rename("obj_16", "objects")
    return graph.save(path, "input", [1, 3, side, side])


def scrfd(path: Path, *, side: int | str = "side", outputs: int = 9, wrong: str | None = None) -> Path:
    """A model of insightface's layout: input [1, 3, side, side], RGB, (x - 127.5) / 128; a face of 4 x 5 strides at each white cell of stride 16.

    The second anchor of each cell sees half as much, so that the first is the surer.
    """
    graph = _Graph()
    for stride in (8, 16, 32):
        live = 1.0 if stride == 16 else 0.0
        mean = np.full((1, 3, stride, stride), live * 128 / (255 * 3 * stride * stride), np.float32)
        graph.cells(f"score_{stride}", "x", np.concatenate([mean, mean / 2]), [live / 2, live / 4], stride, [-1, 1])
    for stride in (8, 16, 32):  # distances from the cell's corner: the box is 4 x 5 strides about the middle of the cell
        graph.cells(f"box_{stride}", "x", _nothing(8, stride), [1.5, 2.0, 2.5, 3.0] * 2, stride, [-1, 4])
    for stride in (8, 16, 32):
        graph.cells(f"points_{stride}", "x", _nothing(20, stride), np.tile((POINTS + 0.5).ravel(), 2), stride, [-1, 10])
    graph.outputs = graph.outputs[:outputs]
    if wrong == "order":
        graph.outputs = graph.outputs[3:] + graph.outputs[:3]
    return graph.save(path, "x", [1, 1 if wrong == "channels" else 3, side, side])


def with_outside_weights(path: Path, location: str) -> Path:
    """A model that asks for its weights in another file."""
    model = onnx.load(str(yunet(path)))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path


def _nothing(channels: int, stride: int) -> NDArray[np.float32]:
    return np.zeros((channels, 3, stride, stride), np.float32)


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self.ranks: dict[str, int] = {}

    def cells(
        self,
        name: str,
        source: str,
        kernel: NDArray[np.float32],
        bias: Sequence[float] | NDArray[np.float32],
        stride: int,
        shape: list[int],
    ) -> None:
        for suffix, value in (
            ("kernel", kernel),
            ("bias", np.asarray(bias, np.float32)),
            ("shape", np.array(shape, np.int64)),
        ):
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{suffix}"))
        self.nodes += [
            helper.make_node(
                "Conv", [source, f"{name}_kernel", f"{name}_bias"], [f"{name}_map"], strides=[stride, stride], kernel_shape=[stride] * 2
            ),
            helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [f"{name}_last", f"{name}_shape"], [name]),
        ]
        self.outputs.append(name)
        self.ranks[name] = len(shape)

    def rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            node.output[:] = [new if name == old else name for name in node.output]
        self.outputs = [new if name == old else name for name in self.outputs]
        self.ranks[new] = self.ranks[old]

    def save(self, path: Path, source: str, shape: list[int | str]) -> Path:
        given = helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)
        made = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{n}" for n in range(self.ranks[name])])
            for name in self.outputs
        ]
        graph = helper.make_graph(self.nodes, "faces", [given], made, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path
