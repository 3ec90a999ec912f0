"""A column with its unit and direction, a table with its version: what every schema is made of."""

import pyarrow as pa

VERSION = "4"
"""Of all tables together."""


def field(name: str, kind: pa.DataType, about: str, *, unit: str = "", direction: str = "", nullable: bool = True) -> pa.Field:
    """A column; `direction` says what higher or lower means of a score."""
    return pa.field(name, kind, nullable, {"about": about, "unit": unit, "direction": direction})


def schema(name: str, fields: list[pa.Field]) -> pa.Schema:
    """A table, its name and version in the metadata."""
    return pa.schema(fields, metadata={"table": name, "version": VERSION})
