"""The log of a search: every measurement, on the disk as soon as it is made, so that a search that was stopped measures nothing twice."""

import json
from pathlib import Path
from typing import Any

from editing import InputError
from editing.files.format_version import Format
from orchestrator.jsonl import LineFile

Key = tuple[str, ...]

FORMAT = Format("trial log", 1)


class TrialLog:
    """A file of JSON lines: first what all measurements depend on, then each with its key.

    Args:
        path: The file; made if it is missing, continued if it exists.
        settings: What all measurements depend on, as plain values.
        overwrite: Discard what the file holds.

    Raises:
        InputError: The file is of other settings or of a newer format version, or is not such a log.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self._path = path
        self._known: dict[Key, dict[str, Any]] = {}
        length = 0
        if path.exists() and not overwrite:
            length = self._read(settings)
        self._file = LineFile(path, length)
        if not length:
            self._add({**FORMAT.tag, "settings": settings})

    def __enter__(self) -> "TrialLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, *key: str) -> dict[str, Any] | None:
        """The values under a key; ``None`` if there are none."""
        return self._known.get(key)

    def put(self, *key: str, **values: Any) -> dict[str, Any]:
        """Write values under a key to the disk, and return them."""
        self._add({"key": key, **values})
        self._known[key] = values
        return values

    def _add(self, values: dict[str, Any]) -> None:
        self._file.add(values)
        self._file.sync()

    def _read(self, settings: dict[str, Any]) -> int:
        """Read the known values. Returns the length of the whole lines, without a last one that broke off."""
        whole = self._path.read_bytes().rpartition(b"\n")
        lines = whole[0].split(b"\n") if whole[1] else []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                if number == 1:
                    FORMAT.version_of(values, self._path)
                    self._check(values["settings"], settings)
                else:
                    self._known[tuple(values.pop("key"))] = values
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{self._path}: line {number} is no measurement; choose another --output, or give --overwrite") from None
        return len(whole[0]) + len(whole[1])

    def _check(self, found: dict[str, Any], settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self._path}: was measured with {name} {found.get(name)}, now {value}; choose another --output, or give --overwrite"
                )
