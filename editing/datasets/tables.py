"""Rows of a table as text: CSV with commas or semicolons, or TSV, with the names of the columns in the first line.

A cell that is empty is a field that is not there. A cell of a column that may hold lists or objects, as ``portability`` or
``persona``, is read as JSON where it is written so. A row that does not fit the header costs itself and no other.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from editing.errors import InputError

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")

_MAX_HEADER_BYTES = 2**14

_PLAIN = frozenset(
    ("prompt", "target", "target_new", "src", "alt", "ans", "update", "question", "answer", "subject", "text", "labels", "concept", "e_answer")
)
"""Columns that hold one text, whatever it looks like."""


def table_header(start: bytes) -> tuple[list[str], str] | None:
    """Names of the columns and their delimiter, if a text that begins so is a table; ``None`` if it is something else."""
    line = start[:_MAX_HEADER_BYTES].lstrip().splitlines()[:1]
    text = line[0].decode("utf-8", "replace").strip() if line else ""
    for delimiter in "\t,;":
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
        if len(names) > 1 and all(_NAME.fullmatch(name) for name in names):
            return names, delimiter
    return None


def read_table(path: Path, file: io.BufferedReader, names: Sequence[str], delimiter: str) -> Iterator[dict[str, Any] | str]:
    """Rows after the header, each as a record, or as what is wrong with it.

    Raises:
        InputError: Two columns have one name.
    """
    if double := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise InputError(f"{path}: expected columns with names of their own, found two called {double!r}")
    csv.field_size_limit(2**24)
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header = False
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield f"is not a row of the table ({error}); a cell with a quote is quoted itself, and its quotes are doubled"
            continue
        if row is None:
            text.detach()
            return
        if any(cell.strip() for cell in row):
            if header:
                yield _record(names, row)
            header = True


def _record(names: Sequence[str], row: Sequence[str]) -> dict[str, Any] | str:
    if len(row) != len(names):
        return f"has {len(row)} cells; the header names {len(names)} columns: a cell that holds the delimiter or a line end is quoted"
    for name, cell in zip(names, row, strict=True):
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return f"{name}: is not valid UTF-8; save the table as UTF-8"
    return {name: _value(name, cell) for name, cell in zip(names, row, strict=True) if cell.strip()}


def _value(name: str, cell: str) -> Any:
    if name not in _PLAIN and cell.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, (list, dict)) else cell
    return cell
