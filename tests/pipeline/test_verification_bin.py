import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.verification_bin import read_bin, write_bin

IMAGES = [b"\xff\xd8\xff" + bytes([number]) * 9 for number in range(6)]
FLAGS = [True, False, True]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lfw.bin"


def dump(path: Path, content: Any, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def test_what_is_written_is_read_and_the_same_bytes_come_twice(path: Path) -> None:
    write_bin(path, IMAGES, FLAGS)
    first = path.read_bytes()
    assert read_bin(path) == (IMAGES, FLAGS)
    write_bin(path, *read_bin(path))
    assert path.read_bytes() == first
    write_bin(path, iter(IMAGES), FLAGS)
    assert path.read_bytes() == first


def test_insightface_reads_what_is_written(path: Path) -> None:
    """Its scripts call pickle.load, with and without encoding="bytes", and want a pair of lists, of bytes and of bools."""
    images = [b"\xff\xd8" + bytes(range(256)) * 300, *IMAGES[1:]]
    write_bin(path, images, FLAGS)
    for options in ({}, {"encoding": "bytes"}):
        assert pickle.loads(path.read_bytes(), **options) == (images, FLAGS)  # type: ignore[call-overload]
    assert {code.name for code, *_ in pickletools.genops(path.read_bytes())} == {
        *("PROTO", "EMPTY_LIST", "MARK", "BINBYTES", "APPENDS", "NEWTRUE", "NEWFALSE", "TUPLE2", "STOP")
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "stored",
    [
        (IMAGES, FLAGS),
        [tuple(IMAGES), tuple(FLAGS)],
        ([np.frombuffer(image, np.uint8) for image in IMAGES], FLAGS),
        ([np.array(list(image), np.uint8) for image in IMAGES], [np.bool_(flag) for flag in FLAGS]),
        (IMAGES, np.array(FLAGS)),
    ],
    ids=["bytes", "tuples", "arrays", "bool scalars", "bool array"],
)
def test_every_protocol_and_kind_of_storage_gives_bytes_and_bools(path: Path, protocol: int, stored: Any) -> None:
    dump(path, stored, protocol)
    images, flags = read_bin(path)
    assert (images, flags) == (IMAGES, FLAGS)
    assert all(type(image) is bytes for image in images) and all(type(flag) is bool for flag in flags)


def test_a_file_of_python_2_is_read(path: Path) -> None:
    """Its images are the byte strings of Python 2 (SHORT_BINSTRING), which insightface reads with encoding='bytes'."""
    strings = b"".join(b"U" + bytes([len(image)]) + image for image in IMAGES)
    path.write_bytes(b"\x80\x02](" + strings + b"e](\x88\x89\x88e\x86.")
    assert read_bin(path) == (IMAGES, FLAGS)


def test_numpy_under_its_old_name_is_known(path: Path) -> None:
    content = pickle.dumps(([np.array(list(image), np.uint8) for image in IMAGES], FLAGS), protocol=2)
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_bin(path) == (IMAGES, FLAGS)


class Call:
    """Pickles as a call of `function(*given)`, and as `state` set on what it returns."""

    def __init__(self, function: Callable[..., Any], *given: Any, state: Any = None) -> None:
        self.reduced = (function, given) if state is None else (function, given, state)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "wrap", [lambda evil: evil, lambda evil: ([evil, *IMAGES[1:]], FLAGS), lambda evil: (IMAGES, [evil])], ids=["whole", "image", "flag"]
)
def test_a_hostile_pickle_runs_nothing(path: Path, protocol: int, wrap: Callable[[Any], Any]) -> None:
    victim = path.with_name("victim")
    dump(path, wrap(Call(os.system, f"touch {victim}")), protocol)
    with pytest.raises(BadInput, match=r"lfw\.bin is no verification file.* asks for (posix|nt)\.system, .* not run\. Take it"):
        read_bin(path)
    assert not victim.exists()
    pickle.Unpickler(io.BytesIO(path.read_bytes())).load()  # the attack is real: an ordinary unpickler runs it
    assert victim.exists()


@pytest.mark.parametrize(
    ("evil", "asked"),
    [
        (Call(eval, "1/0"), "builtins.eval"),
        (Call(getattr, "", "join"), "builtins.getattr"),
        (Call(bytearray, 5), "builtins.bytearray"),
        (Call(np.load, "x"), "numpy.load"),
        (Call(np.fromfile, "x"), "numpy"),
    ],
)
def test_other_names_are_refused_too(path: Path, evil: Call, asked: str) -> None:
    dump(path, (IMAGES, [evil]))
    with pytest.raises(BadInput, match=f"asks for {asked}"):
        read_bin(path)


def global_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (global_of("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R", "takes 0 positional arguments"),
        (global_of("_codecs", "encode") + b"X\x01\0\0\0aX\x03\0\0\0zip\x86R", "encodes a str as 'zip'"),
        (global_of("_codecs", "encode") + b"}X\x06\0\0\0mirror\x88sb", "alters a function"),
        (global_of("numpy", "dtype") + b"X\x02\0\0\0O8\x85R", "array of 'O8'"),
        (global_of("numpy._core.multiarray", "_reconstruct") + b")R(K\x01K\x09NNNtb", "array in an unknown way"),
        (global_of("numpy._core.multiarray", "scalar") + b"NC\x01\x01\x86R", "no bool"),
        (b"J\xff\xff\xff\x7f", "holds a int"),
        (b"Pwhere\n", "persistent"),
        (b"(X\x04\0\0\0trueios\nsystem\n", "os.system"),
    ],
    ids=["huge bytes", "codec", "set state", "object dtype", "array state", "scalar", "int", "persistent id", "INST"],
)
def test_allowed_names_cannot_be_misused(path: Path, program: bytes, message: str) -> None:
    path.write_bytes(b"\x80\x03" + program + b".")
    with pytest.raises(BadInput, match=message):
        read_bin(path)
    write_bin(path, IMAGES, FLAGS)
    assert read_bin(path) == (IMAGES, FLAGS), "a hostile file changed how the next one is read"


def test_an_array_must_be_as_large_as_it_says(path: Path) -> None:
    content = pickle.dumps(([np.arange(65, 74, dtype=np.uint8)] * 2, [True]), protocol=2)
    assert any(argument == 9 for _, argument, _ in pickletools.genops(content))
    path.write_bytes(content.replace(b"K\t\x85", b"K\x63\x85"))
    with pytest.raises(BadInput, match=r"array of shape \(99,\) with 9 bytes"):
        read_bin(path)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ((IMAGES[:5], FLAGS), "5 images for 3 pairs"),
        ((IMAGES, FLAGS[:2]), "6 images for 2 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [1, 0, 1]), "flag 0 is a int, flag 1 is a int"),
        (([*IMAGES[:5], b""], FLAGS), "image 5 is empty"),
        (([*IMAGES[:5], None], FLAGS), "image 5 is empty"),
        (([*IMAGES[:5], "text"], FLAGS), "image 5 is a str"),
        (([*IMAGES[:5], np.zeros((2, 2), np.uint8)], FLAGS), r"image 5 is an array of uint8 \(2, 2\)"),
        (([*IMAGES[:5], np.zeros(2, bool)], FLAGS), r"image 5 is an array of bool \(2,\)"),
        (([*IMAGES[:5], np.zeros(2, np.float32)], FLAGS), "array of 'f4'"),
        (({"a": 1}, FLAGS), "a dict and a list"),
        ((IMAGES, FLAGS, 3), r"holds a tuple, and a verification file holds \(images, flags\)"),
        (b"", "holds empty"),
    ],
)
def test_other_content_is_refused_with_its_place(path: Path, stored: Any, message: str) -> None:
    dump(path, stored)
    with pytest.raises(BadInput, match=rf"lfw\.bin.*{message}"):
        read_bin(path)


def test_damaged_and_absent_files_are_refused(path: Path) -> None:
    with pytest.raises(BadInput, match=r"lfw\.bin cannot be read: No such file.* Check the path"):
        read_bin(path)
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read_bin(path.parent)
    write_bin(path, IMAGES, FLAGS)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"PK\x03\x04 no pickle", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"lfw\.bin is no verification file"):
            read_bin(path)


def test_what_could_not_be_read_is_not_written(path: Path) -> None:
    with pytest.raises(ValueError, match="6 images for 2 flags"):
        write_bin(path, IMAGES, FLAGS[:2])
    with pytest.raises(ValueError, match="image 1 is empty"):
        write_bin(path, [b"a", b""], [True])
    assert not path.exists()
