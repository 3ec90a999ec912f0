"""The saved queries of `data/sql/`, and their answers, kept beside the manifest: a report over ten million rows is read, not computed.

Kept are the answers that need the manifest alone. They are sealed with it, which is written anew when a round or a decision has changed it, and
`forget` answers anew; a query whose text has changed since is asked again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.duck import every, fetch, spilling
from pipeline.receipts import atomic
from pipeline.resources import data_folder

FOLDER = "_answers"
"""In the manifest's folder. Whoever reads a folder of Parquet files leaves out what begins so."""
_TEXT = b"sha256_of_sql"


@dataclass(frozen=True)
class SavedQuery:
    """A query of `data/sql/`: `name` is the file's stem, `title` its first line."""

    name: str
    title: str
    sql: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest().encode()


def saved_queries() -> dict[str, SavedQuery]:
    """The saved queries by name, in alphabetical order."""
    return {path.stem: _saved(path) for path in sorted(data_folder("sql").glob("*.sql"))}


def _saved(path: Path) -> SavedQuery:
    sql = path.read_text("utf-8")
    return SavedQuery(path.stem, sql.splitlines()[0].removeprefix("--").strip(), sql)


def keep_answers(manifest: Path) -> None:
    """Write the answer of every saved query that needs nothing but the parts in `manifest`.

    Memory is bounded (`spilling`). An answer that needs more of it, the median of hundreds of millions of angles, is not kept: it is computed when
    somebody asks.
    """
    folder = manifest / FOLDER
    folder.mkdir(exist_ok=True)
    with spilling(manifest / ".spilled") as db:
        db.read_parquet(every(manifest, "part-*.parquet")).create_view("manifest")
        for saved in saved_queries().values():
            try:
                answer = fetch(db, saved.sql)
            except (duckdb.CatalogException, duckdb.OutOfMemoryException):  # needs another table of the run, or too much memory
                continue
            with atomic(folder / f"{saved.name}.parquet") as temporary:
                pq.write_table(answer.replace_schema_metadata({_TEXT: saved.digest}), temporary)


def kept_answer(manifest: Path, saved: SavedQuery) -> pa.Table | None:
    """The answer that stands beside the manifest; None when there is none, or the query was another then."""
    path = manifest / FOLDER / f"{saved.name}.parquet"
    if not path.exists():
        return None
    answer = pq.read_table(path)
    is_of_now = (answer.schema.metadata or {}).get(_TEXT) == saved.digest
    return answer.replace_schema_metadata() if is_of_now else None
