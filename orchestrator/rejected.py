"""``rejected.jsonl``: one line for each record or edit that is in no result, with its number, the reason and its content.

The one writer of these lines. They are valid JSON for any reader, whatever the input held: JSON has no NaN, no infinity, no
bytes and no half of a surrogate pair, and few readers take a thousand brackets.
"""

import json
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from editing.datasets import BadRecord
from editing.requests import EditRequest
from orchestrator.jsonl import LineFile

_MAX_DEPTH = 50
"""Levels of nesting that are written; what lies deeper is replaced by a note."""


class RejectedRecords:
    """The rejected records of a run or of a conversion.

    Args:
        file: Where they are written.
    """

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def add_record(self, bad: BadRecord) -> None:
        """Write a record of an input that cannot be used."""
        self._add(bad.number, bad.reason, bad.raw)

    def add_edit(self, record: int, request: EditRequest, reason: str, *, edit_id: str | None = None) -> None:
        """Write an edit that was not applied, or that was removed.

        Args:
            record: Number of its record in its input.
            request: The edit.
            reason: Why it was not applied.
            edit_id: Its id, where the request has none.
        """
        self._add(record, reason, {"id": edit_id or request.id, **request.in_short()})

    def last_reason(self) -> str | None:
        """Reason of the last line; ``None`` if there is no line."""
        self._file.sync()
        with self._file.path.open(encoding="utf-8") as lines:
            last = deque(lines, maxlen=1)
        return str(json.loads(last[0])["reason"]) if last else None

    def _add(self, record: int, reason: str, content: Any) -> None:
        self._file.add({"record": record, "reason": as_json(reason), "content": as_json(content)})


def as_json(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """A value as every JSON reader takes it.

    Args:
        value: Anything that a record may hold.
        depth: Levels of nesting that are kept.

    Returns:
        The same with NaN and the infinities as their names, bytes and lone surrogates with escapes, other types as text.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOT_FINITE[str(value)]
    if isinstance(value, (Mapping, list, tuple)):
        return _container_as_json(value, depth)
    return _text(value)


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _container_as_json(value: Any, depth: int) -> Any:
    if not depth:
        return f"... (nested deeper than {_MAX_DEPTH} levels)"
    if isinstance(value, Mapping):
        return {_text(name): as_json(inner, depth - 1) for name, inner in value.items()}
    return [as_json(inner, depth - 1) for inner in value]


def _text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
