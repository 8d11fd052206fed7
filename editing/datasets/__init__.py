"""Edit files: one reader for every format, streaming, with bad records set aside and never lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from editing.datasets.formats import FORMATS, Format, recognise
from editing.datasets.records import BadRecord, read_records
from editing.errors import InputError, InvalidRequest
from editing.requests import EditRequest

__all__ = ["FORMATS", "BadRecord", "EditFile", "NumberedRequest"]

_LOOKED_AT = 1000
"""Records among which one must tell the format."""


@dataclass(frozen=True, slots=True)
class NumberedRequest:
    """A request with the number of its record in the file, from 1."""

    number: int
    request: EditRequest


class EditFile:
    """An edit file that can be read any number of times, at constant memory.

    Args:
        path: The file: JSON lines or a JSON array.
        format: Name of a format, or ``auto`` to recognise it by the fields of the first usable record.

    Raises:
        InputError: The format's name is unknown.
    """

    def __init__(self, path: str | Path, format: str = "auto") -> None:
        self.path = Path(path)
        if format != "auto" and format not in FORMATS:
            raise InputError(f"format: expected auto, {', '.join(FORMATS)}, found {format!r}")
        self._format = None if format == "auto" else FORMATS[format]

    @property
    def format(self) -> Format:
        """The file's format.

        Raises:
            InputError: No record's fields are those of a known format; or as :meth:`__iter__`.
        """
        if self._format is None:
            self._format = self._recognise()
        return self._format

    def __iter__(self) -> Iterator[NumberedRequest | BadRecord]:
        """Requests and bad records in the file's order.

        Raises:
            InputError: The file is missing, empty, of no known format, or a JSON array that breaks off.
        """
        convert = self.format.convert
        for number, record in read_records(self.path):
            if isinstance(record, BadRecord):
                yield record
                continue
            try:
                yield NumberedRequest(number, convert(record))
            except InvalidRequest as error:
                yield BadRecord(number, str(error), record)

    def _recognise(self) -> Format:
        fields: list[str] | None = None
        bad = None
        for number, record in read_records(self.path):
            if isinstance(record, BadRecord):
                bad = bad or record
            elif (found := recognise(record)) is not None:
                return found
            elif fields is None:
                fields = sorted(record)
            if number >= _LOOKED_AT:
                break
        if fields is not None:
            named = ", ".join(repr(name) for name in fields[:10]) or "none"
            raise InputError(f"{self.path}: of no known format; its first record has the fields {named}; expected prompt and target at least")
        if bad is not None:
            raise InputError(f"{self.path}: record {bad.number}: {bad.reason}; expected edits as JSON lines or a JSON array")
        raise InputError(f"{self.path}: holds no record; expected edits as JSON lines or a JSON array")
