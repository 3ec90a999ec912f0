"""Identity names as names of folders: safe on every file system, still readable, and to be turned back.

What is not a letter, a digit, a mark or one of `_ -.,'()+=@&` is percent-encoded in UTF-8, so `urllib.parse.unquote(folder)` is the identity.
A `~` never stands in an encoded name: behind it are hex digits of the identity's SHA-256, where the name was cut because file systems end at
255 bytes, or where two names differ in nothing but case or Unicode form, which some file systems take for one. identities.json has both.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_LONGEST = 200
"""Bytes; what is cut off leaves room for the digits."""
_ASCII = re.compile(r"[A-Za-z0-9_ \-.,'()+=@&]*")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?")
"""Names that Windows keeps for itself, with any extension."""


def folder_names(identities: Sequence[str]) -> list[str]:
    """A folder name for each identity, all different, also to file systems that see no case and no Unicode forms."""
    names = [_encoded(identity) for identity in identities]
    keys = [unicodedata.normalize("NFKC", name).casefold() for name in names]
    count = Counter(keys)
    return [
        f"{name}~{_digits(identity)}" if count[key] > 1 and "~" not in name else name
        for name, key, identity in zip(names, keys, identities, strict=True)
    ]


def _encoded(identity: str) -> str:
    name = identity if _ASCII.fullmatch(identity) else "".join(map(_character, identity))
    name = re.sub(r"^[ .\-]|[ .]$", lambda found: _percent(found.group()), name)
    if _DEVICES.fullmatch(name):
        name = _percent(name[0]) + name[1:]
    if len(name.encode()) <= _LONGEST:
        return name
    cut = name.encode()[:_LONGEST].decode("utf-8", "ignore")
    return re.sub(r"%.?$", "", cut).rstrip(" .") + "~" + _digits(identity)


def _character(one: str) -> str:
    return (
        one if (one.isascii() and _ASCII.fullmatch(one)) or (not one.isascii() and unicodedata.category(one)[0] in "LMN") else _percent(one)
    )


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _digits(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
