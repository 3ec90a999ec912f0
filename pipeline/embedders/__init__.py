"""One way to load any model that embeds faces: our own trainings, insightface's weights, ONNX files.

A model file is foreign. What is loaded here is data: safetensors, state dicts read with `weights_only=True`, ONNX graphs. TorchScript is a
program, which can write files as soon as it is loaded, and is refused.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import EmbedderConfig
from pipeline.embedders import onnx_model, torch_weights
from pipeline.embedders.base import Embedder
from pipeline.errors import BadInput
from pipeline.layout import RunLayout

__all__ = ["LOADERS", "Embedder", "load_embedder", "locate"]

LOADERS: dict[str, Callable[[Path, torch.device, EmbedderConfig], Embedder]] = {
    ".onnx": onnx_model.load,
    ".safetensors": torch_weights.load,
    ".pt": torch_weights.load,
    ".pth": torch_weights.load,
}
"""By the suffix of the file."""
_ADVICE = "Give an .onnx file, weights as .safetensors, .pt or .pth, or the folder of a run or of one of its trainings. See docs/models.md."


def load_embedder(source: Path, device: torch.device, config: EmbedderConfig = EmbedderConfig()) -> Embedder:
    """The embedder of a model file, of a training (`RUN/rounds/1/train`), of a round, or of the last round of a run.

    `config` says what a foreign file does not: order of channels, mean and deviation, a side where any will do. A training knows them itself.

    Raises BadInput: when there is no such model, when the file is damaged or does not fit, and when it is a program.
    """
    path, config = locate(source, config)
    return LOADERS[path.suffix.lower()](path, device, config)


def locate(source: Path, config: EmbedderConfig) -> tuple[Path, EmbedderConfig]:
    """The model's file, and what is told of it: `config`, or what the folder of a training says. Raises BadInput as `load_embedder`."""
    if source.is_dir():
        training = _training(source)
        config, name = _facts(training)
        return training / name, config
    if not source.is_file():
        raise BadInput(f"There is no model at {source}. Check the path; nothing is downloaded. {_ADVICE}")
    if _is_torchscript(source):
        raise BadInput(
            f"{source} is TorchScript: a program, which may write files as soon as it is loaded, so it is not loaded. "
            "Where you trust it, turn it into ONNX; docs/models.md shows how."
        )
    if source.suffix.lower() not in LOADERS:
        raise BadInput(f"{source} is no model of a kind that is known here. {_ADVICE}")
    return source, config


def _training(folder: Path) -> Path:
    """The training in a folder: itself, that of a round, or that of the last finished round of a run."""
    for place in (folder, folder / "train", *(one.train for one in reversed(RunLayout(folder).rounds))):
        if (place / "model.json").is_file():
            return place
    raise BadInput(f"{folder} holds no training. {_ADVICE}")


def _facts(training: Path) -> tuple[EmbedderConfig, str]:
    """What model.json says of the model beside it, and the name of its file."""
    facts = json.loads((training / "model.json").read_text("utf-8"))
    known = {name: facts[name] for name in ("input_px", "channels", "mean", "std") if name in facts}
    return EmbedderConfig(**known), facts.get("file", "backbone.safetensors")


def _is_torchscript(path: Path) -> bool:
    """True for an archive that holds code: `ARCHIVE/code/...` and `ARCHIVE/constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] in (["code"], ["constants.pkl"]) for name in archive.namelist())
