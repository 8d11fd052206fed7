"""The rows that go from stage to stage of a build: triples, names, and notes of what was counted or set aside."""

import unicodedata
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa

_BATCH_ROWS = 2**15
"""Rows of a table in memory: some ten megabytes as Python objects."""

SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("relation", pa.string()),
        ("object", pa.string()),
        ("object_type", pa.string()),
        ("names", pa.list_(pa.string())),
        ("note", pa.string()),
        ("number", pa.int64()),
    ]
)


class Row(NamedTuple):
    """One row of a stage: a triple, the names of an entity, or a note.

    Attributes:
        subject: Of a triple; or the entity that has ``names``.
        relation: Of a triple, as its templates are found; of a note, what it is about. ``None`` for an entity's names.
        object: Of a triple; of a note, an example.
        object_type: Of the object, where the triples tell it.
        names: Other names of a triple's object; or all names of an entity, its label first.
        note: What was counted; ``None`` for anything else.
        number: How often it was noted.
    """

    subject: str | None
    relation: str | None = None
    object: str | None = None
    object_type: str | None = None
    names: list[str] | None = None
    note: str | None = None
    number: int | None = None

    @property
    def is_triple(self) -> bool:
        return self.note is None and self.relation is not None


def counted(note: str, relation: str | None = None, example: str | None = None, number: int = 1) -> Row:
    """A note."""
    return Row(None, relation, example, note=note, number=number)


def digest(*parts: object) -> int:
    """A number of 64 bits that depends on the parts alone: every choice of a build is made with it."""
    return int.from_bytes(blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def tidy(text: str) -> str:
    """Text in one Unicode form, on one line."""
    return text if text.isascii() and text.isalnum() else " ".join(unicodedata.normalize("NFC", text).split())


def same(text: str) -> str:
    """What two spellings of one name have in common."""
    return tidy(text).casefold()


def to_tables(rows: Iterable[Row]) -> Iterator[pa.Table]:
    """Rows in tables of bounded length; notes of one kind become one row, and come last."""
    notes: dict[tuple[str, str | None], Row] = {}
    batch: list[Row] = []
    for row in rows:
        if row.note is not None:
            add_note(notes, row)
            continue
        batch.append(row)
        if len(batch) == _BATCH_ROWS:
            yield _table(batch)
            batch = []
    yield _table([*batch, *notes.values()])


def add_note(notes: dict[tuple[str, str | None], Row], row: Row) -> None:
    """Add a note to those of its kind. The example is the first by the alphabet, which no order of work changes."""
    assert row.note is not None
    kind = (row.note, row.relation)
    if (known := notes.get(kind)) is not None:
        example = min((e for e in (known.object, row.object) if e is not None), default=None)
        row = row._replace(object=example, number=(known.number or 0) + (row.number or 0))
    notes[kind] = row


def to_rows(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Row]:
    """The rows of tables, a stretch at a time."""
    for table in tables:
        for start in range(0, table.num_rows, _BATCH_ROWS):
            part = table.slice(start, _BATCH_ROWS)
            yield from map(Row._make, zip(*(part.column(name).to_pylist() for name in SCHEMA.names), strict=True))


def _table(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.Table.from_arrays([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
