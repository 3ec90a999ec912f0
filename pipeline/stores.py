"""Writing to an object store through fsspec: whole objects, in parts where they are large, tried again while the store is busy.

Credentials come from the environment, as the backends read it, and stand in no message, file or log of ours.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import Callback

from pipeline import places
from pipeline.config import IngestConfig
from pipeline.errors import BadConfig, BadInput, PurifyError
from pipeline.patience import patiently

R = TypeVar("R")
MULTIPART_BYTES = 64 * 2**20
"""Length of the parts of a large object."""
_PARTS_AT_ONCE = 2
"""Each is in memory, of each upload that goes on."""


def require_store(url: str) -> str:
    """The URL as all functions take it. Raises BadConfig: for one that cannot be written, or that holds credentials."""
    located = places.located(url)
    if places.is_web(url):
        raise BadConfig(f"{places.recorded(url)} cannot be written by http. Give a folder, or a URL such as s3://bucket/prefix.")
    return located


class Abandoned(PurifyError):  # noqa: N818 - as the others of its tree
    """An upload that nobody wants any more. Nothing of it is in the store."""


def upload(path: Path, url: str, is_over: Callable[[], bool] = lambda: False) -> None:
    """Put a file into the store, whole or not at all.

    Raises BadInput: when the store does not take it, with the next step. Abandoned: when `is_over` says so between two parts.
    """

    def go_on(*_: object, **__: object) -> None:
        if is_over():
            raise Abandoned("The upload was stopped.")

    def put() -> None:
        files, target = places.backend(url)
        options = {"chunksize": MULTIPART_BYTES} if url.startswith(("s3://", "s3a://", "gs://", "gcs://")) else {}
        options |= {"max_concurrency": _PARTS_AT_ONCE} if url.startswith(("s3://", "s3a://")) else {}
        files.put_file(str(path), target, callback=Callback(hooks={"between parts": go_on}), **options)

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
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{url} is no JSON ({error}). Give an empty prefix.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{url} is not one of ours. Give an empty prefix.")
    return found


def write_json(url: str, value: dict[str, Any]) -> None:
    """Put a JSON object into the store, in place of what stood there, whole or not at all. Raises BadInput."""
    write(url, json.dumps(value, separators=(",", ":")).encode())


def write(url: str, content: bytes) -> None:
    """Put an object into the store, in place of what stood there, whole or not at all. Raises BadInput."""

    def put() -> None:
        files, target = places.backend(url)
        files.pipe_file(target, content)

    _explained(url, put)


def remove(url: str) -> None:
    """Remove an object; one that is not there is none. Raises BadInput."""

    def act() -> None:
        files, target = places.backend(url)
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(target)

    _explained(url, act)


def names(url: str) -> set[str]:
    """What stands directly below a URL; empty when nothing does. Raises BadInput."""

    def look() -> set[str]:
        files, target = places.backend(url)
        try:
            found = [str(one).rstrip("/") for one in files.ls(target, detail=False)]
        except FileNotFoundError:
            return set()
        return {one.rpartition("/")[2] for one in found if one != target.rstrip("/")}

    return _explained(url, look)


def is_empty(url: str) -> bool:
    """True when nothing stands below a URL. Raises BadInput."""
    return not names(url)


def _explained(url: str, act: Callable[[], R]) -> R:
    try:
        return patiently(act)
    except PurifyError:
        raise
    except ImportError as error:
        raise BadInput(places.missing_package(url, error)) from error
    except Exception as error:
        raise BadInput(f"{url} cannot be used: {type(error).__name__}: {error}. {_advice(url, str(error))}") from error


def _advice(url: str, told: str) -> str:
    if "Could not connect" in told or "onnect timeout" in told:
        return "The store does not answer. Give the same command again when it does."
    if "ucket does not exist" in told:
        return "Make the bucket first, or look at its name."
    return places.access_advice(url)
