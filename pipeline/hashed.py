"""A file that is written once, from its first byte to its last: hashed on the way, and given to the disk while more is written."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

_PIECE = 8 * 2**20
"""Bytes after which the disk is asked to begin."""


class HashedFile(io.RawIOBase):
    """A new file with the SHA-256 of what was written so far; closed, it is on the disk.

    Left alone, the system gathers what is written and the disk begins when the file is closed; so the disk is asked early, where the system
    can be asked.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._bytes = self._given = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        total = len(left)
        self._digest.update(left)
        while left:
            left = left[self._file.write(left) :]
        self._bytes += total
        if self._bytes - self._given >= _PIECE:
            begin_writing(self._file.fileno(), self._given, self._bytes)
            self._given = self._bytes
        return total

    def tell(self) -> int:
        return self._bytes

    def close(self) -> None:
        if not self.closed:
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()


def begin_writing(descriptor: int, start: int, end: int) -> None:
    """Ask the system to write these bytes of a file to the disk, and go on. It is a hint: nothing is known to be there before fsync.

    Linux writes dirty pages before it can drop them (mm/fadvise.c), which is what this advice asks for; other systems may do nothing.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
