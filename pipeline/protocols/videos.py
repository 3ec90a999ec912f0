"""YouTube Faces: videos of aligned frames, compared by the mean of their frames."""

from pathlib import Path

import numpy as np

from pipeline.errors import BadInput
from pipeline.protocols.faces import in_folder
from pipeline.protocols.pairs import PairSet

VERSION = "videos/1"
SPLITS = "splits.txt"
_FRAMES = (".jpg", ".jpeg", ".png")
_FIELDS = 4
_FEW = 3


def read_ytf(path: Path, name: str) -> PairSet:
    """The pairs of `splits.txt` (`split, Name/1, Name/2, 1` a line, after a header) in a folder of aligned frames `Name/1/*.jpg`.

    Raises BadInput: a line that is none, splits out of order or not of one size, or a video without frames.
    """
    text = path / SPLITS
    try:
        lines = text.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{text} cannot be read: {error}. {name} wants a folder of aligned frames with {SPLITS} in it.") from error
    split, pairs, genuine = [], [], []
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split(",")]
        if not line.strip() or (number == 1 and not parts[0].isdecimal()):
            continue
        if len(parts) != _FIELDS or not parts[0].isdecimal() or parts[3] not in ("0", "1"):
            raise BadInput(f"{text} line {number}: wanted `split, Name/1, Name/2, 1`. Take the list from its source again.")
        split.append(int(parts[0]))
        pairs.append((parts[1], parts[2]))
        genuine.append(parts[3] == "1")
    sizes = np.unique(split, return_counts=True)[1] if split else np.zeros(0, np.int64)
    if len(sizes) < 2 or len(set(sizes.tolist())) != 1 or split != sorted(split):
        raise BadInput(
            f"{text} has splits of {sizes.tolist()} pairs; wanted at least two, of one size, in order. Take the list from its source again."
        )
    videos = sorted({video for pair in pairs for video in pair})
    frames = [_frames(path, video) for video in videos]
    empty = [video for video, found in zip(videos, frames, strict=True) if not found]
    if empty:
        raise BadInput(
            f"{path} has no frames of {len(empty)} of {len(videos)} videos: {', '.join(empty[:_FEW])}. They are {', '.join(_FRAMES)} files."
        )
    place = {video: number for number, video in enumerate(videos)}
    unit_N = np.repeat(np.arange(len(videos)), [len(found) for found in frames])
    faces = in_folder(path, [frame for found in frames for frame in found])
    left, right = (np.array([place[pair[side]] for pair in pairs], np.int64) for side in (0, 1))
    return PairSet(faces, unit_N, len(videos), left, right, np.array(genuine), len(sizes), VERSION)


def _frames(root: Path, video: str) -> list[str]:
    parts = Path(video).parts
    if ".." in parts or Path(video).is_absolute() or not parts or "\0" in video:
        raise BadInput(f"{root / SPLITS} names the video {video!r}, which leads out of the folder. Take the list from its source again.")
    folder = root / video
    return sorted(f"{video}/{file.name}" for file in folder.iterdir() if file.suffix.lower() in _FRAMES) if folder.is_dir() else []
