"""Faces out of photos: detectors with models made here, the main face, all faces, hostile models, the real photographs where they are."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from arcface_core.alignment import TEMPLATE_112
from pipeline import faces
from pipeline.config import Config, IngestConfig
from pipeline.detectors.base import in_short
from pipeline.detectors.scrfd import not_overlapping
from pipeline.errors import BadConfig, BadInput
from pipeline.examine import examine
from pipeline.faces import DETECTORS, Face, ranked
from pipeline.ingest import ingest
from pipeline.measures import Pixels
from pipeline.shards import shard_stems
from pipeline.sources import Item
from tests.pipeline import detector_models


def photo(width: int, height: int, cells: list[tuple[int, int]], *, cell: int = 16) -> Pixels:
    """A dark picture with white cells, at which the made models find faces."""
    pixels = np.random.default_rng(0).integers(0, 60, (height, width, 3)).astype(np.uint8)
    for column, row in cells:
        pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 255
    return pixels


def coded(pixels: Pixels) -> bytes:
    done, content = cv2.imencode(".png", pixels[:, :, ::-1])
    assert done
    return content.tobytes()


def planted(column: float, row: float, *, cell: float = 16) -> NDArray[np.float64]:
    return (np.array([column, row]) + 0.5 + detector_models.POINTS) * cell


def found(pixels: Pixels, config: IngestConfig, uri: str = "a/1.png") -> list[tuple[dict[str, Any], bytes | None]]:
    return examine(Item(uri, "a", coded(pixels)), config)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, IngestConfig]:
    folder = tmp_path_factory.mktemp("models")
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: the extra onnx")
    return {
        "yunet": IngestConfig(detector="yunet", detector_model=str(detector_models.yunet(folder / "yunet.onnx"))),
        "scrfd": IngestConfig(detector="scrfd", detector_model=str(detector_models.scrfd(folder / "scrfd.onnx", side=640))),
    }


# --- what the models say ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(640, 480), (250, 250), (97, 641), (1280, 33)])
def test_yunet_finds_the_planted_face_at_its_place_in_pictures_of_any_size(
    models: dict[str, IngestConfig], width: int, height: int
) -> None:
    column, row = (width // 16 - 1) // 2, max(0, height // 16 - 1) // 2
    [(facts, crop)] = found(photo(width, height, [(column, row)]), models["yunet"])
    assert facts["status"] == "ok" and crop is not None and facts["face_number"] == 1, facts
    assert facts["landmarks_px"] == pytest.approx(planted(column, row).ravel(), abs=1e-3)
    assert facts["face_score"] == pytest.approx(1.0, abs=1e-3)
    box = [facts[f"face_{name}_px"] for name in ("x", "y", "width", "height")]
    assert box == pytest.approx([(column + 0.5 - 2.5) * 16, (row + 0.5 - 3) * 16, 80, 96], abs=1e-2)
    assert facts["yaw_deg"] == pytest.approx(0, abs=0.1) and facts["source_uri"] == "a/1.png"


@pytest.mark.parametrize(("width", "height"), [(640, 640), (640, 320), (320, 640), (160, 80)])
def test_scrfd_finds_the_planted_face_whatever_the_letterbox(models: dict[str, IngestConfig], width: int, height: int) -> None:
    cell = 16 * max(width, height) / 640  # a cell of the model, in pixels of the picture
    column, row = 12, 9
    pixels = np.zeros((height, width, 3), np.uint8)
    low, high = (np.array([column, row]) * cell).round().astype(int), (np.array([column + 1, row + 1]) * cell).round().astype(int)
    pixels[low[1] : high[1], low[0] : high[0]] = 255
    config = replace(models["scrfd"], min_face_px=5, min_face_score=0.55)
    [(facts, _)] = found(pixels, config)
    assert facts["status"] == "ok", facts
    assert facts["landmarks_px"] == pytest.approx(planted(column, row, cell=cell).ravel(), abs=0.5)
    box = [facts[f"face_{name}_px"] for name in ("x", "y", "width", "height")]
    assert box == pytest.approx([(column - 1.5) * cell, (row - 2) * cell, 4 * cell, 5 * cell], abs=0.5)
    assert 0.55 <= facts["face_score"] <= 1


def test_scrfd_of_free_size_and_the_order_of_colors(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: the extra onnx")
    config = IngestConfig(detector="scrfd", detector_model=str(detector_models.scrfd(tmp_path / "free.onnx")), min_face_score=0.9)
    assert found(photo(640, 640, [(20, 20)]), config)[0][0]["status"] == "ok"
    assert found(photo(640, 640, []), config)[0][0]["status"] == "no_face"


def test_large_pictures_are_reduced_for_the_model_and_the_answer_is_scaled_back(models: dict[str, IngestConfig]) -> None:
    pixels = np.zeros((1920, 2560, 3), np.uint8)
    pixels[960:992, 1280:1312] = 255  # one cell of 16 after halving
    for name, cell, width in (("yunet", (40, 30, 32), 160), ("scrfd", (20, 15, 64), 256)):  # 1,280 px for one, 640 px for the other
        [(facts, crop)] = found(pixels, replace(models[name], min_face_score=0.2))
        assert facts["status"] == "ok" and crop is not None
        assert facts["landmarks_px"] == pytest.approx(planted(cell[0], cell[1], cell=cell[2]).ravel(), abs=1.0)
        assert facts["face_width_px"] == pytest.approx(width, abs=1)


def test_no_face_says_why(models: dict[str, IngestConfig]) -> None:
    for name in ("yunet", "scrfd"):
        [(facts, crop)] = found(photo(320, 320, []), models[name])
        assert (facts["status"], facts["status_detail"], crop) == ("no_face", "no face found", None)
        large = replace(models[name], min_face_px=500)
        [(facts, _)] = found(photo(640, 640, [(20, 20)]), large)
        assert facts["status_detail"] == "1 faces found, none with a score of 0.6 and a side of 500 px"


def test_all_faces_are_samples_of_their_own_in_one_order(models: dict[str, IngestConfig]) -> None:
    pixels = photo(640, 480, [(20, 14), (4, 4), (34, 24)])
    one = found(pixels, models["yunet"])
    every = found(pixels, replace(models["yunet"], faces="all"))
    assert [row["source_uri"] for row, _ in every] == ["a/1.png", "a/1.png#face=2", "a/1.png#face=3"]
    assert [row["face_number"] for row, _ in every] == [1, 2, 3]
    assert len({row["sample_id"] for row, _ in every}) == 3 and len({row["content_sha256"] for row, _ in every}) == 1
    assert one[0] == every[0], "the first is the same however many are taken"
    assert every[0][0]["landmarks_px"] == pytest.approx(planted(20, 14).ravel(), abs=1e-3), "the most central"


# --- the main face ----------------------------------------------------------------------------------------------------------------------


def face(x: float, y: float, side: float, score: float | None = 0.9) -> Face:
    points = TEMPLATE_112 / 112 * side + [x, y]
    return Face(points, (x, y, side, side), score)


def test_the_rank_is_area_times_nearness_to_the_middle_with_stated_ties() -> None:
    config, size = IngestConfig(), (400, 300)

    def order(*given: Face) -> list[int]:
        best = ranked(given, size, config)
        return [next(n for n, one in enumerate(given) if one is picked) for picked in best]

    def value(one: Face) -> float:
        assert one.box is not None
        x, y, wide, high = one.box
        return wide * high * (1 - min(1, math.dist((x + wide / 2, y + high / 2), (200, 150)) / 250))

    crowd = [face(x, y, side) for x in (0, 90, 250) for y in (10, 120) for side in (30, 60, 110)]
    assert order(*crowd) == sorted(range(len(crowd)), key=lambda n: -value(crowd[n]))
    assert order(face(0, 0, 100), face(150, 100, 100)) == [1, 0], "of one size the central one"
    assert order(face(150, 100, 50), face(0, 100, 100)) == [1, 0], "a much larger one at the edge is the subject"
    assert order(face(100, 100, 50, 0.8), face(250, 150, 50, 0.9)) == [1, 0], "equal: the surer"
    assert order(face(250, 100, 50), face(100, 150, 50)) == [1, 0], "equal and as sure: the left"
    assert order(face(175, 150, 50), face(175, 100, 50)) == [1, 0], "then the upper"


def test_limits_are_included_and_what_is_not_finite_is_no_face() -> None:
    config = IngestConfig(min_face_score=0.5, min_face_px=24)
    assert len(ranked([face(0, 0, 24, 0.5)], (200, 200), config)) == 1
    assert not ranked([face(0, 0, 23.99, 0.5), face(0, 0, 24, 0.49)], (200, 200), config)
    bad = face(0, 0, 50)
    assert not ranked(
        [Face(bad.landmarks_px * math.nan, bad.box, 0.9), Face(bad.landmarks_px, (0, 0, math.inf, 5), 0.9)], (200, 200), config
    )
    assert len(ranked([Face(bad.landmarks_px)], (200, 200), config)) == 1, "points alone, as a file of landmarks gives"


def test_overlapping_boxes_go_to_the_surer_as_loops_say() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (60, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 60, (60, 2))])

    def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(wide, 0) * max(high, 0)
        return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))

    kept: list[int] = []
    for n, box in enumerate(boxes):
        if all(overlap(boxes[k], box) <= 0.4 for k in kept):
            kept.append(n)
    assert not_overlapping(boxes, 0.4).tolist() == kept and 5 < len(kept) < 60
    assert not_overlapping(np.empty((0, 4)), 0.4).size == 0


# --- landmarks from a file --------------------------------------------------------------------------------------------------------------


def test_landmarks_by_source_uri(tmp_path: Path) -> None:
    points = planted(20, 14).tolist()
    given = {
        "a/bare.png": points,
        "a/full.png": {"landmarks": points, "box": [290, 190, 80, 96], "score": 0.8, "faces": 2},
        "a/two.png": [{"landmarks": points}, {"landmarks": (planted(20, 14) + 100).tolist()}],
        "a/none.png": [],
        "a/unsure.png": {"landmarks": points, "score": 0.1},
    }
    (tmp_path / "points.json").write_text(json.dumps(given))
    config = IngestConfig(detector="landmarks", landmarks=str(tmp_path / "points.json"), faces="all")
    pixels = photo(640, 480, [])
    status = {uri: [row["status"] for row, _ in found(pixels, config, uri)] for uri in [*given, "a/unknown.png"]}
    assert status == {
        "a/bare.png": ["ok"],
        "a/full.png": ["ok"],
        "a/two.png": ["ok", "ok"],
        "a/none.png": ["no_face"],
        "a/unsure.png": ["no_face"],
        "a/unknown.png": ["no_face"],
    }
    [(row, _)] = found(pixels, config, "a/full.png")
    assert row["face_score"] == 0.8 and row["face_x_px"] == 290 and row["landmarks_px"] == pytest.approx(np.ravel(points))
    [(row, _)] = found(pixels, config, "a/bare.png")
    assert row["face_score"] is None and row["face_x_px"] is None and row["face_number"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no JSON object of landmarks by source_uri"),
        ("{", "no JSON object"),
        ('{"a": [[1, 2], [3, 4]]}', "'a' has no five points"),
        ('{"a": {"box": [1, 2, 3, 4]}}', "'a' has no five points"),
        ('{"a": 7}', "'a' has no five points"),
        ('{"a": {"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]], "box": [1]}}', "a box is"),
        ('{"a": {"landmarks": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]], "box": ["a", 2, 3, 4]}}', "'a' has no five points"),
        ('{"a": null}', "'a' has no five points"),
    ],
)
def test_files_that_are_no_landmarks_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(BadInput, match=message):
        faces.inputs(IngestConfig(detector="landmarks", landmarks=str(tmp_path / "points.json")))


# --- models that are none, and settings that do not fit --------------------------------------------------------------------------------


def test_settings_that_do_not_fit_are_refused_with_the_next_step(tmp_path: Path) -> None:
    for settings, message in (
        ({"detector": "yunet"}, "needs --detector-model FILE"),
        ({"detector": "scrfd"}, "needs --detector-model FILE"),
        ({"detector": "landmarks"}, r"needs --landmarks FILE .*shows what stands in it\.$"),
        ({"detector_model": "x.onnx"}, "Add --detector yunet or --detector scrfd"),
        ({"landmarks": "x.json"}, "Add --detector landmarks"),
        ({"detector": "yunet", "detector_model": str(tmp_path / "nowhere.onnx")}, "There is no file .*nothing is downloaded"),
        ({"detector": "landmarks", "landmarks": str(tmp_path)}, "There is no file"),
    ):
        with pytest.raises(BadConfig, match=message):
            faces.inputs(IngestConfig(**settings))
    assert faces.inputs(IngestConfig()) == {} and list(DETECTORS) == ["none", "landmarks", "yunet", "scrfd"]


@pytest.mark.parametrize("name", ["yunet", "scrfd"])
def test_files_that_are_no_models_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: the extra onnx")
    other = detector_models.scrfd if name == "yunet" else detector_models.yunet
    whole = detector_models.yunet(tmp_path / "whole.onnx").read_bytes()
    files = {
        "empty": (b"", "no ONNX model"),
        "html": (b"<html>Not found</html>", "no ONNX model"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "no ONNX model"),
        "cut": (whole[: len(whole) // 2], "no ONNX model"),
        "noise": (np.random.default_rng(0).bytes(5000), "no ONNX model"),
        "other": (other(tmp_path / "other.onnx").read_bytes(), f"no model for the detector {name}"),
    }
    for kind, (content, message) in files.items():
        (tmp_path / f"{kind}.onnx").write_bytes(content)
        with pytest.raises(BadInput, match=message) as caught:
            faces.inputs(IngestConfig(detector=name, detector_model=str(tmp_path / f"{kind}.onnx")))  # type: ignore[arg-type]
        assert "docs/faces.md" in str(caught.value), "the next step"


def test_models_with_other_outputs_are_refused(tmp_path: Path) -> None:
    """OpenCV reads outputs by their places without looking at their size: a smaller one would be read beyond its end."""
    for wrong in ("narrow", "names"):
        path = detector_models.yunet(tmp_path / f"{wrong}.onnx", wrong=wrong)
        with pytest.raises(BadInput, match="no model for the detector yunet") as caught:
            faces.inputs(IngestConfig(detector="yunet", detector_model=str(path)))
        assert ".cpp" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 400, "no place in OpenCV's source"
    pytest.importorskip("onnxruntime", reason="no onnxruntime here: the extra onnx")
    for path in (
        detector_models.scrfd(tmp_path / "six.onnx", outputs=6),
        detector_models.scrfd(tmp_path / "order.onnx", wrong="order"),
        detector_models.scrfd(tmp_path / "odd.onnx", side=100),
    ):
        with pytest.raises(BadInput, match="nine outputs with landmarks"):
            faces.inputs(IngestConfig(detector="scrfd", detector_model=str(path)))


def test_what_opencv_says_is_told_without_the_places_in_its_source() -> None:
    """As it says it of yunet_n_dynamic.onnx."""
    inner = "OpenCV(4.14.0) /io/opencv/modules/dnn/src/onnx/onnx_importer.cpp:2519: error: (-215:Assertion failed) !isDynamicShape"
    error = ValueError(f"> Node [Shape@ai.onnx]:(onnx_node!Shape_104) parse error: {inner} in function 'parseShape'\n> ")
    assert in_short(error) == "Node [Shape@ai.onnx]:(onnx_node!Shape_104) parse error: !isDynamicShape in function 'parseShape'"


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("name", ["yunet", "scrfd"])
def test_a_model_that_asks_for_other_files_is_refused(tmp_path: Path, location: str, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    path = detector_models.with_outside_weights(tmp_path / "outside.onnx", location)
    with pytest.raises(BadInput, match="keeps weights in other files"):
        faces.inputs(IngestConfig(detector=name, detector_model=str(path)))  # type: ignore[arg-type]


def test_scrfd_without_its_extra_says_what_to_install(models: dict[str, IngestConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BadConfig, match=r"pip install 'arcface-purify\[onnx\]'"):
        faces.inputs(models["scrfd"])


# --- through ingest ---------------------------------------------------------------------------------------------------------------------


def photos(root: Path) -> Path:
    for number, who in enumerate(("A", "B", "C")):
        (root / who).mkdir(parents=True)
        for n in range(3):
            pixels = photo(640, 480, [(20, 14), (4 + n, 4 + number)])
            (root / who / f"{n}.png").write_bytes(coded(pixels))
        (root / who / "dark.png").write_bytes(coded(photo(320, 320, [])))
    (root / "B" / "copy of A.png").write_bytes((root / "A" / "0.png").read_bytes())
    (root / "A" / "again.png").write_bytes((root / "A" / "1.png").read_bytes())
    return root


def rows_of(raw: Path) -> dict[str, dict[str, Any]]:
    rows = [row for stem in shard_stems(raw) for row in pq.read_table(raw / f"{stem}.parquet").to_pylist()]
    assert len({row["source_uri"] for row in rows}) == len(rows)
    return {row["source_uri"]: row for row in rows}


def test_two_faces_of_a_photo_are_no_duplicates_and_copies_of_it_are(tmp_path: Path, models: dict[str, IngestConfig]) -> None:
    config = replace(models["yunet"], faces="all", samples_per_shard=5)
    receipt = ingest(photos(tmp_path / "crawl"), tmp_path / "raw", Config(workers=2, ingest=config))
    rows = rows_of(tmp_path / "raw")
    assert rows["A/0.png"]["status"] == rows["A/0.png#face=2"]["status"] == "ok"
    assert rows["A/0.png"]["duplicate_set"] == rows["B/copy of A.png"]["duplicate_set"] is not None
    assert rows["A/0.png#face=2"]["duplicate_set"] == rows["B/copy of A.png#face=2"]["duplicate_set"] is not None
    assert rows["A/0.png"]["duplicate_set"] != rows["A/0.png#face=2"]["duplicate_set"]
    for suffix in ("", "#face=2"):
        both = sorted(rows[f"A/{name}.png{suffix}"]["status"] for name in ("1", "again"))
        assert both == ["duplicate", "ok"]
    assert rows["C/2.png"]["duplicate_set"] is None and rows["C/dark.png"]["status"] == "no_face"
    assert len(str(receipt.counts["detector_model_sha256"])) == 64
    alone = ingest(tmp_path / "crawl", tmp_path / "one", Config(workers=1, ingest=config))
    assert alone.fingerprint == receipt.fingerprint
    for stem in shard_stems(tmp_path / "one"):
        assert (tmp_path / "one" / f"{stem}.tar").read_bytes() == (tmp_path / "raw" / f"{stem}.tar").read_bytes()


def test_other_bytes_of_the_model_or_the_landmarks_are_another_ingest(tmp_path: Path) -> None:
    crawl = photos(tmp_path / "crawl")
    model, points = tmp_path / "model.onnx", tmp_path / "points.json"
    for detector, path, changes in (
        (
            "yunet",
            model,
            [lambda: detector_models.yunet(model), lambda: detector_models.yunet(model, finds_at=(16, 32))],
        ),
        (
            "landmarks",
            points,
            [
                lambda: points.write_text(json.dumps({f"{who}/0.png": planted(20, 14).tolist() for who in "AB"})),
                lambda: points.write_text(json.dumps({f"{who}/0.png": planted(21, 14).tolist() for who in "AB"})),
            ],
        ),
    ):
        key = "landmarks" if detector == "landmarks" else "detector_model"
        config = Config(workers=1, ingest=IngestConfig(detector=detector, max_bad_items=1.0, **{key: str(path)}))  # type: ignore[arg-type]
        marks = []
        for change in changes:
            change()
            marks.append(ingest(crawl, tmp_path / f"raw-{detector}", config))
        assert marks[0].fingerprint != marks[1].fingerprint and not marks[1].reused
        assert ingest(crawl, tmp_path / f"raw-{detector}", config).reused
