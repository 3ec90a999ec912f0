"""Weights on disk: safetensors for ours; insightface's `.pt` state dicts are read with `weights_only=True`, and never anything else."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import BadCheckpoint, BadConfig
from pipeline.receipts import atomic

_STATE_DICTS = ("state_dict_backbone", "state_dict")
"""Under which a checkpoint keeps the weights: arcface_torch's, many others'."""


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadConfig(f"There is no device {name!r}. Use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadConfig(f"Device {name!r} was asked for, and torch {torch.__version__} sees no GPU. Use --set device=auto.")
    return device


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors whole or not at all."""
    with atomic(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a `.safetensors` or an insightface-layout `.pt` / `.pth` file. Runs no code of the file."""
    if not path.is_file():
        raise BadCheckpoint(f"There are no weights at {path}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise BadCheckpoint(f"{path} is damaged, or no weights file: {str(error)[:200] or type(error).__name__}") from error
    except Exception as error:  # UnpicklingError is no subclass of the above
        raise BadCheckpoint(f"{path} holds more than tensors, and is not loaded. Convert it to safetensors where you trust it.") from error
    for name in _STATE_DICTS:
        found = found.get(name, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise BadCheckpoint(f"{path} holds no state dict. Give a mapping of names to tensors, as safetensors or .pt.")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def load_into(module: nn.Module, path: Path) -> None:
    """Load weights into a module. Raises BadCheckpoint naming the first keys that are missing, foreign, or of another shape."""
    fit(module, load_tensors(path), path)


def fit(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors into a module; `path` says in messages where they are from. Raises as `load_into`."""
    own = module.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    foreign = [name for name in tensors if name not in own]
    other = [
        f"{name} {tuple(tensors[name].shape)}, wanted {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or foreign or other:
        parts = [
            f"{label}: {', '.join(names[:3])}" for label, names in (("missing", missing), ("unknown", foreign), ("shape", other)) if names
        ]
        raise BadCheckpoint(
            f"{path} does not fit the backbone ({'; '.join(parts)}). Set train.backbone, embedding_dim and input_px to its own."
        )
    module.load_state_dict({**own, **tensors})


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` on `device`, its convolutions in channels_last, which is 1.1 to 1.6 times as fast on a processor."""
    module.to(device)
    placed: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
