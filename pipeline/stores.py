"""Writing to an object store through fsspec: whole objects, in parts where they are large, tried again while the store is busy.

Credentials come from the environment, as the backends read it, and stand in no message, file or log of ours.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadConfig, BadInput, PurifyError
from pipeline.patience import patiently

R = TypeVar("R")
MULTIPART_BYTES = 64 * 2**20
"""Length of the parts of a large object."""


def require_store(url: str) -> str:
    """The URL as all functions take it. Raises BadConfig: for one that cannot be written, or that holds credentials."""
    located = places.located(url)
    if places.is_web(url):
        raise BadConfig(f"{places.recorded(url)} cannot be written by http. Give a folder, or a URL such as s3://bucket/prefix.")
    return located


def upload(path: Path, url: str) -> None:
    """Put a file into the store, whole or not at all. Raises BadInput: when the store does not take it, with the next step."""

    def put() -> None:
        files, target = places.backend(url)
        options = {"chunksize": MULTIPART_BYTES} if url.startswith(("s3://", "s3a://", "gs://", "gcs://")) else {}
        files.put_file(str(path), target, **options)

    def size() -> int:
        files, target = places.backend(url)
        return int(files.info(target)["size"])

    _explained(url, put)
    if (arrived := _explained(url, size)) != path.stat().st_size:
        raise BadInput(f"Of {path.stat().st_size} bytes {arrived} arrived at {url}. Give the same command again.")


def read_json(url: str) -> dict[str, Any] | None:
    """A JSON object of the store; None when there is none. Raises BadInput."""

    def read() -> bytes | None:
        try:
            return places.read_file(url, IngestConfig(max_item_bytes=2**31))
        except FileNotFoundError:
            return None

    content = _explained(url, read)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except ValueError as error:
        raise BadInput(f"{url} is no JSON ({error}). Give an empty prefix.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{url} is not one of ours. Give an empty prefix.")
    return found


def is_empty(url: str) -> bool:
    """True when nothing stands below a URL. Raises BadInput."""

    def look() -> bool:
        files, target = places.backend(url)
        try:
            return not any(str(one).rstrip("/") != target.rstrip("/") for one in files.ls(target, detail=False))
        except FileNotFoundError:
            return True

    return _explained(url, look)


def _explained(url: str, act: Callable[[], R]) -> R:
    try:
        return patiently(act)
    except PurifyError:
        raise
    except ImportError as error:
        raise BadInput(places.missing_package(url, error)) from error
    except Exception as error:
        raise BadInput(f"{url} cannot be used: {type(error).__name__}: {error}. {places.access_advice(url)}") from error
