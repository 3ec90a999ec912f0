"""Draws invented faces. A person is some fifty numbers drawn from a seed; a picture adds pose, expression, light and damage from another.

Faces stand in a plane of units: x to the right, y down, 1 unit = 40 px of a 112 px crop, the eyes where the ArcFace template has them. Depth
is that of an ellipsoid, so that a turned head moves its features as a head does. Drawn at twice the size, then averaged down.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = tuple[float, float, float]

_UNIT = 40.0 / 112.0
_SUPER = 2
_SHIFT = 4
_SKINS = np.array([[255, 224, 200], [241, 194, 160], [224, 172, 125], [198, 134, 92], [150, 95, 60], [98, 62, 42], [235, 205, 150]], float)
_HAIRS = np.array(
    [[25, 22, 22], [70, 42, 28], [120, 75, 40], [190, 145, 85], [225, 195, 140], [150, 60, 30], [150, 150, 155], [60, 55, 60]], float
)
_IRISES = np.array([[70, 45, 25], [35, 25, 20], [60, 110, 170], [80, 130, 80], [120, 125, 130], [130, 90, 40]], float)
STYLES = ("bald", "short", "parted", "fringe", "long", "curly", "tall")
BEARDS = ("none", "none", "none", "stubble", "moustache", "goatee", "full")


@dataclass(frozen=True)
class Person:
    """What stays the same in every picture of one person."""

    skin: Points
    hair: Points
    iris: Points
    lip: Points
    style: str
    beard: str
    shape: dict[str, float]
    marks: Points
    """[n, 3]: place in the face, radius in units."""
    freckles: Points
    glasses_chance: float


_SHAPE: dict[str, tuple[float, float]] = {
    "width": (0.78, 1.0),
    "jaw": (0.5, 0.95),
    "chin": (1.0, 1.24),
    "brow_line": (-0.82, -0.62),
    "hairline": (-1.2, -0.86),
    "volume": (0.1, 0.42),
    "eye_gap": (0.37, 0.5),
    "eye_y": (-0.46, -0.34),
    "eye_size": (0.13, 0.22),
    "eye_open": (0.38, 0.72),
    "eye_tilt": (-0.25, 0.25),
    "lid": (0.01, 0.05),
    "brow_thick": (0.03, 0.12),
    "brow_long": (0.2, 0.36),
    "brow_arch": (-0.03, 0.12),
    "brow_tilt": (-0.3, 0.3),
    "nose_tip": (0.02, 0.24),
    "nose_wide": (0.1, 0.26),
    "bridge": (0.03, 0.1),
    "mouth_y": (0.54, 0.7),
    "mouth_wide": (0.22, 0.44),
    "lip_up": (0.03, 0.1),
    "lip_down": (0.04, 0.14),
    "ear": (0.12, 0.24),
    "cheek": (0.0, 0.5),
    "wrinkle": (-0.6, 1.0),
}


def person(seed: int, number: int) -> Person:
    """Person `number` of the population `seed`."""
    rng = np.random.default_rng([seed, 1, number])
    mix = rng.dirichlet(np.full(len(_SKINS), 0.35))
    hair = _HAIRS[rng.integers(len(_HAIRS))] * rng.uniform(0.75, 1.2) + rng.normal(0, 8, 3)
    skin = mix @ _SKINS + rng.normal(0, 5, 3)
    return Person(
        skin=np.clip(skin, 30, 255),
        hair=np.clip(hair, 10, 245),
        iris=np.clip(_IRISES[rng.integers(len(_IRISES))] + rng.normal(0, 10, 3), 10, 230),
        lip=np.clip(skin * np.array([0.9, 0.6, 0.6]) + rng.normal(0, 14, 3), 20, 240),
        style=STYLES[rng.integers(len(STYLES))],
        beard=BEARDS[rng.integers(len(BEARDS))],
        shape={name: float(rng.uniform(low, high)) for name, (low, high) in _SHAPE.items()},
        marks=np.column_stack([rng.uniform(-0.6, 0.6, 3), rng.uniform(-0.3, 0.9, 3), rng.uniform(0.02, 0.06, 3)])[: rng.integers(0, 4)],
        freckles=np.column_stack([rng.normal(0, 0.4, 24), rng.normal(0.1, 0.15, 24)])[: 24 * int(rng.random() < 0.2)],
        glasses_chance=float(rng.choice([0.05, 0.1, 0.8])),
    )


class _Pose:
    """Where points of the face come to lie in the picture."""

    def __init__(self, rng: np.random.Generator, size_px: int) -> None:
        self.yaw, self.pitch = np.radians(np.clip(rng.normal(0, 10, 2) * (1, 0.6), -28, 28))
        roll = np.radians(rng.normal(0, 7))
        self._turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        self.scale = _UNIT * size_px * _SUPER * rng.uniform(0.88, 1.12)
        self._middle = np.array([56.0, 68.0]) / 112 * size_px * _SUPER + rng.normal(0, 3.5, 2) * _SUPER * size_px / 112

    def __call__(self, points: Points, depth: float = 1.0) -> Points:
        x, y = points[..., 0], points[..., 1]
        z = depth * np.sqrt(np.clip(1.15 - x**2 - 0.35 * y**2, 0.05, None))
        across = x * np.cos(self.yaw) + (z - 0.8) * np.sin(self.yaw)
        down = y * np.cos(self.pitch) - (z - 0.8) * np.sin(self.pitch)
        placed: Points = np.stack([across, down], -1) @ self._turn.T * self.scale + self._middle
        return placed


def render(who: Person, rng: np.random.Generator, size_px: int = 112) -> Pixels:
    """An RGB picture [size, size, 3] of a person, its circumstances drawn from `rng`."""
    canvas = _background(rng, size_px * _SUPER)
    pose = _Pose(rng, size_px)
    drawer = _Drawer(canvas, pose)
    face = _Expression(rng)
    _hair_behind(drawer, who, rng)
    _head(drawer, who)
    _features(drawer, who, face)
    _beard(drawer, who, rng)
    _hair_before(drawer, who, rng)
    if rng.random() < who.glasses_chance:
        _glasses(drawer, who, rng)
    if rng.random() < 0.06:
        _occlusion(drawer, rng)
    small = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return _photograph(np.asarray(small, np.uint8), rng)


def render_no_face(rng: np.random.Generator, size_px: int = 112) -> Pixels:
    """A picture without a face: a ground and some shapes."""
    canvas = _background(rng, size_px * _SUPER)
    for _ in range(rng.integers(2, 7)):
        corners = rng.uniform(0, size_px * _SUPER, (rng.integers(3, 6), 1, 2)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], rng.uniform(0, 255, 3).tolist(), cv2.LINE_AA)
    return _photograph(np.asarray(cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8), rng)


def encode(pixels: Pixels, quality: int) -> bytes:
    """JPEG bytes."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB"))


class _Expression:
    def __init__(self, rng: np.random.Generator) -> None:
        self.smile = float(rng.uniform(-0.25, 0.8))
        self.open = float(max(0.0, rng.normal(0, 0.5)))
        self.squint = float(rng.uniform(0.55, 1.15))
        self.raised = float(rng.normal(0, 0.03))
        self.gaze = rng.uniform(-0.3, 0.3, 2)


class _Drawer:
    def __init__(self, canvas: Pixels, pose: _Pose) -> None:
        self.canvas, self.pose = canvas, pose

    def polygon(self, points: Points, colour: Points, depth: float = 1.0) -> None:
        placed = np.round(self.pose(points, depth) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self.canvas, [placed.reshape(-1, 1, 2)], _rgb(colour), cv2.LINE_AA, _SHIFT)

    def line(self, points: Points, colour: Points, width: float, depth: float = 1.0) -> None:
        placed = np.round(self.pose(points, depth) * 2**_SHIFT).astype(np.int32)
        thick = max(1, round(width * self.pose.scale))
        cv2.polylines(self.canvas, [placed.reshape(-1, 1, 2)], False, _rgb(colour), thick, cv2.LINE_AA, _SHIFT)

    def ellipse(self, x: float, y: float, wide: float, high: float, colour: Points, tilt: float = 0.0, depth: float = 1.0) -> None:
        self.polygon(_ellipse(x, y, wide, high, tilt), colour, depth)


_ROUND = np.linspace(0, 2 * np.pi, 28, endpoint=False)


def _ellipse(x: float, y: float, wide: float, high: float, tilt: float = 0.0) -> Points:
    a, b = wide * np.cos(_ROUND), high * np.sin(_ROUND)
    return np.column_stack([x + a * np.cos(tilt) - b * np.sin(tilt), y + a * np.sin(tilt) + b * np.cos(tilt)])


def _rgb(colour: Points) -> Colour:
    red, green, blue = np.clip(colour, 0, 255).tolist()
    return red, green, blue


def _background(rng: np.random.Generator, side: int) -> Pixels:
    corners = rng.uniform(20, 235, (2, 2, 3)).astype(np.float32)
    ground = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    canvas = np.ascontiguousarray(ground.astype(np.uint8))
    for _ in range(rng.integers(0, 4)):
        at, size = rng.uniform(0, side, 2).astype(int), rng.uniform(0.05, 0.35, 2) * side
        cv2.ellipse(
            canvas,
            at.tolist(),
            size.astype(int).tolist(),
            float(rng.uniform(0, 180)),
            0,
            360,
            rng.uniform(20, 235, 3).tolist(),
            -1,
            cv2.LINE_AA,
        )
    return canvas


def _outline(shape: dict[str, float], grow: float = 0.0) -> Points:
    """The face from ear over chin to ear, and over the skull."""
    wide, jaw, chin = shape["width"] + grow, shape["jaw"] * shape["width"] + grow, shape["chin"] + grow
    top = -1.3 - grow
    right = [(wide * 0.55, top * 0.96), (wide * 0.9, -0.85), (wide, -0.25), (wide * 0.97, 0.2), (jaw, 0.72), (jaw * 0.45, chin * 0.97)]
    points = np.array([(0.0, top), *right, (0.0, chin), *[(-x, y) for x, y in reversed(right)]])
    return _smooth(points)


def _smooth(points: Points) -> Points:
    """Two rounds of corner cutting: a closed curve through a polygon's sides."""
    for _ in range(2):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], 1).reshape(-1, 2)
    return points


def _head(draw: _Drawer, who: Person) -> None:
    s = who.shape
    for side in (-1, 1):
        draw.ellipse(side * s["width"] * 0.98, -0.12, s["ear"] * 0.6, s["ear"] * 1.2, who.skin * 0.86, depth=0.2)
    draw.polygon(np.array([(-0.5, 0.8), (0.5, 0.8), (0.62, 1.7), (-0.62, 1.7)]), who.skin * 0.78, depth=0.4)
    draw.polygon(_outline(s), who.skin, depth=0.5)
    for side in (-1, 1):
        if s["cheek"] > 0.15:
            draw.ellipse(side * 0.5, 0.25, 0.2, 0.15, who.skin * (1 - 0.1 * s["cheek"]) + np.array([14.0, -4, -4]) * s["cheek"])
    for x, y in who.freckles:
        draw.ellipse(x, y, 0.014, 0.014, who.skin * 0.75)
    for x, y, radius in who.marks:
        draw.ellipse(x, y, radius, radius, who.skin * 0.4)
    if s["wrinkle"] > 0.3:
        for side in (-1, 1):
            draw.line(np.array([(side * 0.26, 0.2), (side * 0.4, 0.4), (side * 0.42, 0.55)]), who.skin * 0.78, 0.018)


def _features(draw: _Drawer, who: Person, face: _Expression) -> None:
    s = who.shape
    dark = who.skin * 0.55
    for side in (-1, 1):
        x, y, size = side * s["eye_gap"], s["eye_y"], s["eye_size"]
        high = size * s["eye_open"] * face.squint
        draw.ellipse(x, y - 0.02, size * 1.25, high * 1.5, who.skin * 0.88, side * s["eye_tilt"])
        draw.ellipse(x, y, size, high, np.array([242.0, 240, 236]), side * s["eye_tilt"])
        iris = min(size * 0.55, high * 1.05)
        gaze_x, gaze_y = face.gaze * size * 0.5
        draw.ellipse(x + gaze_x, y + gaze_y * 0.4, iris, iris, who.iris)
        draw.ellipse(x + gaze_x, y + gaze_y * 0.4, iris * 0.45, iris * 0.45, np.array([12.0, 10, 10]))
        lid = _ellipse(x, y, size, high, side * s["eye_tilt"])[14:28]
        draw.line(lid, dark * 0.6, s["lid"])
        inner, outer = s["eye_gap"] - s["brow_long"] * 0.6, s["eye_gap"] + s["brow_long"] * 0.7
        level = s["brow_line"] - face.raised + (0.08 if s["brow_line"] < -0.75 else 0)
        lean = s["brow_tilt"] * 0.2
        brow = np.array([(side * inner, level + lean), (side * s["eye_gap"], level - s["brow_arch"]), (side * outer, level - lean + 0.03)])
        draw.line(brow, who.hair * 0.8, s["brow_thick"])
    tip, wide = s["nose_tip"], s["nose_wide"]
    for side in (-1, 1):
        draw.line(
            np.array([(side * s["bridge"], -0.4), (side * s["bridge"] * 1.1, tip - 0.2), (side * wide, tip)]), who.skin * 0.84, 0.025, 1.08
        )
        draw.ellipse(side * wide * 0.55, tip + 0.05, wide * 0.28, 0.03, dark * 0.7, 0.0, 1.1)
    draw.ellipse(0, tip - 0.03, wide * 0.6, wide * 0.45, np.clip(who.skin * 1.06, 0, 255), 0.0, 1.15)
    middle, half = s["mouth_y"], s["mouth_wide"] * (1 + 0.2 * face.smile)
    corner, gap = middle - 0.1 * face.smile, 0.12 * face.open
    across = np.linspace(-1, 1, 9)
    line = np.column_stack([across * half, corner + (middle - corner) * (1 - across**2)])
    bow = 1 - across**2
    upper = line - np.column_stack([np.zeros(9), bow * s["lip_up"] * (1 - 0.25 * np.exp(-((across / 0.2) ** 2)))])
    lower = line + np.column_stack([np.zeros(9), bow * (s["lip_down"] + gap)])
    draw.polygon(np.concatenate([upper, lower[::-1]]), who.lip)
    if gap > 0.03:
        mouth = np.concatenate([line, (line + np.column_stack([np.zeros(9), bow * gap]))[::-1]])
        draw.polygon(mouth, np.array([60.0, 20, 25]) if face.smile < 0.3 else np.array([235.0, 232, 225]))
    draw.line(line, who.lip * 0.55, 0.02)


def _beard(draw: _Drawer, who: Person, rng: np.random.Generator) -> None:
    if who.beard == "none":
        return
    s, colour = who.shape, who.hair * 0.9
    jaw, chin, mouth = s["jaw"] * s["width"], s["chin"], s["mouth_y"]
    if who.beard == "stubble":
        shade = who.skin * 0.78 + who.hair * 0.12
        ring = [
            (-jaw * 1.02, 0.55),
            (-jaw * 0.5, chin * 0.98),
            (0, chin),
            (jaw * 0.5, chin * 0.98),
            (jaw * 1.02, 0.55),
            (0.36, mouth + 0.2),
            (-0.36, mouth + 0.2),
        ]
        draw.polygon(np.array(ring), shade)
        return
    if who.beard in {"moustache", "full", "goatee"}:
        low = mouth - 0.06
        lip = [(-0.34, low + 0.08), (-0.12, low - 0.14), (0, low - 0.1), (0.12, low - 0.14), (0.34, low + 0.08), (0, low - 0.02)]
        draw.polygon(np.array(lip), colour)
    if who.beard == "goatee":
        draw.ellipse(0, (mouth + 0.22 + chin) / 2, 0.2, max(0.08, (chin - mouth - 0.16) / 2), colour)
    if who.beard == "full":
        for side in (-1, 1):
            edge = [
                (side * s["width"] * 0.98, -0.05),
                (side * s["width"] * 0.99, 0.3),
                (side * jaw * 1.06, 0.75),
                (side * jaw * 0.5, chin * 1.03),
                (0, chin * 1.06),
            ]
            draw.polygon(np.array([*edge, (0, mouth + 0.22), (side * 0.36, mouth + 0.1), (side * 0.5, 0.5)]), colour, 0.6)
    del rng


def _hair_behind(draw: _Drawer, who: Person, rng: np.random.Generator) -> None:
    s = who.shape
    if who.style in {"long", "fringe"}:
        length = 1.5 if who.style == "long" else 0.5
        wide = s["width"] + s["volume"] + rng.normal(0, 0.02)
        curve = [
            (-wide, length),
            (-wide * 1.02, -0.6),
            (-wide * 0.6, -1.45),
            (0, -1.62),
            (wide * 0.6, -1.45),
            (wide * 1.02, -0.6),
            (wide, length),
        ]
        draw.polygon(np.array(curve), who.hair * 0.8, 0.1)
    if who.style in {"curly", "tall"}:
        grow = s["volume"]
        for angle in np.linspace(np.pi * 0.92, np.pi * 2.08, 13):
            radius = 0.28 + 0.5 * grow if who.style == "curly" else 0.2
            up = 1.0 if who.style == "curly" else 1.18
            draw.ellipse((s["width"] + 0.2 * grow) * np.cos(angle), -0.5 + up * np.sin(angle), radius, radius, who.hair * 0.9, 0.0, 0.2)


def _hair_before(draw: _Drawer, who: Person, rng: np.random.Generator) -> None:
    if who.style == "bald":
        return
    s = who.shape
    line, wide, up = s["hairline"] + rng.normal(0, 0.015), s["width"] * 1.03, -1.36 - 0.5 * s["volume"]
    cap = [(-wide, -0.45), (-wide * 0.98, -0.95), (-wide * 0.6, up), (0, up - 0.08), (wide * 0.6, up), (wide * 0.98, -0.95), (wide, -0.45)]
    edges = {
        "short": [(wide * 0.86, -0.75), (wide * 0.55, line), (-wide * 0.55, line), (-wide * 0.86, -0.75)],
        "parted": [(wide * 0.9, -0.55), (wide * 0.5, line + 0.12), (-wide * 0.35, line - 0.16), (-wide * 0.6, line), (-wide * 0.9, -0.62)],
        "fringe": [(wide * 0.95, -0.3), (wide * 0.7, -0.78), (0, line + 0.26), (-wide * 0.7, -0.78), (-wide * 0.95, -0.3)],
        "long": [(wide * 0.93, 0.2), (wide * 0.78, -0.5), (0, line - 0.1), (-wide * 0.78, -0.5), (-wide * 0.93, 0.2)],
        "curly": [(wide * 0.85, -0.7), (wide * 0.4, line + 0.08), (0, line), (-wide * 0.4, line + 0.08), (-wide * 0.85, -0.7)],
        "tall": [(wide * 0.8, -0.95), (wide * 0.4, line - 0.12), (-wide * 0.4, line - 0.12), (-wide * 0.8, -0.95)],
    }
    draw.polygon(np.array([*cap, *edges[who.style]]), who.hair, 0.55)


def _glasses(draw: _Drawer, who: Person, rng: np.random.Generator) -> None:
    s = who.shape
    colour = rng.choice(np.array([[20.0, 20, 22], [110, 70, 40], [150, 150, 160], [120, 30, 40]]))
    wide, high = rng.uniform(0.24, 0.33), rng.uniform(0.16, 0.26)
    for side in (-1, 1):
        ring = _ellipse(side * s["eye_gap"], s["eye_y"] + 0.02, wide, high)
        if rng.random() < 0.12:
            draw.polygon(ring, np.array([25.0, 25, 30]), 1.1)
        draw.line(np.concatenate([ring, ring[:1]]), colour, 0.035, 1.1)
        draw.line(np.array([(side * (s["eye_gap"] + wide), s["eye_y"]), (side * s["width"], s["eye_y"] - 0.05)]), colour, 0.03, 0.7)
    draw.line(np.array([(-s["eye_gap"] + wide, s["eye_y"]), (s["eye_gap"] - wide, s["eye_y"])]), colour, 0.035, 1.15)


def _occlusion(draw: _Drawer, rng: np.random.Generator) -> None:
    x, y = rng.uniform(-0.8, 0.8), rng.uniform(-0.2, 1.1)
    draw.ellipse(x, y, rng.uniform(0.15, 0.38), rng.uniform(0.15, 0.45), rng.uniform(20, 230, 3), rng.uniform(0, 3), 1.2)


def _photograph(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Light, camera and its faults."""
    side = len(pixels)
    strength, angle = rng.uniform(0, 0.4), rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + np.float32(strength) * (np.float32(np.cos(angle)) * ramp[None, :] + np.float32(np.sin(angle)) * ramp[:, None])
    gain = (rng.uniform(0.7, 1.15) * (1 + rng.normal(0, 0.05, 3))).astype(np.float32)
    out = pixels.astype(np.float32) * light[:, :, None] * gain
    contrast = np.float32(rng.uniform(0.75, 1.2))
    out = (out - 110) * contrast + 110
    if rng.random() < 0.1:
        out = np.repeat(out.mean(axis=2, keepdims=True), 3, axis=2)
    blur = abs(rng.normal(0, 0.6))
    if blur > 0.4:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), float(blur)), np.float32)
    out = out + rng.standard_normal((side, side, 1), np.float32) * np.float32(abs(rng.normal(0, 4)))
    shot: Pixels = np.clip(out, 0, 255).astype(np.uint8)
    return shot
