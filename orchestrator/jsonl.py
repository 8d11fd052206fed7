"""A file of JSON lines that grows with a run or a search, and can be truncated to its length at a checkpoint; and what JSON can hold."""

import json
import math
import os
from pathlib import Path
from typing import Any

from editing import InputError


def without_infinities(values: Any) -> Any:
    """The same values, with ``None`` for a number that JSON has no word for, such as the perplexity of a model that broke."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {key: without_infinities(value) for key, value in values.items()}
    return [without_infinities(value) for value in values] if isinstance(values, list | tuple) else values


class LineFile:
    """A file of JSON lines that is appended to, and can be truncated to an earlier length.

    Args:
        path: The file; made if missing.
        length: Bytes that are kept of it.

    Raises:
        InputError: It is shorter than that.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self._file = path.open("ab")
        if self._file.tell() < length:
            raise InputError(f"{path}: is shorter than its checkpoint says ({self._file.tell()} of {length} bytes)")
        self._file.truncate(length)
        self._file.seek(length)

    def add(self, values: dict[str, Any]) -> None:
        # a lone surrogate cannot be written as UTF-8; an escape can
        self._file.write(json.dumps(without_infinities(values), ensure_ascii=True, default=str, allow_nan=False).encode() + b"\n")

    def sync(self) -> int:
        """Flush and fsync; returns the file's length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
