"""The decisions that stand, kept up to date by reading only the files that are new: an answer does not wait for thousands of earlier ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables


@dataclass
class Standing:
    """As `decisions.read_standing` of a run, a row per sample."""

    folder: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """sample_id -> its decision that stands."""
    _said: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """sample_id -> decision_id -> every decision that was not undone."""
    _undone: set[str] = field(default_factory=set)
    _files: set[str] = field(default_factory=set)

    def refresh(self) -> None:
        """Read what was added since the last call; everything, when a file is gone, as after `purify forget`."""
        files = {path.name for path in self.folder.glob("*.parquet")}
        if not self._files <= files:
            for remembered in (self.rows, self._said, self._undone, self._files):
                remembered.clear()
        if new := sorted(files - self._files):
            self._add(pa.concat_tables([pq.read_table(self.folder / name, schema=tables.DECISIONS) for name in new]).to_pylist())
            self._files = files

    def _add(self, new: list[dict[str, Any]]) -> None:
        self._undone |= {row["undoes"] for row in new if row["verdict"] == "undo" and row["undoes"]}
        for row in new:
            if row["verdict"] != "undo":
                self._said.setdefault(row["sample_id"], {})[row["decision_id"]] = row
        for sample in {row["sample_id"] for row in new}:
            left = [row for name, row in self._said.get(sample, {}).items() if name not in self._undone]
            if left:
                self.rows[sample] = max(left, key=lambda row: (row["decided_at"], row["decision_id"]))
            else:
                self.rows.pop(sample, None)
