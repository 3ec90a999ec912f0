import math

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arcface_core.alignment import NOSE_DEPTH, TEMPLATE_112, alignment_error_px, shrinkage, similarity_transform, supersampled, yaw_deg

PROFILE = np.array([[40.0, 50.0], [44.0, 52.0], [60.0, 70.0], [42.0, 90.0], [46.0, 91.0]])

_Q = (TEMPLATE_112 - TEMPLATE_112.mean(0)) @ np.array([1, 1j])
_P = _Q.conj() - _Q * (_Q.conj() @ _Q.conj()) / (_Q.conj() @ _Q).real
UNTURNED = np.column_stack([_P.real, _P.imag])
"""The mirrored template less its projection on the template: every rotation of it fits equally badly."""


def umeyama(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equations 34-43 of the paper, by the singular value decomposition that the closed form does without."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.diag([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(d) @ sign) / ((source - source_mean) ** 2).sum(1).mean()
    matrix: NDArray[np.float64] = np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])
    return matrix


def moved(points: NDArray[np.float64], degrees: float, scale: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: NDArray[np.float64] = points @ np.array([[c, s], [-s, c]])
    return scale * turned + np.array(shift)


def test_the_template_is_the_published_one_and_cannot_be_changed() -> None:
    assert TEMPLATE_112.tolist() == [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    with pytest.raises(ValueError, match="read-only"):
        TEMPLATE_112[0] = 0.0


def test_the_template_itself_needs_no_change() -> None:
    assert similarity_transform(TEMPLATE_112) == pytest.approx(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), abs=1e-12)
    assert similarity_transform(TEMPLATE_112, size_px=56) == pytest.approx(np.array([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]), abs=1e-12)


shifts = st.floats(-2000, 2000)


@given(st.floats(-180, 180), st.floats(0.05, 50), shifts, shifts, st.sampled_from([32, 112, 128, 224]))
def test_a_planted_similarity_is_undone(degrees: float, scale: float, x: float, y: float, size_px: int) -> None:
    points = moved(TEMPLATE_112, degrees, scale, (x, y))
    matrix = similarity_transform(points, size_px=size_px)
    assert matrix.shape == (2, 3) and matrix.dtype == np.float64
    assert points @ matrix[:, :2].T + matrix[:, 2] == pytest.approx(TEMPLATE_112 * size_px / 112, abs=1e-7)
    assert alignment_error_px(points, matrix, size_px=size_px) < 1e-7


@given(st.lists(st.floats(0, 250), min_size=10, max_size=10))
def test_it_equals_umeyama_by_svd_and_never_reflects(values: list[float]) -> None:
    points = np.array(values).reshape(5, 2)
    centered = points - points.mean(0)
    assume((centered**2).sum() > 1.0)
    wanted = umeyama(points, TEMPLATE_112)
    assume(np.linalg.det(wanted[:, :2]) > 1e-4)  # near a degenerate case the direction is noise
    matrix = similarity_transform(points)
    assert matrix == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_no_other_similarity_fits_better() -> None:
    matrix = similarity_transform(PROFILE)
    best = alignment_error_px(PROFILE, matrix)
    reference = math.sqrt(sum(math.dist(matrix[:, :2] @ p + matrix[:, 2], q) ** 2 for p, q in zip(PROFILE, TEMPLATE_112, strict=True)) / 5)
    assert best == pytest.approx(reference, abs=1e-12) and best > 5
    rng = np.random.default_rng(0)
    for a, b, x, y in rng.normal(0, [0.01, 0.01, 1.0, 1.0], (200, 4)):
        assert alignment_error_px(PROFILE, matrix + np.array([[a, -b, x], [b, a, y]])) >= best


def test_swapped_eyes_and_corners_show_in_the_error() -> None:
    swapped = TEMPLATE_112[[1, 0, 2, 4, 3]]
    assert alignment_error_px(swapped, similarity_transform(swapped)) > 10


def test_points_on_a_line_are_enough() -> None:
    line = np.column_stack([np.linspace(0, 50, 5), np.linspace(0, 80, 5)])
    assert similarity_transform(line) == pytest.approx(umeyama(line, TEMPLATE_112), abs=1e-9)


def test_opencv_moves_a_dot_to_where_the_template_has_the_nose() -> None:
    points = moved(TEMPLATE_112, 20, 1.5, (40, 10))
    image = np.zeros((250, 250), np.float32)
    x, y = points[2].round().astype(int)
    image[y - 1 : y + 2, x - 1 : x + 2] = 1
    crop = cv2.warpAffine(image, similarity_transform(points), (112, 112))
    rows, columns = np.indices(crop.shape)
    center = ((columns * crop).sum() / crop.sum(), (rows * crop).sum() / crop.sum())
    assert math.dist(center, TEMPLATE_112[2]) < 0.6


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 2), 7.0), "coincide"),
        (np.full((5, 2), 1e9) + np.arange(10).reshape(5, 2) * 1e-6, "coincide"),
        (UNTURNED, "no rotation fits"),
        (np.where(np.arange(10).reshape(5, 2) == 3, np.nan, TEMPLATE_112), "finite"),
        (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, TEMPLATE_112), "finite"),
        (TEMPLATE_112[:4], r"shape \[5, 2\], got shape \(4, 2\)"),
        (TEMPLATE_112.T, "five points"),
    ],
)
def test_points_that_determine_no_alignment_are_refused(points: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity_transform(points)


def test_bad_sizes_and_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="size_px must be at least 1, got 0"):
        similarity_transform(TEMPLATE_112, size_px=0)
    with pytest.raises(ValueError, match=r"\[2, 3\] and finite"):
        alignment_error_px(TEMPLATE_112, np.eye(3))


HEAD = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, NOSE_DEPTH], [-0.83, 1.0, 0.0], [0.83, 1.0, 0.0]])
"""Five points of a head before us: x right, y down, z towards us, in half distances between the eyes."""


def seen(yaw: float, *, pitch: float = 0.0, roll: float = 0.0, distance: float = math.inf) -> NDArray[np.float64]:
    """The head turned to the right edge of the picture by `yaw`, nodding by `pitch`, tilted by `roll`, from `distance`, 60 px a unit."""
    y, p, r = (math.radians(angle) for angle in (yaw, pitch, roll))
    nod = np.array([[1, 0, 0], [0, math.cos(p), math.sin(p)], [0, -math.sin(p), math.cos(p)]])
    turn = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    points = HEAD @ (turn @ nod).T
    flat = points[:, :2] if math.isinf(distance) else points[:, :2] * (distance / (distance - points[:, 2:]))
    return moved(flat, math.degrees(r), 60.0, (300.0, 200.0))


@given(st.floats(-85, 85), st.floats(-180, 180))
def test_a_turned_head_seen_from_afar_gives_its_yaw_back_however_tilted(yaw: float, roll: float) -> None:
    assert yaw_deg(seen(yaw, roll=roll)) == pytest.approx(yaw, abs=1e-6)


def test_nodding_and_nearness_cost_a_few_degrees() -> None:
    for yaw in (-60, -30, -10, 0, 10, 30, 60):
        assert yaw_deg(seen(yaw, pitch=20)) == pytest.approx(yaw, abs=3)
        assert yaw_deg(seen(yaw, pitch=-20)) == pytest.approx(yaw, abs=3)
        assert yaw_deg(seen(yaw, distance=15)) == pytest.approx(yaw, abs=6), "from a meter or so"


def test_the_sign_of_yaw_is_the_side_of_the_picture_that_the_nose_points_to() -> None:
    right = TEMPLATE_112 + np.array([[0, 0], [0, 0], [8.0, 0], [0, 0], [0, 0]])
    assert 15 < yaw_deg(right) < 45 and yaw_deg(TEMPLATE_112) == pytest.approx(0, abs=2)
    flipped = (np.array([111.0, 0]) + right * np.array([-1.0, 1.0]))[[1, 0, 2, 4, 3]]
    assert yaw_deg(flipped) == pytest.approx(-yaw_deg(right))


def test_yaw_stays_within_its_range_for_any_five_points() -> None:
    assert yaw_deg(TEMPLATE_112[[1, 0, 2, 4, 3]]) in {-90.0, 0.0, 90.0}, "a mirrored order is no face"
    assert yaw_deg(np.zeros((5, 2))) == 0.0
    for points in np.random.default_rng(0).normal(0, 100, (500, 5, 2)):
        assert -90 <= yaw_deg(points) <= 90
    with pytest.raises(ValueError, match="five points"):
        yaw_deg(TEMPLATE_112[:4])


def test_shrinkage_is_pixels_of_the_picture_per_pixel_of_the_crop() -> None:
    assert shrinkage(similarity_transform(moved(TEMPLATE_112, 33, 7.5, (3, -9)))) == pytest.approx(7.5)
    for bad in (np.eye(3), np.zeros((2, 3)), np.array([[1.0, 0, 0], [0, -1.0, 0]])):
        with pytest.raises(ValueError, match="positive determinant"):
            shrinkage(bad)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_a_supersampled_pixel_has_its_mean_where_the_pixel_was(factor: int) -> None:
    matrix = similarity_transform(moved(TEMPLATE_112, 20, 2.0, (40, 10)))
    point = np.array([123.0, 77.0])
    fine = supersampled(matrix, factor) @ [*point, 1]
    assert (fine - (factor - 1) / 2) / factor == pytest.approx(matrix @ [*point, 1])
