"""The contract on disk, and its page."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import contract, tables
from pipeline.errors import SchemaMismatch


def test_the_page_is_generated_from_the_schemas() -> None:
    page = Path(__file__).parents[2] / "data" / "README.md"
    assert page.read_text("utf-8") == contract.page(), "run: python -m pipeline.contract > data/README.md"


def test_every_column_says_what_it_is_and_every_score_which_way_is_better() -> None:
    for schema in (tables.ITEMS, tables.NOISE, tables.MANIFEST, tables.CLEAN, tables.METRICS, tables.embeddings(8)):
        for field in schema:
            assert field.metadata[b"about"], field.name
            if pa.types.is_floating(field.type) and field.name not in {"low", "high"}:
                is_place = field.metadata[b"unit"].startswith(b"pixels") or b"-90" in field.metadata[b"unit"]
                assert field.metadata[b"direction"] or is_place, f"{field.name} is a score without a direction"


def test_tables_of_others_and_of_other_versions_are_refused(tmp_path: Path) -> None:
    pq.write_table(tables.CLASSES.empty_table(), tmp_path / "classes.parquet")
    tables.check(tmp_path / "classes.parquet", tables.CLASSES)
    with pytest.raises(SchemaMismatch, match="is no manifest table"):
        tables.check(tmp_path / "classes.parquet", tables.MANIFEST)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(SchemaMismatch, match="schema version none"):
        tables.check(tmp_path / "foreign.parquet", tables.MANIFEST)
    later = tables.CLASSES.empty_table().replace_schema_metadata({"table": "classes", "version": "99"})
    pq.write_table(later, tmp_path / "later.parquet")
    with pytest.raises(SchemaMismatch, match="schema version 99"):
        tables.check(tmp_path / "later.parquet", tables.CLASSES)
