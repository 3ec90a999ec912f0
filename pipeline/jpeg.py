"""The header of a JPEG, read without decoding: what a fast decoder may take, and where the picture ends."""

import re
from dataclasses import dataclass

MAX_SCANS = 100
"""A progressive picture has about ten; each costs a pass over all pixels, and an empty one is a few bytes."""
_MAX_STEPS = 10_000
_NO_SEGMENT = {0xFF: 1, 0x00: 2, 0x01: 2, **dict.fromkeys(range(0xD0, 0xD8), 2)}
"""Fill bytes, escaped data, markers without a body: how many bytes to go on."""
_MARKS = re.compile(rb"\xff[\xd9\xda]")
_PRIVATE = {0xE1, *range(0xE3, 0xEE), 0xEF, 0xFE}
"""What a picture can do without: EXIF and XMP with their places and times, thumbnails, captions, comments. Not JFIF, ICC profile, Adobe's."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}


@dataclass(frozen=True)
class Header:
    """What stands before the first scan."""

    width: int
    height: int
    is_plain: bool
    """8 bits, grey or YCbCr, Huffman coded, one picture: two decoders that agree on nothing else agree on these."""
    has_icc: bool
    exif: bytes | None
    """The EXIF block, `Exif\\0\\0` and on."""
    scan: int
    """Where the first scan's header begins."""
    private: tuple[tuple[int, int], ...]
    """(begin, end) of the segments before it that say something of people and places, and nothing of pixels."""


def read_header(content: bytes) -> Header | None:
    """The header; None when it is damaged, or no frame of known size comes before the first scan. Source: ITU T.81, annex B.

    Raises ValueError: for more than 10,000 segments and fill bytes before the first scan.
    """
    at, frame, exif = 2, b"", None
    private: list[tuple[int, int]] = []
    has_icc, other = False, False
    for _ in range(_MAX_STEPS):
        marker = content[at + 1] if at + 1 < len(content) and content[at] == 0xFF else 0xD9
        if marker in _NO_SEGMENT:
            at += _NO_SEGMENT[marker]
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xD9 or length < 2 or at + 2 + length > len(content):
            return None
        if marker == 0xDA:
            break
        body = content[at + 4 : at + 2 + length]
        if marker in _PRIVATE:
            private.append((at, at + 2 + length))
        at += 2 + length
        if marker in _FRAMES and len(body) >= 6:
            other |= frame != b"" or marker not in _HUFFMAN_FRAMES
            frame = body
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            other |= exif is not None
            exif = body
        elif marker == 0xE1 and b"tiff:Orientation" in body:
            other = True
        elif marker == 0xE2:
            has_icc |= body.startswith(b"ICC_PROFILE\0")
            other |= body.startswith(b"MPF\0")
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            other |= body[11] != 1
    else:
        raise ValueError(f"more than {_MAX_STEPS} segments before the picture")
    if not frame:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    is_ycc = frame[5] in {1, 3} and frame[6::3][: frame[5]] != b"RGB"
    return Header(width, height, frame[0] == 8 and is_ycc and width > 0 and height > 0 and not other, has_icc, exif, at, tuple(private))


def without(content: bytes, spans: tuple[tuple[int, int], ...]) -> bytes:
    """`content` without these parts, (begin, end) in order."""
    edges = [0, *(edge for span in spans for edge in span), len(content)]
    return b"".join(content[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)) if spans else content


def scans_and_end(content: bytes, start: int) -> tuple[int, int]:
    """Scan headers (FF DA) from `start` on, counted up to just above MAX_SCANS, and where the first FF D9 ends, else the length.

    In coded data FF is followed by 0, so these are markers. A table between the scans of a progressive picture may hold an FF D9: try.
    """
    scans, end = 0, 0
    for found in _MARKS.finditer(content, start):
        if found[0] == b"\xff\xda":
            scans += 1
            if scans > MAX_SCANS:
                break
        elif not end:
            end = found.end()
    return scans, end or len(content)
