"""Bytes of a crawl to upright RGB pixels, or the reason why not. The bytes are hostile until decoded.

Pillow's full `load()` is the judge of what is whole, but for data missing before a JPEG's end marker, which it takes for grey. Plain JPEGs are
decoded by simplejpeg in its strict mode first, which refuses whatever libjpeg has a word to say about: what it accepts, Pillow accepts, with
the same pixels (a test cuts and flips thousands of files); what it refuses otherwise goes to Pillow. Before any decoder runs we look at the
first bytes ourselves: they choose the one decoder that may try, and files made of endless tiny parts, which cost a decoder written in Python
minutes, are refused.
"""

import contextlib
import io
import itertools
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline import jpeg
from pipeline.config import IngestConfig
from pipeline.measures import Pixels

NOT_READ = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"MM\0+": "a TIFF",
    b"<": "a web page or XML",
    b"%PDF": "a PDF",
}
"""What else stands in crawls, by its first bytes."""
_MAX_PARTS = 20_000
"""Chunks of a PNG, blocks of a GIF before its first frame. Files in the wild have some thousand at most."""
_MAX_RLE_PIXELS = 4_000_000
"""Pillow unpacks run-length encoded BMPs in Python."""
_USUAL_SCANS = 20
"""Each scan of a progressive JPEG is a pass over all of its pixels: no more passes than these over the largest picture allowed."""
_ORIENTATION = 0x0112
_MISSING_DATA = "premature end of data segment"  # libjpeg's words
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as on most pages that such pictures come from."""


@dataclass(frozen=True)
class Picture:
    """A picture that decoded whole."""

    pixels: Pixels
    """Upright RGB."""
    size: tuple[int, int]
    """Width and height as crawled, before the orientation is applied."""
    notes: tuple[str, ...]
    jpeg: bytes | None
    """The file without what trails it and without EXIF, XMP, captions and comments, when it is a JPEG whose pixels are `pixels` as they stand;
    else None."""


class Refused(Exception):  # noqa: N818 - a finding, which becomes a row; no error
    """No picture: (status, detail), and its size where that is known."""

    def __init__(self, status: str, detail: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.size = status, detail, size


def decode(content: bytes, config: IngestConfig) -> Picture:
    """The picture in `content`, upright RGB [H, W, 3].

    CMYK is converted without a profile, 16 bits are scaled (not cut) to 8, transparency is laid on white, of several frames the first is taken,
    an ICC profile is left out of account; each is said in `notes`.

    Raises Refused: with one of the statuses empty, too_large, unsupported_format, bomb, too_small, truncated, undecodable.
    """
    if not content:
        raise Refused("empty", "no bytes")
    if len(content) > config.max_item_bytes:
        raise Refused("too_large", f"{len(content)} bytes, {config.max_item_bytes} allowed")
    form = _form(content)
    if form == "JPEG":
        try:
            facts = jpeg.read_header(content)
        except ValueError as error:
            raise Refused("bomb", str(error)) from error
        size = (facts.width, facts.height) if facts else None
        scans, end = jpeg.scans_and_end(content, facts.scan if facts else 0)
        if scans > jpeg.MAX_SCANS or (size and scans * size[0] * size[1] > _USUAL_SCANS * config.max_pixels):
            raise Refused("bomb", f"{scans} scans or more", size)
        if facts is not None and facts.is_plain:
            _check_size((facts.width, facts.height), config)
            fast = plain_jpeg(content, facts, end)
            if fast is not None:
                return fast
    return _by_pillow(content, form, config)


def plain_jpeg(content: bytes, facts: jpeg.Header, end: int) -> Picture | None:
    """A plain JPEG by the fast decoder; None when that has anything to complain about, which leaves it to Pillow.

    Raises Refused: `truncated`, where data are missing before an end that is there, which Pillow fills with grey.
    """
    whole = content[:end]
    try:
        pixels = simplejpeg.decode_jpeg(whole, colorspace="RGB", strict=True)
    except ValueError as error:
        if _MISSING_DATA not in str(error) or not whole.endswith(b"\xff\xd9"):
            return None  # Pillow decides
        raise Refused("truncated", "the picture's data end before the picture does", (facts.width, facts.height)) from error
    if pixels.shape != (facts.height, facts.width, 3):
        return None
    orientation = 1
    if facts.exif is not None:
        exif = Image.Exif()
        with contextlib.suppress(Exception), _quiet():  # a damaged EXIF block is no reason to lose the picture
            exif.load(facts.exif)
            orientation = exif.get(_ORIENTATION, 1)
    notes = ["icc profile ignored"] if facts.has_icc else []
    pixels = _upright(pixels, orientation, notes)
    if len(whole) < len(content):
        notes.append(f"{len(content) - len(whole)} bytes after the end of the picture")
    return Picture(
        pixels, (facts.width, facts.height), tuple(notes), jpeg.without(whole, facts.private) if orientation not in _TURNS else None
    )


def _by_pillow(content: bytes, form: str, config: IngestConfig) -> Picture:
    size = None
    try:
        with _quiet(), Image.open(io.BytesIO(content), formats=[form]) as image:
            size = image.size
            _check_size(size, config)
            image.load()  # only a full load notices a file that ends early
            notes: list[str] = []
            if image.info.get("icc_profile"):
                notes.append("icc profile ignored")
            orientation = 1
            with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to lose the picture
                orientation = image.getexif().get(_ORIENTATION, 1)
            pixels = _upright(_rgb(image, notes), orientation, notes)
            with contextlib.suppress(Exception):  # a second frame that is damaged says nothing of the first
                frames = getattr(image, "n_frames", 1) if form != "GIF" else 1
                if frames > 1 or (form == "GIF" and _gif_has_frames_left(content)):
                    notes.append(f"first of {frames if frames > 1 else 'several'} frames")
            return Picture(pixels, size, tuple(notes), None)
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which a header meets before ours is asked
        told = re.search(r"\((\d+) pixels\)", str(error))
        limit = min(config.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or config.max_pixels))
        raise Refused("bomb", f"{told[1] if told else 'too many'} pixels, {limit} allowed (ingest.max_pixels)", size) from error
    except UnidentifiedImageError as error:  # its own words hold an address in memory
        raise _broken(form, content, f"the header of the {form} is damaged", size) from error
    except Exception as error:  # foreign decoders raise anything; each failure is a row
        raise _broken(form, content, f"{type(error).__name__}: {error}"[:300], size) from error


def _check_size(size: tuple[int, int], config: IngestConfig) -> None:
    if size[0] * size[1] > config.max_pixels:
        raise Refused("bomb", f"{size[0]} x {size[1]} pixels, {config.max_pixels} allowed (ingest.max_pixels)", size)
    if min(size) < config.min_side_px:
        raise Refused("too_small", f"{size[0]} x {size[1]} pixels, {config.min_side_px} wanted", size)


def _quiet() -> "warnings.catch_warnings[None]":
    """No warnings: on the size of a picture we decide ourselves, and a damaged EXIF block is no reason to lose it."""
    return warnings.catch_warnings(action="ignore")


# --- which decoder may try -----------------------------------------------------------------------------------------------------------


def _form(content: bytes) -> str:
    """Pillow's name of the format that the first bytes announce, whatever the file is called."""
    brand = content[8:12]
    if content.startswith(b"\xff\xd8"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        _limit_parts("PNG", _png_chunks(content))
        return "PNG"
    if content.startswith(b"RIFF") and brand == b"WEBP":
        return "WEBP"
    if content.startswith((b"GIF87a", b"GIF89a")):
        _limit_parts("GIF", _gif_blocks(content))
        return "GIF"
    if content.startswith(b"BM") and len(content) > 30:
        _check_bmp(content)
        return "BMP"
    if content[4:8] == b"ftyp":
        brands = {content[at : at + 4] for at in range(8, min(int.from_bytes(content[:4], "big"), 256), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            _teach_heif()
            return "HEIF"
    named = next((name for magic, name in NOT_READ.items() if content.lstrip().startswith(magic)), None)
    if named is not None:
        raise Refused("unsupported_format", f"{named}: no JPEG, PNG, WebP, GIF, BMP, AVIF or HEIC")
    raise Refused("unsupported_format", f"no JPEG, PNG, WebP, GIF, BMP, AVIF or HEIC: it begins with {content[:12]!r}")


def _teach_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise Refused(
            "unsupported_format", "a HEIC picture: install the extra, pip install 'arcface-purify[heif]', and run again"
        ) from error
    pillow_heif.register_heif_opener(thumbnails=False)  # doing it again changes nothing


def _limit_parts(form: str, parts: Iterator[int]) -> None:
    for number, _ in enumerate(parts):
        if number >= _MAX_PARTS:
            raise Refused("bomb", f"a {form} of more than {_MAX_PARTS} parts")


def _png_chunks(content: bytes) -> Iterator[int]:
    at = 8
    while at + 8 <= len(content):
        yield at
        at += 12 + int.from_bytes(content[at : at + 4], "big")


def _gif_blocks(content: bytes) -> Iterator[int]:
    """Where blocks begin that stand before the first frame, data blocks one by one."""
    for at, is_frame in _gif_parts(content):
        if is_frame:
            return
        yield at


def _gif_has_frames_left(content: bytes) -> bool:
    """Whether a second frame begins within the first 20,000 parts. Pillow would look through all of the file."""
    return sum(is_frame for _, is_frame in itertools.islice(_gif_parts(content), _MAX_PARTS)) > 1


def _gif_parts(content: bytes) -> Iterator[tuple[int, bool]]:
    """(place, whether a frame begins there) of every block and data block."""
    at = 13 + _palette_bytes(content[10:11])
    while at + 1 < len(content) and content[at] != 0x3B:
        is_frame = content[at] == 0x2C
        yield at, is_frame
        if is_frame:
            at += 11 + _palette_bytes(content[at + 9 : at + 10])
        elif content[at] == 0x21:
            at += 2
        else:
            at += 1
            continue
        while at < len(content) and content[at]:
            yield at, False
            at += 1 + content[at]
        at += 1


def _palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _check_bmp(content: bytes) -> None:
    width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18) if len(content) >= 34 else (0, 0, 0, 0, 0)
    if compression in {1, 2} and abs(width * height) > _MAX_RLE_PIXELS:
        raise Refused("bomb", f"a run-length encoded BMP of {abs(width * height)} pixels, {_MAX_RLE_PIXELS} allowed")


def _broken(form: str, content: bytes, detail: str, size: tuple[int, int] | None) -> Refused:
    if _ENDS_EARLY[form](content) or "truncated" in detail:
        return Refused("truncated", "the file ends before the picture does", size)
    return Refused("undecodable", detail, size)


def _riff_ends_early(content: bytes) -> bool:
    return len(content) < 8 + int.from_bytes(content[4:8], "little")


def _boxes_end_early(content: bytes) -> bool:
    """Whether a box of an ISO media file (AVIF, HEIC) reaches past its end."""
    at = 0
    for _ in range(_MAX_PARTS):
        if at == len(content):
            return False
        length = int.from_bytes(content[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(content[at + 8 : at + 16], "big")
        if length == 0:
            return False
        at += max(length, 8)
        if at > len(content):
            return True
    return False


_ENDS_EARLY: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda content: b"\xff\xd9" not in content[-2048:],
    "PNG": lambda content: b"IEND" not in content[-2048:],
    "WEBP": _riff_ends_early,
    "GIF": lambda content: b";" not in content[-64:],
    "BMP": lambda content: len(content) < int.from_bytes(content[2:6], "little"),
    "AVIF": _boxes_end_early,
    "HEIF": _boxes_end_early,
}
"""Whether the container says that there should be more: it tells `truncated` from `undecodable` where the decoder does not."""


# --- whatever it is, to upright RGB --------------------------------------------------------------------------------------------------

_TURNS: dict[int, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    2: ("mirrored", lambda a: a[:, ::-1]),
    3: ("turned by 180 degrees", lambda a: a[::-1, ::-1]),
    4: ("flipped", lambda a: a[::-1]),
    5: ("transposed", lambda a: a.transpose(1, 0, 2)),
    6: ("turned by 90 degrees", lambda a: a.transpose(1, 0, 2)[:, ::-1]),
    7: ("transversed", lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
    8: ("turned by 270 degrees", lambda a: a.transpose(1, 0, 2)[::-1]),
}
"""EXIF orientation: what was done, and how an array [H, W, 3] comes upright; 1, and what is no orientation, leaves it."""


def _upright(pixels: Pixels, orientation: Any, notes: list[str]) -> Pixels:
    if not isinstance(orientation, int) or orientation not in _TURNS:
        return pixels
    said, turn = _TURNS[orientation]
    notes.append(f"exif orientation: {said}")
    return np.ascontiguousarray(turn(pixels))


def _rgb(image: Image.Image, notes: list[str]) -> Pixels:
    if image.mode.startswith("I"):
        notes.append("16 bits scaled to 8")
        deep = np.asarray(image).astype(np.int64)
        scaled = np.clip((deep + 128) // 257, 0, 255).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if image.mode == "CMYK":
        notes.append("cmyk converted without a profile")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        see_through = image.convert("RGBA")
        opacity = see_through.getchannel("A")
        lowest, _ = opacity.getextrema()
        if isinstance(lowest, int | float) and lowest < 255:
            notes.append("transparency laid on white")
            page = Image.new("RGB", image.size, BACKGROUND)
            page.paste(see_through, mask=opacity)
            return np.asarray(page)
        image = see_through
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
