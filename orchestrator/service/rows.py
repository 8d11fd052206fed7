"""Rows of the database as plain dictionaries."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Select

Row = Mapping[str, Any]


def all_rows(connection: Connection, query: Select[Any]) -> list[Row]:
    """What a query finds."""
    return [dict(row) for row in connection.execute(query).mappings()]


def first_row(connection: Connection, query: Select[Any]) -> Row | None:
    """The first of what a query finds."""
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def streamed_rows(connection: Connection, query: Select[Any]) -> Iterator[Row]:
    """What a query finds, at constant memory."""
    return (dict(row) for row in connection.execution_options(yield_per=500).execute(query).mappings())
