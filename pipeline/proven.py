"""Crops of a tar in one pass from its first byte to its last, all of which are hashed on the way.

So the proof costs no second reading, and comes last: what was written with the crops is given its final name after the pass has ended well.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadShard
from pipeline.shards import check_shard

_BLOCK = 4 * 2**20


def proven_crops(tar: Path, offset_N: NDArray[np.int64], size_N: NDArray[np.int64]) -> Iterator[list[memoryview]]:
    """The crops at ascending offsets of a tar, in order, some at a time; memory holds a block of 4 MB, or one crop where that is longer.

    They are views of that block, which is read into again: good until the next are asked for.
    Raises BadShard: at once, when the tar has another length than its sidecar says, or the places do not lie one after the other in it; at the
    end, when its bytes have another SHA-256.
    """
    facts = check_shard(tar)
    total = int(facts["tar_bytes"])
    end_N = offset_N + size_N
    again = f"Remove {tar.parent} and run again: it will be made anew."
    if len(offset_N) and (offset_N[0] < 0 or size_N.min() < 0 or end_N[-1] > total or (offset_N[1:] < end_N[:-1]).any()):
        raise BadShard(f"The crops that the twin of {tar} tells of do not lie one after the other in it. {again}")
    digest = hashlib.sha256()
    memory = memoryview(bytearray(min(_BLOCK, total)))
    start = done = 0
    with tar.open("rb", buffering=0) as file:
        while start < total:
            until = min(start + _BLOCK, total)
            last = int(np.searchsorted(end_N, until, side="right"))
            if last < len(end_N) and offset_N[last] < until:  # a crop that this block would cut
                until = int(end_N[last - 1] if last > done else end_N[done])
                last = max(last, done + 1)
            if until - start > len(memory):
                memory = memoryview(bytearray(until - start))
            block = memory[: until - start]
            if _fill(file, block) != len(block):
                raise BadShard(f"{tar} ends before byte {until}. {again}")
            digest.update(block)
            if last > done:
                places = zip(offset_N[done:last].tolist(), end_N[done:last].tolist(), strict=True)
                yield [block[begin - start : end - start] for begin, end in places]
            start, done = until, last
    if digest.hexdigest() != facts["tar_sha256"]:
        raise BadShard(f"{tar} differs from the SHA-256 in its sidecar. {again}")


def _fill(file: io.RawIOBase, block: memoryview) -> int:
    """Bytes read into `block`: all of it but at the end of the file."""
    done = 0
    while done < len(block) and (count := file.readinto(block[done:])):
        done += count
    return done
