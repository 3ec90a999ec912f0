"""Foreign text for people: what would steer a terminal, break a line or turn the direction of writing is spelled out, and does nothing."""

import json
import re
from typing import Any

_STEERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, Unicode's breaks of lines and paragraphs, marks and overrides of direction, and lone surrogates."""


def visible(text: str, *, keep: str = "") -> str:
    """`text` with direction overrides and control characters spelled out, as in `⟨U+202E⟩`; all else, and what is in `keep`, verbatim."""
    return _STEERS.sub(lambda found: found.group() if found.group() in keep else f"⟨U+{ord(found.group()):04X}⟩", text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON in which the same characters are escapes: the data are exact, and nothing of them steers a terminal."""
    return escaped_json(json.dumps(value, ensure_ascii=False, indent=indent))


def escaped_json(text: str) -> str:
    """JSON with the same characters as escapes, but for its line breaks, which stand between values."""
    return _STEERS.sub(lambda found: found.group() if found.group() == "\n" else f"\\u{ord(found.group()):04x}", text)


def counted(count: int, one: str, many: str | None = None) -> str:
    """So many of it, in words: `1 folder`, `2 folders`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
