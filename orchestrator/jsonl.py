"""A file of JSON lines that grows with a run or a search, and can be cut back to what a checkpoint knew."""

import json
import os
from pathlib import Path
from typing import Any

from editing import InputError


class LineFile:
    """A file of JSON lines that grows, and can be cut back to an earlier length."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self._file = path.open("ab")
        if self._file.tell() < length:
            raise InputError(f"{path}: is shorter than its checkpoint says ({self._file.tell()} of {length} bytes)")
        self._file.truncate(length)
        self._file.seek(length)

    def add(self, values: dict[str, Any]) -> None:
        # a lone surrogate cannot be written as UTF-8; an escape can
        self._file.write(json.dumps(values, ensure_ascii=True, default=str).encode() + b"\n")

    def sync(self) -> int:
        """Have everything on the disk for good; the file's length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
