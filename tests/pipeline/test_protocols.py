import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadConfig, BadInput
from pipeline.protocols import PROTOCOLS, DistractorSet, IdentitySet, Known, PairSet, TemplateSet, open_set
from pipeline.protocols.faces import check_template, in_memory
from pipeline.protocols.pairs import read_pair_list
from pipeline.render import encode
from pipeline.verification_bin import write_bin
from tests.pipeline.evaluation_sets import face, write_ijb, write_lfw, write_megaface, write_ytf


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_lfw(root / "lfw")
    write_ytf(root / "ytf")
    write_ijb(root / "ijb")
    write_megaface(root / "megaface")
    return root


@pytest.fixture
def copy(sets: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(sets / name, tmp_path / name))


def test_a_folder_a_tar_and_a_bin_of_one_set_are_the_same_pairs(sets: Path, tmp_path: Path) -> None:
    folder = open_set("mine", sets / "lfw")
    assert isinstance(folder, PairSet)
    assert (
        folder.counts() == {"pairs": 60, "genuine": 30} and folder.folds == 10 and folder.genuine_M[:6].tolist() == [True] * 3 + [False] * 3
    )
    first = (sets / "lfw" / "pairs.txt").read_text("utf-8").splitlines()[1].split("\t")
    assert folder.faces.names[folder.left_M[0]] == f"{first[0]}/{first[0]}_{int(first[1]):04d}.jpg"
    with tarfile.open(tmp_path / "crops.tar", "w") as tar:
        for name in folder.faces.names:
            tar.add(sets / "lfw" / name, name)
    shutil.copy(sets / "lfw" / "pairs.txt", tmp_path)
    from_tar = open_set("mine", tmp_path / "crops.tar")
    images = [folder.faces.read(number) for pair in zip(folder.left_M, folder.right_M, strict=True) for number in pair]
    write_bin(tmp_path / "mine.bin", images, folder.genuine_M.tolist())
    from_bin = open_set("mine", tmp_path / "mine.bin")
    assert isinstance(from_tar, PairSet) and isinstance(from_bin, PairSet)
    for other in (from_tar, from_bin):
        assert other.genuine_M.tolist() == folder.genuine_M.tolist()
        for side in ("left_M", "right_M"):
            ours, theirs = getattr(folder, side), getattr(other, side)
            assert [folder.faces.read(one) for one in ours] == [other.faces.read(one) for one in theirs]


def test_counts_of_a_benchmark_are_checked_and_another_name_is_not(sets: Path) -> None:
    with pytest.raises(BadInput, match=r"60 pairs, and lfw has 6,000; 30 genuine, and lfw has 3,000.*--protocol my-lfw="):
        open_set("lfw", sets / "lfw")
    with pytest.raises(BadInput, match=r"48 images, and IJBC has 469,375; 16 units, and IJBC has 23,124"):
        open_set("IJBC", sets / "ijb")
    with pytest.raises(BadConfig, match=r"Nothing tells how to read mine=.*Known names are lfw, cfp_fp"):
        open_set("mine", sets)


def test_a_list_that_was_shuffled_is_told(copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy("lfw")
    lines = (root / "pairs.txt").read_text("utf-8").splitlines()
    order = np.random.default_rng(0).permutation(len(lines) - 1) + 1
    (root / "pairs.txt").write_text("\n".join([lines[0], *[lines[number] for number in order]]), "utf-8")
    with pytest.raises(BadInput, match=r"pairs.txt line \d+: wanted a genuine pair \(name, i, j\): the list is shuffled"):
        open_set("mine", root)
    monkeypatch.setitem(PROTOCOLS, "toy", Known(about="", read=PROTOCOLS["lfw"].read, pairs=20, genuine=10, is_ordered=True))
    write_bin(root / "toy.bin", [encode(face(0, 0), 90)] * 40, [True, False] * 10)
    open_set("toy", root / "toy.bin")
    write_bin(root / "toy.bin", [encode(face(0, 0), 90)] * 40, [True, True, False, False, *[True, False] * 8])
    with pytest.raises(BadInput, match="folds 1, 2 have not as many genuine as impostor pairs"):
        open_set("toy", root / "toy.bin")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "line 1: wanted the number of folds"),
        ("10 x", "line 1: wanted the number of folds"),
        ("1\t2\nada\t1\t2", r"has 1 pairs, and its first line promises 1 x 2 x 2"),
        ("1\t1\nada\t1\t2\nbea\t1\tcem\tx", "line 3: invalid literal"),
        ("1\t1\nada\t1\t1\nbea\t1\tcem\t1", "line 2: a picture is compared with itself"),
        ("1\t1\nada\t1\t2\nbea\t1\tbea\t2", "line 3: .*an impostor pair is of one name"),
        ("1\t1\n../../etc\t1\t2\nbea\t1\tcem\t1", r"line 2: '\.\./\.\./etc' number 1 is no picture"),
        ("1\t1\n..\t1\t2\nbea\t1\tcem\t1", "line 2: .* is no picture of an identity"),
    ],
)
def test_a_pair_list_that_is_damaged_or_hostile_is_told_by_its_line(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(lines, "utf-8")
    with pytest.raises(BadInput, match=message):
        read_pair_list(tmp_path / "pairs.txt")


def test_a_path_that_is_no_pair_set_is_told_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "somefile").write_bytes(b"x")
    with pytest.raises(
        BadInput, match=r"somefile is no pair set: lfw wants insightface's .bin file, or a folder with pairs.txt and the pictures"
    ):
        open_set("lfw", tmp_path / "somefile")
    with pytest.raises(BadInput, match=r"There is no .*/pairs.txt: lfw wants the list of its pairs in that folder, with the pictures"):
        open_set("lfw", tmp_path)
    with tarfile.open(tmp_path / "crops.tar", "w"):
        pass
    with pytest.raises(BadInput, match=r"There is no .*/pairs.txt: lfw wants the list of its pairs beside the .tar, or insightface's .bin"):
        open_set("lfw", tmp_path / "crops.tar")


def test_missing_pictures_are_named(copy: Callable[[str], Path]) -> None:
    root = copy("lfw")
    lost = next(iter(sorted((root / "Person_03").glob("*.jpg"))))
    for picture in root.rglob("Person_03_*.jpg"):
        picture.unlink()
    with pytest.raises(
        BadInput, match=rf"lacks \d of \d+ pictures that the list names: {lost.parent.name}/{lost.name[:9]}.*nothing is measured"
    ):
        open_set("mine", root)
    with pytest.raises(BadInput, match="There is nothing at"):
        open_set("lfw", root / "nowhere")


def test_a_picture_that_is_broken_or_no_crop_is_told(tmp_path: Path) -> None:
    whole = encode(face(0, 0), 90)
    faces = in_memory(["a", "b", "c"], [whole, whole[: len(whole) // 2], encode(face(0, 0)[:, 8:104], 90)])
    assert faces.crops([0], 56).shape == (1, 56, 56, 3)
    with pytest.raises(BadInput, match="b: truncated"):
        faces.crop(1, 112)
    with pytest.raises(BadInput, match=r"c is 96 x 112, and an aligned crop is a square.*older template"):
        faces.crop(2, 112)


def test_the_wrong_alignment_template_is_seen_in_the_mean_face() -> None:
    right = [face(number // 2, number) for number in range(200)]
    faces = in_memory([str(number) for number in range(200)], [encode(pixels, 90) for pixels in right])
    check_template(faces, "set")
    for wrong in (
        lambda pixels: np.roll(pixels, -9, 1),
        lambda pixels: np.roll(pixels, 11, 0),
        lambda pixels: np.pad(pixels, ((16, 16), (16, 16), (0, 0))),
    ):
        moved = in_memory(faces.names, [encode(np.ascontiguousarray(wrong(pixels)), 90) for pixels in right])
        with pytest.raises(BadInput, match=r"set is not aligned to the ArcFace template: the eyes of its mean face lie at \(\d+, \d+\)"):
            check_template(moved, "set")
    check_template(in_memory(faces.names[:20], [faces.read(0)] * 20), "few pictures say nothing")


def test_videos_are_units_of_frames(sets: Path, copy: Callable[[str], Path]) -> None:
    found = open_set("mine", sets / "ytf")
    assert isinstance(found, PairSet)
    assert found.units == 12 and len(found.faces) == 24 and found.folds == 2 and np.bincount(found.unit_N).tolist() == [2] * 12
    root = copy("ytf")
    text = (root / "splits.txt").read_text("utf-8")
    for line, message in (
        ("2, Person_00/0, Person_01/1", "line 14: wanted `split, Name/1, Name/2, 1`"),
        ("2, ../x, Person_01/1, 0", "which leads out"),
        ("1, Person_00/0, Person_01/1, 0", "splits of "),
    ):
        (root / "splits.txt").write_text("\n".join([*text.splitlines()[: None if "wanted" in message else -1], line]), "utf-8")
        with pytest.raises(BadInput, match=message):
            open_set("mine", root)
    (root / "splits.txt").write_text(text, "utf-8")
    for frame in (root / "Person_00" / "0").iterdir():
        frame.unlink()
    with pytest.raises(BadInput, match="no frames of 1 of 12 videos: Person_00/0"):
        open_set("mine", root)


def test_templates_with_their_lists(sets: Path) -> None:
    found = open_set("mine", sets / "ijb")
    assert isinstance(found, TemplateSet) and found.probes is not None
    assert found.counts() == {"images": 48, "units": 16, "pairs": 64, "genuine": 8}
    assert found.detector_N[:3].tolist() == pytest.approx([0.9, 0.8, 0.7]) and found.template_N[[0, 3, 47]].tolist() == [0, 1, 71]
    assert {name: one.subject_T.tolist() for name, one in found.galleries.items()} == {"G1": [0, 1, 2, 3], "G2": [4, 5, 6, 7]}
    crop = found.faces.crop(0, 112).astype(int)
    assert np.abs(crop[8:-8, 8:-8] - face(0, 0).astype(int)[8:-8, 8:-8]).mean() < 6, (
        "landmarks bring the loose crop back to the aligned face"
    )


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("face_tid_mid.txt", lambda text: "\n".join(reversed(text.splitlines())), "not of the same images in the same order"),
        ("face_tid_mid.txt", lambda text: text.split("\n", 1)[1], r"\(48 lines\) and that of templates \(47\)"),
        ("face_tid_mid.txt", lambda text: text.replace(" 0 ", " x "), "is damaged"),
        ("name_5pts_score.txt", lambda text: text.replace(" 0.900", " 7"), r"detector scores in 0\.\.1"),
        ("name_5pts_score.txt", lambda text: text.replace("1.jpg", "../1.jpg"), "not of the same images"),
        ("template_pair_label.txt", lambda text: text + "0 99 0\n", r"the pair list names 1 templates that have no image \(99\)"),
        ("template_pair_label.txt", lambda text: text.replace(" 1\n", " 2\n"), "third column"),
        ("1N_gallery_G1.csv", lambda text: text + "555,5\n", r"toy_1N_gallery_G1.csv names 1 templates that have no image \(555\)"),
        ("1N_probe_mixed.csv", lambda text: text.replace("1,0,", "one,0,", 1), "is damaged"),
    ],
)
def test_lists_of_templates_that_do_not_fit_are_told(
    copy: Callable[[str], Path], file: str, change: Callable[[str], str], message: str
) -> None:
    root = copy("ijb")
    path = root / "meta" / f"toy_{file}"
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(BadInput, match=message):
        open_set("mine", root)


def test_lists_that_lead_out_of_the_folder_are_refused(copy: Callable[[str], Path]) -> None:
    root = copy("ijb")
    for file in ("face_tid_mid", "name_5pts_score"):
        path = root / "meta" / f"toy_{file}.txt"
        path.write_text(path.read_text("utf-8").replace("1.jpg", "../1.jpg"), "utf-8")
    with pytest.raises(BadInput, match=r"names '\.\./1\.jpg', which leads out of"):
        open_set("mine", root)


def test_probes_distractors_and_what_is_noise_among_them(sets: Path, copy: Callable[[str], Path]) -> None:
    found = open_set("mine", sets / "megaface")
    assert isinstance(found, DistractorSet)
    assert found.identity_P.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and found.counts() == {"units": 12, "distractors": 12}
    assert np.flatnonzero(found.noisy_P).tolist() == [3] and np.flatnonzero(found.noisy_M).tolist() == [0]
    root = copy("megaface")
    (root / "megaface_noises.txt").write_text("1\ta/b/c.jpg\n", "utf-8")
    with pytest.raises(BadInput, match="1 of 1 pictures that are not in the set"):
        open_set("mine", root)
    (root / "megaface_noises.txt").unlink()
    again = open_set("mine", root)
    assert isinstance(again, DistractorSet) and not again.noisy_M.any()
    (root / "facescrub_lst").write_text("x.jpg\n", "utf-8")
    with pytest.raises(BadInput, match=r"'x\.jpg' has too few parts"):
        open_set("mine", root)


def test_a_folder_of_people(sets: Path, tmp_path: Path) -> None:
    found = open_set("all-pairs", sets / "lfw")
    assert (
        isinstance(found, IdentitySet)
        and len(found.names) == 12
        and found.identity_N.tolist() == [who for who in range(12) for _ in range(4)]
    )
    (tmp_path / "one").mkdir()
    with pytest.raises(BadInput, match="0 pictures of 0 people"):
        open_set("all-pairs", tmp_path)
