"""Sets of pairs: insightface's `.bin` files, and folders or tars of aligned crops with a pair list in the format of LFW's `pairs.txt`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.protocols.faces import Faces, in_folder, in_memory, in_tar
from pipeline.verification_bin import read_bin

VERSION = "verification/1"
PAIRS = "pairs.txt"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_LIST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PairSet:
    """Pairs of units; a unit is a picture, or all frames of a video."""

    faces: Faces
    unit_N: NDArray[np.int64]
    """Of each picture, the unit that it belongs to."""
    units: int
    left_M: NDArray[np.int64]
    right_M: NDArray[np.int64]
    genuine_M: NDArray[np.bool_]
    folds: int = 10
    protocol: str = VERSION

    def counts(self) -> dict[str, int]:
        """What can be compared with the numbers of a benchmark."""
        return {"pairs": len(self.genuine_M), "genuine": int(self.genuine_M.sum())}


@dataclass(frozen=True)
class PairList:
    """A pair list: (identity, number of its picture) on either side of each pair."""

    left: list[tuple[str, int]]
    right: list[tuple[str, int]]
    genuine: list[bool]
    folds: int


def read_pairs(path: Path, name: str) -> PairSet:
    """The pairs of a `.bin` file, or those of the `pairs.txt` in a folder or beside a tar of crops `Name/Name_0001.jpg`.

    Raises BadInput: a file that is no such thing, a list that is damaged, or a picture that is missing.
    """
    if path.suffix == ".bin":
        images, flags = read_bin(path)
        faces = in_memory([f"{path} image {number}" for number in range(len(images))], images)
        number_N = np.arange(len(images))
        return PairSet(faces, number_N, len(images), number_N[0::2], number_N[1::2], np.array(flags))
    if not path.exists():
        raise BadInput(f"There is nothing at {path}. {name} wants a .bin file, or a folder or tar of aligned crops with {PAIRS}.")
    if path.is_file() and path.suffix != ".tar":
        raise BadInput(
            f"{path} is no pair set: {name} wants insightface's .bin file, or a folder with {PAIRS} and the pictures Name/Name_0001.jpg, or a .tar "
            f"of these with {PAIRS} beside it. data/protocols/README.md says more."
        )
    text = path / PAIRS if path.is_dir() else path.with_name(PAIRS)
    if not text.is_file():
        where = "in that folder, with the pictures Name/Name_0001.jpg" if path.is_dir() else "beside the .tar"
        raise BadInput(
            f"There is no {text}: {name} wants the list of its pairs {where}, or insightface's .bin file instead. data/protocols/README.md says more."
        )
    listed = read_pair_list(text)
    keys = sorted({*listed.left, *listed.right})
    place = {key: number for number, key in enumerate(keys)}
    if path.is_dir():
        suffix = next((suffix for suffix in _SUFFIXES if (path / file_name(*keys[0], suffix)).is_file()), _SUFFIXES[0])
        faces = in_folder(path, [file_name(*key, suffix) for key in keys])
    else:
        faces = in_tar(path, [file_name(*key, _SUFFIXES[0]) for key in keys])
    left, right = (np.array([place[key] for key in side], np.int64) for side in (listed.left, listed.right))
    return PairSet(faces, np.arange(len(keys)), len(keys), left, right, np.array(listed.genuine), listed.folds)


def file_name(identity: str, number: int, suffix: str = ".jpg") -> str:
    """`Name/Name_0001.jpg`, LFW's own."""
    return f"{identity}/{identity}_{number:04d}{suffix}"


def read_pair_list(path: Path) -> PairList:
    """A list in LFW's format: `folds <tab> n` (or `n` for one fold), then n genuine (`name i j`) and n impostor (`name i name j`) lines a fold.

    Raises BadInput with the number of the line that is wrong, or when the kinds do not come in the order that the header promises.
    """
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise BadInput(f"{path} has {path.stat().st_size} bytes, and a pair list has a few hundred thousand. Check the path.")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}. The pair list stands beside the pictures, as {PAIRS}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8: {error}.") from error
    try:
        header = [int(part) for part in lines[0].split()] if lines else []
    except ValueError:
        header = []
    if len(header) not in (1, 2) or min(header) < 1:
        raise BadInput(
            f"{path} line 1: wanted the number of folds and of pairs of a kind in each, as 10 <tab> 300. Take the list from its source again."
        )
    folds, each = header if len(header) == 2 else (1, header[0])
    rows = [line for line in lines[1:] if line.strip()]
    if len(rows) != 2 * folds * each:
        raise BadInput(
            f"{path} has {len(rows)} pairs, and its first line promises {folds} x 2 x {each}. Take the list from its source again."
        )
    left, right, genuine = [], [], []
    for number, line in enumerate(rows):
        parts = line.split("\t") if "\t" in line else line.split()
        same = number // each % 2 == 0
        try:
            if len(parts) != (3 if same else 4):
                raise ValueError(
                    f"wanted {'a genuine pair (name, i, j)' if same else 'an impostor pair (name, i, name, j)'}: the list is shuffled or damaged"
                )
            first, second = (parts[0], int(parts[1])), (parts[0], int(parts[2])) if same else (parts[2], int(parts[3]))
            for name, index in (first, second):
                if not name.strip() or "/" in name or "\\" in name or name in (".", "..") or "\0" in name or index < 0:
                    raise ValueError(f"{name!r} number {index} is no picture of an identity")
            if first == second or (not same and first[0] == second[0]):
                raise ValueError("a picture is compared with itself, or an impostor pair is of one name")
        except ValueError as error:
            raise BadInput(f"{path} line {number + 2}: {str(error)[:200]}. Take the list from its source again.") from error
        left.append(first)
        right.append(second)
        genuine.append(same)
    return PairList(left, right, genuine, folds if folds > 1 else 10)


def check_folds(found: PairSet, path: Path) -> None:
    """Raise BadInput unless each fold has as many genuine as impostor pairs: in another order k-fold accuracy is another figure."""
    uneven = [number for number, part in enumerate(np.array_split(found.genuine_M, found.folds), 1) if 2 * int(part.sum()) != len(part)]
    if uneven:
        raise BadInput(
            f"{path}: folds {', '.join(map(str, uneven[:5]))} have not as many genuine as impostor pairs, so the pairs are not in the protocol's order. "
            "Take the set from its source again."
        )
