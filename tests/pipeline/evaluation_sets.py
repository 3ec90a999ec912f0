"""Small evaluation sets of drawn faces, in the forms of the real ones, and an embedder that tells drawn people apart without any training."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.embedders import Embedder
from pipeline.measures import Pixels
from pipeline.render import encode, person, render


def face(who: int, take: int, side: int = 112) -> Pixels:
    return render(person(0, who), np.random.default_rng([who, take]), side)


def colours() -> Embedder:
    """Features: a coarse picture of the middle of the face, less its mean. The same person is drawn in the same colours."""

    def embed(images: Tensor) -> Tensor:
        small = (
            torch.nn.functional.adaptive_avg_pool2d(images.float()[:, :, 24:96, 24:88], 6).flatten(1)
            if len(images)
            else torch.zeros(0, 108)
        )
        return small - 128

    return Embedder(name="colours", kind="torch", sha256="c" * 64, input_px=112, dim=108, embed=embed, module=None)


def blind() -> Embedder:
    """Features that say how bright a picture is, and nothing of who is in it."""

    def embed(images: Tensor) -> Tensor:
        light = images.float().mean((1, 2, 3)) - 100
        return torch.stack([light, light**2 / 50, torch.ones_like(light) * 9], 1)

    return Embedder(name="blind", kind="torch", sha256="b" * 64, input_px=112, dim=3, embed=embed, module=None)


def write_lfw(root: Path, *, people: int = 12, each: int = 4, folds: int = 10, pairs: int = 3) -> Path:
    """A folder of crops `Person_00/Person_00_0001.jpg` with a pairs.txt of `folds` x `pairs` genuine and impostor pairs."""
    for who in range(people):
        (root / _name(who)).mkdir(parents=True)
        for take in range(1, each + 1):
            (root / _name(who) / f"{_name(who)}_{take:04d}.jpg").write_bytes(encode(face(who, take), 92))
    rng = np.random.default_rng(0)
    lines = [f"{folds}\t{pairs}"]
    for _ in range(folds):
        for _ in range(pairs):
            first, second = rng.choice(each, 2, replace=False) + 1
            lines.append(f"{_name(int(rng.integers(people)))}\t{first}\t{second}")
        for _ in range(pairs):
            one, other = rng.choice(people, 2, replace=False)
            first, second = rng.integers(1, each + 1, 2)
            lines.append(f"{_name(int(one))}\t{first}\t{_name(int(other))}\t{second}")
    (root / "pairs.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return root


def write_ytf(root: Path, *, people: int = 6, frames: int = 2, splits: int = 2, pairs: int = 6) -> Path:
    """Two videos a person, `Person_00/0/frame.1.jpg`, and splits.txt."""
    for who in range(people):
        for video in range(2):
            folder = root / _name(who) / str(video)
            folder.mkdir(parents=True)
            for frame in range(frames):
                (folder / f"frame.{frame}.jpg").write_bytes(encode(face(who, 10 * video + frame), 92))
    lines = ["split number, first name, second name, is same"]
    for split in range(1, splits + 1):
        for number in range(pairs):
            one = (number + split) % people
            other = one if number % 2 == 0 else (one + 1) % people
            lines.append(f"{split}, {_name(one)}/0, {_name(other)}/1, {int(one == other)}")
    (root / "splits.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return root


POINTS: NDArray[np.float64] = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def write_ijb(root: Path, *, people: int = 8, images: int = 3) -> Path:
    """Two templates a person, of loose crops (the face 1.5 times as large, moved by 20), their lists, and 1:N of the first templates as galleries."""
    meta, crops = root / "meta", root / "loose_crop"
    meta.mkdir(parents=True)
    crops.mkdir()
    landmarks, media = [], []
    number = 0
    for who in range(people):
        for side in range(2):
            for take in range(images):
                number += 1
                grown = cv2.warpAffine(face(who, 10 * side + take), np.array([[1.5, 0, 20.0], [0, 1.5, 20]]), (208, 208))
                (crops / f"{number}.jpg").write_bytes(encode(np.asarray(grown, np.uint8), 92))
                points = " ".join(f"{value:.3f}" for value in (POINTS * 1.5 + 20).ravel())
                landmarks.append(f"{number}.jpg {points} {0.9 - 0.1 * take:.3f}")
                media.append(f"{number}.jpg {10 * who + side} {100 * who + 10 * side + take // 2}")
    pairs = [f"{10 * one} {10 * other + 1} {int(one == other)}" for one in range(people) for other in range(people)]
    (meta / "toy_name_5pts_score.txt").write_text("\n".join(landmarks) + "\n", "utf-8")
    (meta / "toy_face_tid_mid.txt").write_text("\n".join(media) + "\n", "utf-8")
    (meta / "toy_template_pair_label.txt").write_text("\n".join(pairs) + "\n", "utf-8")
    half = people // 2
    for name, whom in (("gallery_G1", range(half)), ("gallery_G2", range(half, people))):
        (meta / f"toy_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n" + "".join(f"{10 * who},{who}\n" for who in whom), "utf-8")
    probes = "".join(f"{10 * who + 1},{who},x{who}\n" for who in range(people))
    (meta / "toy_1N_probe_mixed.csv").write_text(f"TEMPLATE_ID,SUBJECT_ID,FILENAME\n{probes}", "utf-8")
    return root


def write_megaface(root: Path, *, people: int = 3, each: int = 4, distractors: int = 12) -> Path:
    """FaceScrub probes and distractors in insightface's layout; the last probe of the first person and the first distractor are noise."""
    probes, others = [], []
    for who in range(people):
        for take in range(each):
            wrong = who == 0 and take == each - 1
            probes.append(f"{_name(who)}/{_name(who)}_{take}.jpg")
            _write(root / "facescrub_images" / probes[-1], face(500 if wrong else who, take))
    for number in range(distractors):
        others.append(f"{number % 3}/{number}@N0/{number}_0.jpg")
        _write(root / "megaface_images" / others[-1], face(0 if number == 0 else 600 + number, number))
    (root / "facescrub_lst").write_text("".join(f"facescrub_images/{name}\n" for name in probes), "utf-8")
    (root / "megaface_lst").write_text("".join(f"megaface_images/{name}\n" for name in others), "utf-8")
    (root / "facescrub_noises.txt").write_text(f"# not of the person\n{probes[each - 1].split('/')[1]}\n", "utf-8")
    (root / "megaface_noises.txt").write_text(f"# in FaceScrub\n1\t{others[0]}\n", "utf-8")
    return root


def _name(who: int) -> str:
    return f"Person_{who:02d}"


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels, 92))
