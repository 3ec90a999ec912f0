import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from arcface_core.alignment import TEMPLATE_112
from flows.cli import app
from pipeline.errors import BadConfig, BadInput
from pipeline.make_pairs import draw_pairs, listed_pairs, write_list, write_pairs_bin
from pipeline.masks import masked
from pipeline.protocols import PairSet, open_set
from pipeline.protocols.pairs import read_pair_list
from tests.pipeline.evaluation_sets import face, write_lfw


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lfw(tmp_path_factory.mktemp("lfw") / "lfw", people=10, each=4)


def test_drawn_pairs_are_lfws_form_and_no_person_is_in_two_folds(lfw: Path, tmp_path: Path) -> None:
    found = draw_pairs(lfw, folds=2, pairs=8, seed=3)
    assert found.genuine_M.tolist() == ([True] * 8 + [False] * 8) * 2
    who = [[found.faces.names[number].split("/")[0] for number in side] for side in (found.left_M, found.right_M)]
    assert [one == other for one, other in zip(*who, strict=True)] == found.genuine_M.tolist()
    assert not set(who[0][:16] + who[1][:16]) & set(who[0][16:] + who[1][16:])
    assert len({frozenset(pair) for pair in zip(found.left_M.tolist(), found.right_M.tolist(), strict=True)}) == 32
    write_list(found, tmp_path / "pairs.txt")
    listed = read_pair_list(tmp_path / "pairs.txt")
    assert (listed.folds, listed.genuine) == (2, found.genuine_M.tolist()) and [name for name, _ in listed.left] == who[0]
    again = draw_pairs(lfw, folds=2, pairs=8, seed=3)
    assert np.array_equal(again.left_M, found.left_M) and not np.array_equal(draw_pairs(lfw, folds=2, pairs=8, seed=4).left_M, found.left_M)
    with pytest.raises(BadInput, match=r"people of fold 1 make \d+ genuine and impostor pairs, and 300 each are wanted.*--pairs"):
        draw_pairs(lfw, folds=2)


def test_a_bin_holds_the_pictures_byte_for_byte_and_insightface_reads_it(lfw: Path, tmp_path: Path) -> None:
    found = listed_pairs(lfw)
    write_pairs_bin(found, tmp_path / "mine.bin")
    images, flags = pickle.loads((tmp_path / "mine.bin").read_bytes())
    assert flags == found.genuine_M.tolist() and len(images) == 2 * len(flags)
    assert images[0] == found.faces.read(int(found.left_M[0])) and images[3] == found.faces.read(int(found.right_M[1]))
    write_pairs_bin(found, tmp_path / "masked.bin", masks=True)
    other, _ = pickle.loads((tmp_path / "masked.bin").read_bytes())
    assert other[1::2] == images[1::2] and all(one != two for one, two in zip(other[0::2], images[0::2], strict=True))
    assert isinstance(open_set("masked", tmp_path / "masked.bin"), PairSet)


def test_pictures_of_other_forms_are_brought_to_112(tmp_path: Path) -> None:
    for who in range(4):
        (tmp_path / "crops" / str(who)).mkdir(parents=True)
        for take in range(3):
            grown = cv2.resize(face(who, take)[..., ::-1], (160, 160))
            assert cv2.imwrite(str(tmp_path / "crops" / str(who) / f"{take}.png"), grown)
    found = draw_pairs(tmp_path / "crops", folds=2, pairs=2)
    write_pairs_bin(found, tmp_path / "x.bin")
    images, _ = pickle.loads((tmp_path / "x.bin").read_bytes())
    assert {cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).shape for image in images} == {(112, 112, 3)}
    with pytest.raises(BadInput, match=r"is not named as Name/Name_0001\.jpg"):
        write_list(found, tmp_path / "x.txt")


def test_a_mask_hides_mouth_and_nose_tip_and_no_eye() -> None:
    plain = face(0, 0)
    with_mask = masked(plain, np.random.default_rng(0))
    changed = np.abs(with_mask.astype(int) - plain.astype(int)).sum(2) > 12
    for x, y in TEMPLATE_112[3:]:
        assert changed[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean() > 0.8
    assert changed[68:76, 50:62].mean() > 0.8, "the tip of the nose"
    assert not changed[40:56, 30:82].any(), "the eyes"
    assert np.array_equal(with_mask, masked(plain, np.random.default_rng(0)))
    looks = {tuple(masked(plain, np.random.default_rng(seed))[95, 56]) for seed in range(8)}
    assert len(looks) > 3


def test_a_mask_follows_landmarks_anywhere_and_a_turned_head() -> None:
    large = cv2.warpAffine(face(1, 0), np.array([[2.0, 0, 30], [0, 2.0, 60]]), (300, 320))
    points = TEMPLATE_112 * 2 + [30, 60]
    changed = np.abs(masked(np.asarray(large, np.uint8), np.random.default_rng(0), points).astype(int) - large).sum(2) > 12
    assert changed[230:250, 130:155].mean() > 0.9 and not changed[:150, 90:200].any()
    turned = TEMPLATE_112 + np.array([[0, 0], [0, 0], [12, 0], [0, 0], [0, 0]])
    ahead, aside = (
        np.abs(masked(face(2, 0), np.random.default_rng(1), p).astype(int) - face(2, 0)).sum(2) > 12 for p in (TEMPLATE_112, turned)
    )
    assert np.argwhere(aside[60:64]).mean(0)[1] > np.argwhere(ahead[60:64]).mean(0)[1] + 3, "its upper edge lies where the nose is"
    with pytest.raises(ValueError, match="five finite points"):
        masked(face(0, 0), np.random.default_rng(0), np.full((5, 2), np.nan))


def test_the_command_writes_either(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["make-pairs", str(lfw), str(tmp_path / "a.bin"), "--folds", "2", "--pairs", "5", "--masked"], result_action="return_value")
    app(["make-pairs", str(lfw), str(tmp_path / "a.txt"), "--folds", "2", "--pairs", "5"], result_action="return_value")
    assert capsys.readouterr().out.count("20 pairs, 10 of them genuine") == 2
    for given, message in (
        ([str(tmp_path / "a.bin")], "is there already"),
        ([str(tmp_path / "b.zip")], "a .bin file"),
        ([str(tmp_path / "b.txt"), "--masked"], "a .bin file"),
    ):
        with pytest.raises(BadConfig, match=message):
            app(["make-pairs", str(lfw), *given], result_action="return_value")
