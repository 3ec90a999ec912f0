"""MegaFace challenge 1 in insightface's test suite: aligned FaceScrub probes, a million distractors, and lists of what is wrong among them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.protocols.faces import Faces, in_folder

VERSION = "megaface/1"
_FEW = 3


@dataclass(frozen=True)
class DistractorSet:
    """Probes of few people, and distractors who are none of them. `noisy`: what the lists of noise name; all False without lists."""

    probes: Faces
    identity_P: NDArray[np.int64]
    noisy_P: NDArray[np.bool_]
    distractors: Faces
    noisy_M: NDArray[np.bool_]
    protocol: str = VERSION

    def counts(self) -> dict[str, int]:
        """What can be compared with the numbers of a benchmark."""
        return {"units": len(self.probes), "distractors": len(self.distractors)}


def read_megaface(path: Path, name: str) -> DistractorSet:
    """The set in a folder with `facescrub_images/`, `megaface_images/`, `facescrub_lst`, `megaface_lst`, and for refined figures `facescrub_noises.txt` and
    `megaface_noises.txt`. A list has a path a line, of which the last two (probes: person, file) or three (distractors) parts name the picture.

    Raises BadInput: a list that is missing or empty, a picture that is missing, or noise that names no picture of the set.
    """
    probes = _tails(path / "facescrub_lst", name, 2)
    distractors = _tails(path / "megaface_lst", name, 3)
    noisy = _noise(path / "facescrub_noises.txt", {probe.split("/")[-1] for probe in probes})
    wrong = _noise(path / "megaface_noises.txt", set(distractors))
    _, identity = np.unique([probe.split("/")[0] for probe in probes], return_inverse=True)
    return DistractorSet(
        probes=in_folder(path / "facescrub_images", probes),
        identity_P=identity.astype(np.int64),
        noisy_P=np.array([probe.split("/")[-1] in noisy for probe in probes]),
        distractors=in_folder(path / "megaface_images", distractors),
        noisy_M=np.array([distractor in wrong for distractor in distractors]),
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}. data/protocols/README.md lists what belongs there.") from error


def _tails(path: Path, name: str, parts: int) -> list[str]:
    tails = ["/".join(line.split("/")[-parts:]) for line in _lines(path)]
    short = [tail for tail in tails if tail.count("/") != parts - 1]
    if not tails or short or len(set(tails)) != len(tails):
        what = f"{short[0]!r} has too few parts" if short else f"{len(tails)} lines, {len(set(tails))} different"
        raise BadInput(f"{path}: {what}; {name} wants a path a line, none twice. Take the list from its source again.")
    return tails


def _noise(path: Path, known: set[str]) -> set[str]:
    if not path.exists():
        return set()
    named = {line.split("\t")[-1] for line in _lines(path)}
    foreign = sorted(named - known)
    if len(foreign) > len(named) // 2:
        raise BadInput(
            f"{path} names {len(foreign)} of {len(named)} pictures that are not in the set ({', '.join(foreign[:_FEW])}): it is of another set."
        )
    return named & known
