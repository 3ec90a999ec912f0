"""Arrays in files that other processes map: written whole, opened without reading."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.receipts import atomic


def new_array(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory-mapped array of zeros in a new file. Its room is taken now: on a disk that fills later, writing to it would kill the process."""
    with path.open("wb") as file:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
    return np.memmap(path, kind, "r+", shape=shape)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array to `path`, a `.npy`, whole or not at all."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def mapped(path: Path) -> NDArray[Any]:
    """The array of a `.npy` file, page by page as it is used. What is written to it stays in this process."""
    array: NDArray[Any] = np.load(path, mmap_mode="c")
    return array


def mapped_tensor(path: Path) -> Tensor:
    """`mapped`, as a tensor."""
    return torch.from_numpy(mapped(path))
