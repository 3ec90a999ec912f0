"""Features of an evaluation set's pictures, embedded once: a file of them stands in the output folder, and a killed evaluation goes on where it stopped."""

from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline.embed import features_of_pixels
from pipeline.embedders import Embedder
from pipeline.errors import BadInput
from pipeline.protocols.faces import Faces
from pipeline.receipts import Progress

_BATCH = 256
_LOOKED_AT = 65_536


def embed_faces(faces: Faces, embedder: Embedder, folder: Path | None, *, progress: Progress | None = None) -> NDArray[np.float32]:
    """Features [N, D], float32, not normalised: the mean of what the embedder makes of each picture and of its mirror image.

    With `folder` they are a memory-mapped file in it, named by the model and the set; what stands there is not embedded again.
    Raises BadInput: a picture that cannot be used, or a feature that is not finite.
    """
    shape = (len(faces), embedder.dim)
    if folder is None:
        features: NDArray[np.float32] = np.zeros(shape, np.float32)
        _fill(features, 0, faces, embedder, progress)
        return features
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{embedder.sha256[:16]}-{faces.mark[:16]}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        is_new = not (partial.exists() and _shape_of(partial) == shape)
        held = open_memmap(partial, "w+" if is_new else "r+", np.float32, shape)
        _fill(held, 0 if is_new else _first_empty(held), faces, embedder, progress)
        held.flush()
        del held
        partial.rename(path)
    return open_memmap(path, "c")  # as if writable, which torch wants; the file never changes


def _fill(features: NDArray[np.float32], start: int, faces: Faces, embedder: Embedder, progress: Progress | None) -> None:
    for first in range(start - start % _BATCH, len(faces), _BATCH):
        numbers = range(first, min(first + _BATCH, len(faces)))
        found = features_of_pixels(faces.crops(numbers, embedder.input_px), embedder)
        if not np.isfinite(found).all():
            number = first + int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise BadInput(
                f"{embedder.name} makes no finite feature of {faces.names[number]}. Is it trained, and are mean and deviation its own?"
            )
        features[first : first + len(found)] = found
        if progress:
            progress(first + len(found), len(faces))


def _shape_of(path: Path) -> tuple[int, ...] | None:
    try:
        return open_memmap(path, "r").shape
    except (ValueError, OSError):
        return None


def _first_empty(features: NDArray[np.float32]) -> int:
    """The first row that was never written: a file made for them is zeros, and no feature is."""
    for first in range(0, len(features), _LOOKED_AT):
        empty = ~features[first : first + _LOOKED_AT].any(1)
        if empty.any():
            return first + int(empty.argmax())
    return len(features)
