"""The identities of a round in one file that every worker maps: an identity's class is its place in it. No worker holds millions of names."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.receipts import atomic


@dataclass(frozen=True)
class Names:
    """Where the names lie."""

    path: Path

    @classmethod
    def write(cls, path: Path, names: pa.ChunkedArray) -> Self:
        """Put names into a file. They are unique."""
        table = pa.table({"identity": names}).combine_chunks()
        with atomic(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return cls(path)

    def array(self) -> pa.ChunkedArray:
        """All names, mapped."""
        return _mapped(self.path)

    def classes(self, identities: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Class of each identity; -1 for null and for one that is not there."""
        found = pc.index_in(identities, value_set=self.array().combine_chunks())
        class_N: NDArray[np.int64] = pc.fill_null(found.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        return class_N

    def one(self, number: int) -> str:
        """Name of one class."""
        name: str = self.array()[number].as_py()
        return name

    def of(self, class_N: NDArray[np.int64]) -> pa.ChunkedArray:
        """Name of each class; null for a negative one."""
        return self.array().take(pa.array(class_N, mask=class_N < 0))


@lru_cache(maxsize=1)
def _mapped(path: Path) -> pa.ChunkedArray:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()["identity"]
