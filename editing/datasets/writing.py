"""The common schema, written: one row a request, as Parquet, or as JSON lines where the name ends in ``.jsonl``.

What is read back are the same requests. A column that holds several texts is a list; where a request has none, it is empty.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.requests import TEXT_LISTS, EditRequest

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_KINDS = {"messages": pa.list_(_MESSAGE), **dict.fromkeys(TEXT_LISTS, pa.list_(pa.string()))}

REQUEST_COLUMNS = [(f.name, _KINDS.get(f.name, pa.string())) for f in fields(EditRequest)]
"""Name and type of each field of a request, here, in the ledger and in results."""

SCHEMA = pa.schema(REQUEST_COLUMNS)

_BATCH_ROWS = 10_000
_BATCH_CHARACTERS = 2**24


def request_row(request: EditRequest) -> dict[str, Any]:
    """A request's fields as :data:`REQUEST_COLUMNS` hold them."""
    row = {name: getattr(request, name) for name, _ in REQUEST_COLUMNS}
    return {**row, "messages": [asdict(message) for message in request.messages]}


class RequestWriter:
    """Context manager that writes requests to a file, a batch at a time.

    Args:
        path: The file; its name decides.

    Attributes:
        count: Requests written so far.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._lines = path.open("w", encoding="utf-8") if path.suffix == ".jsonl" else None
        self._parquet = pq.ParquetWriter(path, SCHEMA, compression="zstd") if self._lines is None else None
        self._pending: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, request: EditRequest) -> None:
        """Append a request."""
        self.count += 1
        row = request_row(request)
        if self._lines is not None:
            given = {name: value for name, value in row.items() if value and not (name == "prompt" and request.messages)}
            self._lines.write(json.dumps(given, ensure_ascii=False) + "\n")
            return
        self._pending.append(row)
        self._characters += sum(map(_characters, row.values()))
        if len(self._pending) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def __enter__(self) -> "RequestWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._parquet is not None:
            self._flush()
            self._parquet.close()

    def _flush(self) -> None:
        assert self._parquet is not None
        if self._pending:
            self._parquet.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMA))
        self._pending, self._characters = [], 0


def _characters(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return len(value) if isinstance(value, str) else sum(map(_characters, value or ()))
