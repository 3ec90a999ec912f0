"""A backbone as an ONNX file, for whoever serves it, and for `--embedder` elsewhere."""

import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pipeline import onnx_files
from pipeline.embedders import Embedder, load_embedder
from pipeline.embedders.base import MEAN, STD
from pipeline.embedders.onnx_model import METADATA
from pipeline.errors import BadConfig, BadInput, PurifyError

OPSET = 17
_WORST = 1e-4
_TRIED = 4


class Exported(NamedTuple):
    """What was written. `relative_error`: largest difference of a feature from torch's, over the largest feature."""

    embedder: Embedder
    relative_error: float


def export_onnx(source: Path, out: Path) -> Exported:
    """Writes the model of `source` (as `load_embedder` takes it) to `out`, after onnxruntime has given what torch gives.

    Input `image`, float [B, 3, H, W], RGB, (x - 127.5) / 127.5; output `feature`, float [B, D], not normalised; B is free. The metadata say all that, as
    `arcface_purify.channels` and so on, with the name of the backbone and the SHA-256 of its weights.

    Raises BadInput when `source` is an ONNX file already; BadConfig when `out` is no .onnx path; PurifyError when the two runtimes differ.
    """
    if out.suffix != ".onnx":
        raise BadConfig(f"{out} is no name for an ONNX file. Give a path that ends in .onnx.")
    embedder = load_embedder(source, torch.device("cpu"))
    if embedder.module is None:
        raise BadInput(f"{source} is an ONNX model already. Give weights, or the folder of a training.")
    said = {"backbone": embedder.name, "weights_sha256": embedder.sha256, "input_px": str(embedder.input_px), "channels": "rgb"}
    said |= {"mean": ",".join([str(MEAN)] * 3), "std": ",".join([str(STD)] * 3)}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        candidate = Path(folder) / out.name
        _trace(embedder.module, embedder.input_px, candidate)
        candidate.write_bytes(onnx_files.with_metadata(candidate.read_bytes(), {METADATA + name: value for name, value in said.items()}))
        error = _difference(embedder, load_embedder(candidate, torch.device("cpu")))
        if not error <= _WORST:
            raise PurifyError(
                f"{out} was not written: onnxruntime's features differ from torch's by {error:.1e}. This is our defect: report it."
            )
        candidate.replace(out)
    return Exported(embedder, error)


def _trace(module: nn.Module, input_px: int, out: Path) -> None:
    """The exporter by tracing: it needs no more packages, and is there in every torch that this program takes."""
    picture = torch.zeros(1, 3, input_px, input_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of itself, in favour of one that needs onnxscript, and of sizes that are fixed here
        torch.onnx.export(
            module,
            (picture,),
            out,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["feature"],
            dynamic_axes={"image": {0: "batch"}, "feature": {0: "batch"}},
        )


def _difference(wanted: Embedder, found: Embedder) -> float:
    images = torch.randint(
        0, 256, (_TRIED, 3, wanted.input_px, wanted.input_px), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    features = wanted.embed(images)
    return float((found.embed(images) - features).abs().max() / features.abs().max())
