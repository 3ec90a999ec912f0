"""Verification sets of one's own: pairs drawn from a folder of people, as a list in LFW's format or as an insightface `.bin`, with masks where wanted."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from arcface_core.protocols.verification import genuine_impostor_pairs
from pipeline import jpeg
from pipeline.errors import BadInput
from pipeline.masks import masked
from pipeline.protocols.faces import Faces
from pipeline.protocols.pairs import PairSet, read_pairs
from pipeline.protocols.persons import read_identities
from pipeline.receipts import atomic
from pipeline.render import encode
from pipeline.verification_bin import write_bin

_SIDE = 112
_QUALITY = 95
_JPEG = b"\xff\xd8\xff"
_LFW_NAME = re.compile(r"(?P<who>[^/]+)/(?P=who)_(?P<number>\d{4})\.[a-z]+")


def draw_pairs(folder: Path, *, folds: int = 10, pairs: int = 300, seed: int = 0) -> PairSet:
    """`pairs` genuine and as many impostor pairs a fold, from aligned crops `folder/person/*.jpg`; no person is in two folds, as in LFW.

    Genuine pairs are spread over people, no pair comes twice, and the same seed draws the same. Raises BadInput: when the people of a fold do not make as many.
    """
    found = read_identities(folder, "make-pairs")
    rng = np.random.default_rng(seed)
    fold_of = rng.permutation(np.arange(len(found.names)) % folds)[found.identity_N]
    lefts, rights, flags = [], [], []
    for fold in range(folds):
        rows = np.flatnonzero(fold_of == fold)
        try:
            left, right, genuine = genuine_impostor_pairs(torch.from_numpy(found.identity_N[rows]), pairs=2 * pairs, seed=seed + fold)
        except ValueError:
            left, right, genuine = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
        if len(genuine) < 2 * pairs:
            raise BadInput(
                f"The {len(np.unique(found.identity_N[rows]))} people of fold {fold + 1} make {len(genuine) // 2} genuine and impostor pairs, "
                f"and {pairs} each are wanted. "
                "Ask for fewer (--pairs), or for fewer folds (--folds)."
            )
        for same in (True, False):  # first all genuine, then all impostor pairs, as LFW's list has them
            chosen = (genuine == same).numpy()
            lefts.append(rows[left.numpy()[chosen]])
            rights.append(rows[right.numpy()[chosen]])
            flags.append(genuine.numpy()[chosen])
    unit_N = np.arange(len(found.faces))
    return PairSet(found.faces, unit_N, len(unit_N), np.concatenate(lefts), np.concatenate(rights), np.concatenate(flags), folds)


def listed_pairs(place: Path) -> PairSet:
    """The pairs of a folder or a tar with its `pairs.txt`, as `purify evaluate` reads them."""
    return read_pairs(place, "make-pairs")


def write_list(found: PairSet, out: Path) -> None:
    """Write pairs of `draw_pairs` as a list in LFW's format. Raises BadInput unless files are named `Name/Name_0001.jpg`, which the format implies."""
    each = len(found.genuine_M) // (2 * found.folds)
    lines = [f"{found.folds}\t{each}"]
    for left, right, same in zip(found.left_M, found.right_M, found.genuine_M, strict=True):
        (who, first), (other, second) = _lfw(found.faces.names[left]), _lfw(found.faces.names[right])
        lines.append(f"{who}\t{first}\t{second}" if same else f"{who}\t{first}\t{other}\t{second}")
    with atomic(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def write_pairs_bin(found: PairSet, out: Path, *, masks: bool = False, seed: int = 0) -> None:
    """Write pairs as an insightface `.bin` of 112 x 112 crops. JPEGs of that size go in byte for byte.

    With `masks` the first picture of each pair wears a drawn mask: masked probe, bare gallery. Raises BadInput for a picture that cannot be used.
    """
    write_bin(out, _images(found.faces, found.left_M.tolist(), found.right_M.tolist(), masks, seed), found.genuine_M.tolist())


def _images(faces: Faces, left: Sequence[int], right: Sequence[int], masks: bool, seed: int) -> Iterator[bytes]:
    for number, (probe, gallery) in enumerate(zip(left, right, strict=True)):
        if masks:
            yield encode(masked(faces.crop(probe, _SIDE), np.random.default_rng([seed, number])), _QUALITY)
        else:
            yield _stored(faces, probe)
        yield _stored(faces, gallery)


def _stored(faces: Faces, number: int) -> bytes:
    content = faces.read(number)
    pixels = faces.crop(number, _SIDE)  # proves it whole
    header = jpeg.read_header(content) if content.startswith(_JPEG) else None
    is_crop = header is not None and (header.width, header.height) == (_SIDE, _SIDE) and header.exif is None
    return content if is_crop else encode(pixels, _QUALITY)


def _lfw(name: str) -> tuple[str, int]:
    found = _LFW_NAME.fullmatch(name)
    if found is None:
        raise BadInput(
            f"{name} is not named as Name/Name_0001.jpg, which a list in LFW's format implies. Write a .bin, which holds the pictures themselves."
        )
    return found["who"], int(found["number"])
