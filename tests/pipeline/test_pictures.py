"""Bytes to pixels: every kind of picture comes out right, damage and bombs are rows that cost little."""

import base64
import contextlib
import io
import json
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline import jpeg, pictures
from pipeline.config import IngestConfig
from pipeline.examine import examine
from pipeline.measures import Pixels
from pipeline.pictures import Refused, decode
from pipeline.sources import Item
from tests.pipeline.picture_samples import CONFIG, CROP, FIVE, PHOTO, SQUARE, coded, finding, pixels_of, smooth

# --- every kind of picture comes out right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(0, 10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_orientation_is_applied_as_pillow_does(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = coded(PHOTO, form, exif=exif)
    picture = decode(content, CONFIG)
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(picture.pixels, wanted) and picture.size == ((200, 160) if form != "AVIF" else picture.size)
    assert any("exif orientation" in note for note in picture.notes) == (2 <= orientation <= 8)


def test_landmarks_are_those_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = coded(PHOTO, "PNG")
    turned = coded(np.ascontiguousarray(np.rot90(PHOTO)), "PNG", exif=exif)
    row, crop = finding(turned, FIVE)
    assert crop == finding(upright, FIVE)[1] and (row["width_px"], row["height_px"]) == (160, 200)


def test_a_damaged_exif_block_loses_no_picture() -> None:
    row, crop = finding(coded(CROP, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert row["status"] == "ok" and crop is not None


def test_modes_become_the_colors_that_they_mean() -> None:
    red = Image.new("RGB", (112, 112), (255, 0, 0))
    grey16 = Image.fromarray(np.full((112, 112), 0x8000, np.uint16))
    half = Image.new("RGBA", (112, 112), (255, 0, 0, 128))
    clear = Image.new("RGBA", (112, 112), (1, 2, 3, 0))
    palette = red.quantize(4)
    cases = {
        "cmyk": (coded(red.convert("CMYK")), (255, 0, 0)),
        "grey 16": (coded(grey16, "PNG"), (128, 128, 128)),
        "1 bit": (coded(Image.new("1", (112, 112), 1), "PNG"), (255, 255, 255)),
        "grey": (coded(Image.new("L", (112, 112), 77), "PNG"), (77, 77, 77)),
        "palette": (coded(palette, "PNG"), (255, 0, 0)),
        "palette, gif": (coded(palette, "GIF"), (255, 0, 0)),
        "palette, bmp": (coded(palette, "BMP"), (255, 0, 0)),
        "transparent palette": (coded(palette, "PNG", transparency=palette.getpixel((0, 0))), (255, 255, 255)),
        "half": (coded(half, "PNG"), (255, 127, 127)),
        "clear": (coded(clear, "PNG"), (255, 255, 255)),
        "clear, webp": (coded(clear, "WEBP", lossless=True), (255, 255, 255)),
        "grey and alpha": (coded(Image.new("LA", (112, 112), (0, 0)), "PNG"), (255, 255, 255)),
        "color key": (coded(red, "PNG", transparency=(255, 0, 0)), (255, 255, 255)),
    }
    for name, (content, color) in cases.items():
        picture = decode(content, CONFIG)
        assert picture.pixels.shape == (112, 112, 3) and picture.pixels.dtype == np.uint8, name
        assert np.abs(picture.pixels.astype(int) - color).max() <= 2, (name, picture.pixels[0, 0])


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    ramp = np.arange(112 * 112, dtype=np.uint16).reshape(112, 112) * 5
    picture = decode(coded(Image.fromarray(ramp), "PNG"), CONFIG)
    assert np.array_equal(picture.pixels[:, :, 0], np.round(ramp / 257).astype(np.uint8))
    assert picture.notes == ("16 bits scaled to 8",)


def test_an_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    """Adobe stores ink inverted; read as it stands the picture would be a negative."""
    content = coded(Image.fromarray(CROP).convert("CMYK"), quality=95)
    assert b"Adobe" in content
    assert np.abs(decode(content, CONFIG).pixels.astype(int) - CROP).mean() < 6


ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWMT47pHU`kO^PygEhLje"
    "vB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2J01*fPAOIi(0U`hb5di}c0sqVZ3IGrg1pyEd1"
    "^?Or3<CiG0ucid06zf#0Fcw5Xr&HZ7)@Q*sZyp+_Qg@frL5pQ#z!nvIwRMI=h_4Jn+kGf=O{BiuYM;D#=AVJ>u~?s"
)
"""A 32 x 32 JPEG with arithmetic coding: a smooth picture by Pillow, recoded by jpegtran -arithmetic (libjpeg-turbo 2.1.5)."""


def test_an_arithmetic_jpeg_is_left_to_pillow_and_coded_anew_for_readers_that_have_no_such_decoder() -> None:
    assert strictly(ARITHMETIC) is None
    row, crop = finding(ARITHMETIC)
    assert row["status"] == "ok" and crop is not None and b"\xff\xc0" in crop and pixels_of(crop).std() > 5


def test_frames_and_profiles_are_noted() -> None:
    frames = [Image.fromarray(smooth(112, 112, seed)) for seed in range(12)]
    for form, said in (
        ("GIF", "first of several frames"),
        ("WEBP", "first of 12 frames"),
        ("PNG", "first of 12 frames"),
        ("AVIF", "first of 12 frames"),
        ("MPO", "first of 12 frames"),
    ):
        row, crop = finding(coded(frames[0], form, save_all=True, append_images=frames[1:]))
        assert row["note"] == said, form
        assert np.abs(pixels_of(crop).astype(int) - np.asarray(frames[0])).mean() < 12, "the first frame, not another"
    assert finding(coded(CROP, icc_profile=b"x" * 300))[0]["note"] == "icc profile ignored"
    assert finding(coded(CROP, "PNG", icc_profile=b"x" * 300))[0]["note"] == "icc profile ignored"
    assert finding(coded(CROP))[0]["note"] is None


def test_the_format_is_what_the_bytes_say_and_not_what_the_name_says() -> None:
    [(row, _)] = examine(Item("a/b.png", "a", coded(CROP)), CONFIG)
    assert row["status"] == "ok"


def test_heic_by_its_extra_and_advice_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="no pillow-heif here: the extra heif")
    pillow_heif.register_heif_opener()
    content = coded(CROP, "HEIF", quality=90)
    row, crop = finding(content)
    assert row["status"] == "ok" and np.abs(pixels_of(crop).astype(int) - CROP).mean() < 6
    assert finding(content[: len(content) // 2])[0]["status"] == "truncated"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    row, _ = finding(content)
    assert row["status"] == "unsupported_format" and "pip install 'arcface-purify[heif]'" in row["status_detail"]


# --- damage ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_file_cut_anywhere_is_a_row_that_says_so(form: str) -> None:
    content = coded(smooth(64, 48), form)
    seen = set()
    for stop in range(1, len(content) - 60, max(1, len(content) // 120)):
        row, _ = finding(content[:stop], FIVE)
        seen.add(row["status"])
        if stop > 64:
            assert row["status"] in {"truncated", "undecodable"}, (stop, row)
        assert "0x" not in (row["status_detail"] or ""), "an address in memory would make two runs differ"
    assert "truncated" in seen and seen <= {"truncated", "undecodable", "unsupported_format"}


def judge(content: bytes) -> Pixels | None:
    """What Pillow's full load says: the pixels, or None."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            image.load()
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error):  # what Pillow raises on damage
        return None


def strictly(content: bytes) -> Pixels | None:
    header = jpeg.read_header(content)
    if header is None or not header.is_plain:
        return None
    with contextlib.suppress(Refused):
        picture = pictures.plain_jpeg(content, header, jpeg.scans_and_end(content, header.scan)[1])
        return None if picture is None else picture.pixels
    return None


@pytest.mark.parametrize("trailing", [b"", b"\r\n<html>"])
@pytest.mark.parametrize("progressive", [False, True])
def test_half_a_picture_with_an_end_marker_put_behind_it_is_truncated(progressive: bool, trailing: bytes) -> None:
    whole = coded(CROP, quality=90, progressive=progressive)
    row, _ = finding(whole[: len(whole) // 2] + b"\xff\xd9" + trailing)
    assert row["status"] == "truncated" and "data end before" in row["status_detail"]


def test_a_stored_crop_says_nothing_of_place_and_time_and_has_the_pixels_of_the_original() -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera of Jane Doe"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 12.0)
    plain = coded(CROP, quality=90)
    told = coded(CROP, quality=90, exif=exif, comment=b"at home", icc_profile=b"profile")
    captioned = told[:2] + b"\xff\xed" + (2 + 14).to_bytes(2, "big") + b"Photoshop Jane" + told[2:]
    assert b"Jane" in captioned
    crop = finding(captioned)[1]
    assert crop == coded(CROP, quality=90, icc_profile=b"profile")
    np.testing.assert_array_equal(pixels_of(crop), pixels_of(plain))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}, {"restart_marker_blocks": 3}, {"grey": True}]
)
def test_what_the_fast_decoder_accepts_pillow_accepts_with_the_same_pixels(options: dict[str, Any]) -> None:
    """Every cut, and hundreds of bit flips and overwritten stretches."""
    image = Image.fromarray(smooth(80, 64)).convert("L" if options.get("grey") else "RGB")
    content = coded(image, **{key: value for key, value in options.items() if key != "grey"})
    rng = random.Random(1)
    damaged = [content[:stop] for stop in range(len(content) + 1)]
    for _ in range(700):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 3])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    for _ in range(200):
        start = rng.randrange(len(content))
        damaged.append(content[:start] + rng.randbytes(rng.randrange(40)) + content[start + rng.randrange(40) :])
    accepted = incomplete = 0
    for one in damaged:
        fast = strictly(one)
        if fast is not None:
            accepted += 1
            wanted = judge(one)
            assert wanted is not None and np.array_equal(fast, wanted)
        status = status_of(one)
        if status == "truncated" and judge(one) is not None:
            incomplete += 1
        else:
            assert (status == "ok") == (judge(one) is not None) or status == "bomb", "in the end it is Pillow that decides"
    assert incomplete > 0, "flips that make a marker amid the data: Pillow takes what is missing for grey"
    assert accepted > 100, "damage to the header or to what trails it, or flips that give another picture, but a whole one"
    assert strictly(content) is not None and all(strictly(content[:stop]) is None for stop in range(len(content) - 1))


def status_of(content: bytes) -> str:
    try:
        decode(content, IngestConfig(min_side_px=1))
    except Refused as refused:
        return refused.status
    return "ok"


def test_a_file_without_its_end_marker_alone_is_left_to_pillow() -> None:
    content = coded(CROP)[:-2]
    assert strictly(content) is None
    assert (finding(content)[0]["status"] == "ok") == (judge(content) is not None)


# --- bombs ----------------------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, extra: bytes = b"", after: bytes = b"", data: bytes | None = None) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes((width * 3 + 1) * height), 1) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", rows) + after + chunk(b"IEND", b"")


def bombs() -> dict[str, tuple[bytes, set[str]]]:
    """Hostile files by what they try, and what may be said of them."""
    whole, progressive = coded(CROP), coded(CROP, progressive=True)
    last_scan = progressive[progressive.rfind(b"\xff\xda") : -2]
    gif = coded(CROP, "GIF")
    begins = 13 + (3 << (gif[10] & 7) + 1)
    wide_gif = gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]
    animated = coded(CROP, "GIF", save_all=True, append_images=[Image.fromarray(SQUARE[:112, :112])] * 3)
    webp = bytearray(coded(CROP, "WEBP", save_all=True, append_images=[Image.fromarray(SQUARE[:112, :112])]))
    at = webp.find(b"VP8X") + 12
    webp[at : at + 6] = b"\xfe\x3f\x00\xfe\x3f\x00"
    flat = Image.new("P", (8000, 4600))
    text = zlib.compress(bytes(1_000_000))
    return {
        "png of 3.6 gigapixels": (png(60000, 60000, data=b"x"), {"bomb"}),
        "png just above the cap": (png(8000, 5001, data=b"x"), {"bomb"}),
        "png with more data than pixels": (png(112, 112, data=zlib.compress(bytes(100_000_000), 1)), {"ok"}),
        "png, compressed text": (png(112, 112, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))), {"undecodable"}),
        "png, much compressed text": (png(112, 112, chunk(b"zTXt", b"a\0\0" + text) * 90), {"undecodable"}),
        "png, compressed profile": (png(112, 112, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60_000_000)))), {"undecodable", "ok"}),
        "png of endless chunks": (png(112, 112, chunk(b"tEXt", b"a\0b") * 2_000_000), {"bomb"}),
        "png of endless chunks at its end": (png(112, 112, after=chunk(b"tEXt", b"a\0b") * 2_000_000), {"bomb"}),
        "png, broken checksum of its header": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13))[:-1] + b"?", {"undecodable", "truncated"}),
        "jpeg of endless comments": (whole[:2] + b"\xff\xfe\x00\x02" * 10_000_000 + whole[2:], {"bomb"}),
        "jpeg of fill bytes": (b"\xff\xd8" + b"\xff" * 40_000_000, {"bomb"}),
        "jpeg of escapes": (b"\xff\xd8" + b"\xff\x00" * 20_000_000, {"bomb"}),
        "jpeg of zeros": (b"\xff\xd8" + bytes(40_000_000), {"truncated"}),
        "jpeg of endless scans": (progressive[:-2] + last_scan * 3000 + b"\xff\xd9", {"bomb"}),
        "jpeg, large profile": (coded(CROP, icc_profile=bytes(10_000_000)), {"ok"}),
        "jpeg, large exif": (coded(CROP, exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 65_000), {"ok"}),
        "gif of 4 gigapixels": (wide_gif, {"bomb"}),
        "gif of endless blocks": (gif[:begins] + b"!\xfe\0" * 10_000_000 + gif[begins:], {"bomb"}),
        "gif of endless comment": (gif[:begins] + b"!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0" + gif[begins:], {"bomb"}),
        "gif of endless blocks at its end": (gif[:-1] + b"!\xfe\0" * 10_000_000 + b";", {"ok"}),
        "gif of endless frames": (animated[:-1] + animated[begins:-1] * 3000 + b";", {"ok"}),
        "webp of 268 megapixels": (bytes(webp), {"bomb", "undecodable"}),
        "bmp, run-length encoded": (rle_bmp(flat), {"bomb"}),
        "65,535 x 1": (png(65535, 1), {"too_small"}),
        "1 x 65,535": (png(1, 65535), {"too_small"}),
        "65,535 x 40": (png(65535, 40), {"not_aligned"}),
        "heic of nothing": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(1000), {"undecodable", "truncated"}),
        "avif of nothing": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(1000), {"undecodable", "truncated"}),
    }


@pytest.mark.parametrize("side", [7000, 20_000])
def test_of_too_many_pixels_our_limit_is_told(side: int) -> None:
    """The larger one is beyond Pillow's own limit, too, which it tells of in its own words before ours is asked."""
    row, _ = finding(png(side, side, data=b"x"))
    assert row["status"] == "bomb" and "pixels, 40000000 allowed (ingest.max_pixels)" in row["status_detail"]
    assert str(side) in row["status_detail"] or str(side * side) in row["status_detail"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_file_that_ends_early_is_told_in_plain_words(form: str) -> None:
    content = coded(CROP, form)
    row, _ = finding(content[: len(content) // 2])
    assert (row["status"], row["status_detail"]) == ("truncated", "the file ends before the picture does")


@pytest.mark.parametrize(
    ("magic", "name"), [(b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"), (b"%PDF-1.7", "a PDF"), (b" <!doctype html>", "a web page or XML")]
)
def test_what_is_known_and_not_read_is_named(magic: bytes, name: str) -> None:
    row, _ = finding(magic + bytes(100))
    assert row["status"] == "unsupported_format" and row["status_detail"].startswith(f"{name}: no JPEG")


def rle_bmp(image: Image.Image) -> bytes:
    plain = bytearray(coded(image, "BMP")[:2000])
    plain[30:34] = struct.pack("<I", 1)
    return bytes(plain)


def test_bombs_are_rows_and_cost_little() -> None:
    pytest.importorskip("pillow_heif", reason="no pillow-heif here: the extra heif")
    finding(coded(CROP, "GIF"))
    for name, (content, allowed) in bombs().items():
        started = time.process_time()
        row, _ = finding(content)
        seconds = time.process_time() - started
        assert row["status"] in allowed, (name, row)
        assert seconds < 2.0, (name, seconds)


def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    """In a process of its own: what all of them together ask for, at most."""
    program = (
        "import json, resource, sys\n"
        "from tests.pipeline.test_pictures import CONFIG, bombs, examine, Item\n"
        "files = {name: content for name, (content, _) in bombs().items()}\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for content in files.values(): examine(Item('a/b', 'a', content), CONFIG)\n"
        "print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert json.loads(done.stdout.splitlines()[-1]) < 200, "MiB above what the files themselves take"


def test_a_picture_longer_than_opencv_warps_is_aligned_all_the_same() -> None:
    wide = np.zeros((40, 40_000, 3), np.uint8)
    wide[:, 39_000:] = 200
    _, crop = finding(coded(wide, "PNG"), [[39_905, 10], [39_925, 10], [39_915, 20], [39_907, 30], [39_923, 30]])
    assert pixels_of(crop)[56, 56].tolist() == pytest.approx([200] * 3, abs=3)
