"""insightface's `.bin` verification files: a pickle of (images, flags), read without letting the pickle run anything.

A pickle is a program. Of what it may name, only the few things that bytes and numpy arrays are made of are known here, and each of those
is a stand-in of ours that checks its arguments: neither numpy nor anything else is called on the file's behalf.
"""

import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.receipts import atomic

_PROTOCOL = 3
"""The first that knows byte strings."""
_KINDS = {"u1": "uint8", "b1": "bool"}
_FEW = 3


def read_bin(path: Path) -> tuple[list[bytes], list[bool]]:
    """(images, flags): encoded images as bytes, of which 2 i and 2 i + 1 are pair i, and whether pair i shows one person.

    Images may be stored as bytes or as 1-D uint8 arrays, flags as bools or a bool array; files of Python 2 are read too.
    Raises BadInput: when the file is not there, is no such pickle, names anything else, or has not two images per flag.
    """
    try:
        with path.open("rb") as file:
            found = _DataUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}. Check the path (--protocol, or evaluate.bins).") from error
    except Exception as error:  # a damaged pickle raises anything
        raise BadInput(f"{path} is no verification file of insightface: {str(error)[:200]}. Take it from its source again.") from error
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise BadInput(f"{path} holds {_kind(found)}, and a verification file holds (images, flags). Take it from its source again.")
    images, flags = found
    if isinstance(flags, _Array) and flags.kind == "bool" and len(flags.shape) == 1:
        flags = [byte != 0 for byte in flags.content]
    if not isinstance(images, (list, tuple)) or not isinstance(flags, (list, tuple)):
        raise BadInput(f"{path} holds {_kind(images)} and {_kind(flags)}, and wants a list of images and one of flags.")
    wrong = [f"flag {number} is {_kind(flag)}" for number, flag in enumerate(flags) if not isinstance(flag, bool)][:_FEW]
    if wrong:
        raise BadInput(f"{path}: {', '.join(wrong)}. A flag is True for one person, False for two.")
    if not flags or len(images) != 2 * len(flags):
        raise BadInput(f"{path} holds {len(images)} images for {len(flags)} pairs, two each are wanted. Take it from its source again.")
    return [_image(image, f"{path} image {number}") for number, image in enumerate(images)], list(flags)


def write_bin(path: Path, images: Iterable[bytes], flags: Sequence[bool]) -> None:
    """Write encoded images, two per flag, as a verification file that insightface's scripts and `read_bin` read.

    The file is a pickle, written without pickle: a list of byte strings and one of bools take six kinds of opcodes, and images go to the disk one by one.
    Raises ValueError: when there are not two images per flag, or an image is empty; then no file is left.
    """
    count = 0
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(pickle.PROTO + bytes([_PROTOCOL]) + pickle.EMPTY_LIST + pickle.MARK)
        for image in images:
            if not image:
                raise ValueError(f"image {count} is empty: leave its pair out")
            file.write(pickle.BINBYTES + len(image).to_bytes(4, "little") + image)
            count += 1
        if not flags or count != 2 * len(flags):
            raise ValueError(f"two images per pair are wanted, got {count} images for {len(flags)} flags")
        file.write(pickle.APPENDS + pickle.EMPTY_LIST + pickle.MARK)
        file.write(b"".join(pickle.NEWTRUE if flag else pickle.NEWFALSE for flag in flags))
        file.write(pickle.APPENDS + pickle.TUPLE2 + pickle.STOP)


class _Array:
    """What a pickle says of an array: its type, shape and content; the array itself is never made."""

    __slots__ = ("content", "kind", "shape")

    def __init__(self) -> None:
        self.kind, self.shape, self.content = "", (), b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, content = state
        self.fill(content, dtype, shape)

    def fill(self, content: Any, dtype: Any, shape: Any) -> None:
        """Take over checked content."""
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("it describes an array in an unknown way")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"it describes an array of shape {shape!r:.80} with {len(content)} bytes")
        self.kind, self.shape, self.content = dtype.kind, shape, bytes(content)


class _Dtype:
    """An element type of one byte, for which byte order and alignment mean nothing."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing to set."""


class _StandIn:
    """A function that a pickle may call, but not alter."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        return self._call(*given)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it alters a function")


def _empty_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str | bytes) -> bytes:
    if _text(encoding) != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it encodes {_kind(text)} as {encoding!r:.80}")
    return text.encode("latin1")


def _dtype(name: Any, *_: Any) -> _Dtype:
    if _text(name) not in _KINDS:
        raise pickle.UnpicklingError(f"it holds an array of {name!r:.80}, and images are arrays of uint8")
    return _Dtype(_KINDS[_text(name)])


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape)
    return array


def _scalar(dtype: Any, content: Any) -> bool:
    if not isinstance(dtype, _Dtype) or dtype.kind != "bool" or content not in (b"\0", b"\1"):
        raise pickle.UnpicklingError("it holds a number that is no bool")
    return bool(content == b"\1")


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else name if isinstance(name, str) else ""


_KNOWN: dict[tuple[str, str], _StandIn | None] = {
    ("builtins", "bytes"): _StandIn(_empty_bytes),
    ("_codecs", "encode"): _StandIn(_encode),
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(_dtype),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _StandIn(_reconstruct) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _StandIn(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _StandIn(_frombuffer) for core in ("core", "_core")},
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no image and no flag, and was not run")
        return _KNOWN[module, name]


def _image(image: Any, name: str) -> bytes:
    content = image.content if isinstance(image, _Array) and image.kind == "uint8" and len(image.shape) == 1 else image
    if not isinstance(content, bytes) or not content:
        raise BadInput(f"{name} is {_kind(image)}, and wants the bytes of an encoded image. Take the file from its source again.")
    return content


def _kind(value: Any) -> str:
    if isinstance(value, _Array):
        return f"an array of {value.kind} {value.shape}"
    return "empty" if value in (b"", None) else f"a {type(value).__name__}"
