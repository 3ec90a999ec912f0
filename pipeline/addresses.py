"""Paths and URLs as texts: what they name, how they are recorded and shown, and that no secret stands in them. Nothing is opened."""

import re
from pathlib import Path

from pipeline.errors import BadConfig

Location = str | Path
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PARTS = re.compile(r"([^/]*://)([^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"(\[[^\]]*\]|[^:@]*)(:\d*)?")
_TOKENS = ("http://", "https://", "s3://", "s3a://", "gs://", "gcs://")
"""Schemes in which all before an `@` is a secret. Elsewhere it may be a user or, as in abfs://container@account, a part of the place."""
_QUERY = re.compile(r"\?[\w.-]+=.*", re.DOTALL)


def is_remote(crawl: Location) -> bool:
    """True for a URL other than file://."""
    return bool(_SCHEME.match(str(crawl))) and not str(crawl).startswith("file://")


def is_web(crawl: Location) -> bool:
    """True for http:// and https://."""
    return str(crawl).lower().startswith(("http://", "https://"))


def holds_credentials(address: Location) -> bool:
    """True for a URL with a password in it, or with a user or key where that is one; also where a `/` in it hides the `@`."""
    found = _PARTS.match(str(address))
    if found is None or "@" not in found[2] + found[3]:
        return False
    if "@" in found[2]:
        return ":" in found[2].rpartition("@")[0] or found[1].lower().endswith(_TOKENS)
    return _HOST.fullmatch(found[2]) is None


def located(crawl: Location) -> str:
    """The location as all readers and writers take it: an absolute path, or a URL without a slash at its end.

    Raises BadConfig: for a URL with credentials, before anything is asked.
    """
    text = str(crawl)
    if holds_credentials(text):
        raise BadConfig(
            f"Credentials do not belong into a URL, which is written into records. Give {shown(text)}, and set them in the environment: docs/crawls.md."
        )
    if is_remote(text):
        return text if is_web(text) else text.rstrip("/")
    return str(Path(text.removeprefix("file://")).resolve())


def shown(address: Location) -> str:
    """The address as messages, logs and records may hold it: without credentials, and without a query, in which signatures stand."""
    text = str(address)
    found = _PARTS.match(text)
    if found is None:
        return text
    scheme, host, rest = found.groups()
    if holds_credentials(text):
        host, rest = (host.rpartition("@")[2], rest) if "@" in host else ("", rest.rpartition("@")[2])
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if is_web(text) else _QUERY.sub("", rest)
    return f"{scheme}{host}{rest}"


def recorded(crawl: Location) -> str:
    """The location as records hold it: absolute, and as it may be shown."""
    return shown(located(crawl))


def name_of(location: Location) -> str:
    """The last part of a path or URL, without its query."""
    text = str(location)
    return (text.partition("?")[0] if is_web(text) else text).rstrip("/").rpartition("/")[2]


def join(place: str, path: str) -> str:
    """`path` inside of `place`; `place` itself when it is empty."""
    return f"{place}/{path}" if path else place
