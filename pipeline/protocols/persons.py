"""A folder per person, all pictures with all: the form of Trillion-Pairs, LFR2019 and MFR-ALL."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.protocols.faces import Faces, in_folder

VERSION = "all-pairs/1"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class IdentitySet:
    """Pictures of people, sorted by person."""

    faces: Faces
    identity_N: NDArray[np.int64]
    names: list[str]
    """Of the people."""
    protocol: str = VERSION

    def counts(self) -> dict[str, int]:
        """What can be compared with the numbers of a benchmark."""
        return {"images": len(self.faces), "units": len(self.names)}


def read_identities(path: Path, name: str) -> IdentitySet:
    """The aligned crops `path/person/*.jpg`. Raises BadInput: no such folder, or fewer than two people, or nobody with two pictures."""
    if not path.is_dir():
        raise BadInput(f"There is no folder {path}. {name} wants a folder of aligned crops per person.")
    people = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    files = [sorted(file.name for file in (path / one).iterdir() if file.suffix.lower() in SUFFIXES) for one in people]
    names: list[str] = []
    listed: list[str] = []
    identity: list[int] = []
    for one, found in zip(people, files, strict=True):
        if found:
            listed += [f"{one}/{file}" for file in found]
            identity += [len(names)] * len(found)
            names.append(one)
    if len(names) < 2 or len(listed) == len(names):
        raise BadInput(
            f"{path} has {len(listed)} pictures of {len(names)} people: two people, and one of them with two pictures, are wanted."
        )
    return IdentitySet(in_folder(path, listed), np.array(identity, np.int64), names)
