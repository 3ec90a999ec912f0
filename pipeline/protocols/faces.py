"""Pictures of an evaluation set, from a folder, a tar or memory, as aligned crops. A picture that cannot be used is an error: the figure would be another."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from arcface_core.alignment import TEMPLATE_112
from pipeline.config import IngestConfig
from pipeline.errors import BadInput
from pipeline.measures import Pixels
from pipeline.pictures import Refused, decode
from pipeline.tars import read_members
from pipeline.warp import aligned

_CONFIG = IngestConfig()
_SIDE = 112
_FEW = 3
_EYES_FROM = 200
"""Pictures from which on the mean face has eyes in it."""
_OFF_PX = 6.0


@dataclass(frozen=True)
class Faces:
    """Pictures by number."""

    names: Sequence[str]
    read: Callable[[int], bytes]
    mark: str
    """Changes when any picture or its place does, as far as names, sizes and times tell."""
    landmarks_N52: NDArray[np.float32] | None = None
    """Five points in each picture; None when they are aligned crops."""

    def __len__(self) -> int:
        return len(self.names)

    def crops(self, numbers: Iterable[int], side: int) -> NDArray[np.uint8]:
        """RGB crops [B, side, side, 3]. Raises BadInput naming a picture that is broken, or no aligned crop."""
        with ThreadPoolExecutor(4) as pool:
            return np.stack(list(pool.map(lambda number: self.crop(number, side), numbers)))

    def crop(self, number: int, side: int) -> Pixels:
        """One of them."""
        try:
            pixels = decode(self.read(number), _CONFIG).pixels
        except Refused as refused:
            raise BadInput(f"{self.names[number]}: {refused.status}, {refused.detail}. Take the set from its source again.") from refused
        if self.landmarks_N52 is not None:
            try:
                pixels = aligned(pixels, self.landmarks_N52[number].astype(np.float64), _SIDE)
            except ValueError as error:
                raise BadInput(f"{self.names[number]}: landmarks: {error}. Is the list of landmarks that of these pictures?") from error
        height, width = pixels.shape[:2]
        if height != width:
            raise BadInput(
                f"{self.names[number]} is {width} x {height}, and an aligned crop is a square (112 x 112). "
                "96 x 112 crops are of an older template: align the pictures again, docs/evaluation.md says how."
            )
        if height != side:
            way = cv2.INTER_AREA if side < height else cv2.INTER_LINEAR
            pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=way), np.uint8)
        return pixels


def in_folder(root: Path, names: Sequence[str], landmarks_N52: NDArray[np.float32] | None = None) -> Faces:
    """Faces of the files `root/name`. Raises BadInput naming the first that are missing, or lead out of the folder."""
    outside = [name for name in names if _leads_out(name)]
    if outside:
        raise BadInput(f"The list names {outside[0]!r}, which leads out of {root}. Take the list from its source again.")
    digest, missing = hashlib.sha256(), []
    for name in names:
        try:
            facts = os.stat(root / name)  # noqa: PTH116 - half a million of them
        except (OSError, ValueError):
            missing.append(name)
            continue
        digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    if missing:
        raise BadInput(
            f"{root} lacks {len(missing)} of {len(names)} pictures that the list names: {', '.join(missing[:_FEW])}. "
            "The figure would be of another set, so nothing is measured."
        )
    if landmarks_N52 is not None:
        digest.update(landmarks_N52.tobytes())

    def read(number: int) -> bytes:
        try:
            return (root / names[number]).read_bytes()
        except OSError as error:
            raise BadInput(f"{root / names[number]} cannot be read: {error.strerror}.") from error

    return Faces(names, read, digest.hexdigest(), landmarks_N52)


def in_tar(tar: Path, names: Sequence[str]) -> Faces:
    """Faces of members of a tar, held in memory as they are encoded. Raises BadInput as `in_folder`, and for a tar that is damaged."""
    wanted, contents = set(names), {}
    with tar.open("rb") as file:
        for member in read_members(file, limit=lambda name: _CONFIG.max_item_bytes if name in wanted else 0):
            if isinstance(member, str):
                raise BadInput(f"{tar} {member}. Take it from its source again.")
            if member.name in wanted and member.content is not None:
                contents[member.name] = member.content
    missing = [name for name in names if name not in contents]
    if missing:
        raise BadInput(f"{tar} lacks {len(missing)} of {len(names)} pictures that the list names: {', '.join(missing[:_FEW])}.")
    return in_memory(names, [contents[name] for name in names])


def in_memory(names: Sequence[str], contents: Sequence[bytes]) -> Faces:
    """Faces of pictures that were read already."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return Faces(names, lambda number: contents[number], digest.hexdigest())


def check_template(faces: Faces, where: str) -> None:
    """Raise BadInput when the eyes of the mean face do not lie where the ArcFace template has them. Few pictures say nothing.

    The darkest places of the mean of some hundred near frontal faces are the eyes. Of 13,232 crops of LFW they lie within 3 pixels of the template;
    crops of the 96 x 112 template, shrunk or unaligned ones are 8 and more away, which costs 10 points of TAR.
    """
    if len(faces) < _EYES_FROM:
        return
    chosen = np.linspace(0, len(faces) - 1, 2 * _EYES_FROM).astype(int)
    mean = np.zeros((_SIDE, _SIDE), np.float32)
    for number in chosen:
        mean += np.asarray(cv2.cvtColor(faces.crop(int(number), _SIDE), cv2.COLOR_RGB2GRAY), np.float32) / len(chosen)
    found, wanted = _eyes(mean), TEMPLATE_112[:2]
    off = float(np.abs(np.vstack([found.mean(0) - wanted.mean(0), np.diff(found, axis=0)[0] - np.diff(wanted, axis=0)[0]])).max())
    if off > _OFF_PX:
        (left_x, left_y), (right_x, right_y) = found.tolist()
        raise BadInput(
            f"{where} is not aligned to the ArcFace template: the eyes of its mean face lie at ({left_x:.0f}, {left_y:.0f}) and ({right_x:.0f}, {right_y:.0f}) "
            "of 112 x 112, and the template has them at (38, 52) and (74, 52). Align its pictures with five landmarks (docs/evaluation.md), or give --any-alignment."
        )


def _eyes(mean: NDArray[np.float32]) -> NDArray[np.float64]:
    """(x, y) of the left and the right eye of a mean face: where it is darkest against its surroundings."""
    darkness = cv2.GaussianBlur(mean, (0, 0), 8) - cv2.GaussianBlur(mean, (0, 0), 2)
    top, bottom, margin, middle = int(0.2 * _SIDE), int(0.65 * _SIDE), int(0.1 * _SIDE), _SIDE // 2
    eyes = []
    for first, last in ((margin, middle), (middle, _SIDE - margin)):
        row, column = divmod(int(np.argmax(darkness[top:bottom, first:last])), last - first)
        eyes.append((column + first, row + top))
    return np.array(eyes, np.float64)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name or not path.parts
