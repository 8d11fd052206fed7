"""Edit files: one reader for every format, streaming, with bad records set aside and never lost.

a file, or a folder of parts  --parts.py-->  container of each: text (plain, gzip, zstd), Parquet or Arrow
    --records.py, tables.py, parquet.py, arrow.py-->  raw records, numbered over all parts
    --formats.py: converters.py, drafts.py-->  edit requests, and what of each record was not read (fields.py)
    --writing.py-->  the common schema, as Parquet or JSON lines
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from editing.datasets.fields import NOTHING, Fields, Notes
from editing.datasets.formats import FORMATS, Format, hint, more_special, recognise
from editing.datasets.parts import Part, find_parts, read_parts
from editing.datasets.records import EXPECTED, BadRecord
from editing.datasets.standard_input import STANDARD_INPUT, standard_input
from editing.errors import InputError, InvalidRequest
from editing.requests import EditRequest

__all__ = ["FORMATS", "BadRecord", "EditFile", "Notes", "NumberedRequest"]

_LOOKED_AT = 1000
"""Records among which one must tell the format."""


@dataclass(frozen=True, slots=True)
class NumberedRequest:
    """A request with the number of its record in the file, or over all parts of a folder, from 1.

    A record that asks for several edits counts as many times, so that each edit has a number of its own.

    Attributes:
        number: The record's number.
        request: What it asks for.
        notes: What of it was not read, and what else there is to say.
    """

    number: int
    request: EditRequest
    notes: Notes = field(default=NOTHING, compare=False)


class EditFile:
    """An edit file, or a folder of parts, that can be read any number of times, at constant memory.

    Args:
        path: JSON lines, a JSON array or a table with a header, plain or compressed with gzip or zstd; Parquet; Arrow; a folder of such
            parts; or ``-`` for standard input.
        format: Name of a format, or ``auto`` to recognise it by the fields of the first usable record.
        seed: Decides where a format leaves a choice, as between FEVER's equivalent prompts.

    Raises:
        InputError: The format's name is unknown.
    """

    def __init__(self, path: str | Path, format: str = "auto", *, seed: int = 0) -> None:
        self.path = Path("standard input") if str(path) == STANDARD_INPUT else Path(path)
        self._piped = str(path) == STANDARD_INPUT
        self._seed = seed
        if format != "auto" and format not in FORMATS:
            raise InputError(f"format: expected auto, {', '.join(FORMATS)}, found {format!r}")
        self._format = None if format == "auto" else FORMATS[format]
        self._guessed = self._format is None

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The file, or the files of the folder in the order of their names, as they were found first.

        Raises:
            InputError: Nothing is there, it may not be read, or a file of the folder holds no edits.
        """
        return find_parts(standard_input() if self._piped else self.path)

    @property
    def text_bytes(self) -> int | None:
        """Length of the text in bytes; ``None`` if it is only known once read: it is compressed, or no text."""
        return sum(part.num_bytes for part in self.parts) if all(part.container == "plain" for part in self.parts) else None

    @property
    def num_records(self) -> int | None:
        """Number of records, good and bad; ``None`` if it is only known once read: only Parquet and Arrow of one edit a record say it.

        Raises:
            InputError: A file is damaged, or as :attr:`format`.
        """
        if not any(part.is_text for part in self.parts) and self.format.split:
            return None
        counts = [part.num_records for part in self.parts]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def format(self) -> Format:
        """The records' format.

        Raises:
            InputError: No record's fields are those of a known format; or as :meth:`records`.
        """
        if self._format is None:
            self._format = self._recognise()
        return self._format

    def __iter__(self) -> Iterator[NumberedRequest | BadRecord]:
        return self.records()

    def records(self, *, after: int = 0) -> Iterator[NumberedRequest | BadRecord]:
        """Requests and bad records in the file's order.

        Args:
            after: Number of the last record that is not wanted; what lies before is skipped, not converted.

        Raises:
            InputError: The file is missing, empty, damaged or of no known format, or a JSON array that breaks off.
        """
        for number, record in self._raw(after):
            if isinstance(record, BadRecord):
                yield record
                continue
            try:
                yield self._convert(number, record)
            except InvalidRequest as error:
                yield BadRecord(number, str(error), record)

    def _raw(self, after: int) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
        """Records of one edit each; only reading tells how many edits those before ``after`` ask for, if it can be several."""
        split = self.format.split
        if split is None:
            yield from read_parts(self.parts, after=after)
            return
        number = 0
        for _, record in read_parts(self.parts):
            for one in [record] if isinstance(record, BadRecord) else split(record):
                number += 1
                if number > after:
                    yield number, replace(one, number=number) if isinstance(one, BadRecord) else one

    def _convert(self, number: int, record: dict[str, Any]) -> NumberedRequest:
        found = more_special(record, self.format) if self._guessed else None
        if found is not None:
            reason = f"expected a record of format {self.format.name} as the first usable one, found the fields of {found}"
            raise InvalidRequest("format", f"{reason}; give --format, or keep them in files of their own")
        fields = Fields(record)
        request = self.format.convert(fields, self._seed)
        return NumberedRequest(number, request, fields.notes(self.format.known))

    def _recognise(self) -> Format:
        fields: list[str] | None = None
        bad = None
        for _, record in islice(read_parts(self.parts), _LOOKED_AT):
            if isinstance(record, BadRecord):
                bad = bad or record
            elif (found := recognise(record)) is not None:
                return found
            elif fields is None:
                fields = sorted(record)
        if fields is not None:
            named = ", ".join(repr(name) for name in fields[:10]) or "none"
            known = ", ".join(map(str, FORMATS.values()))
            what = f"{self.path}: of no known format; its first record has the fields {named}"
            if (guess := hint(fields)) is not None:
                what += f": {guess}"
            raise InputError(f"{what}; expected prompt and target at least, or the fields of another known format: {known}")
        if bad is not None:
            raise InputError(f"{self.path}: record {bad.number}: {bad.reason}; expected edits as {EXPECTED}")
        raise InputError(f"{self.path}: holds no record; expected edits as {EXPECTED}")
