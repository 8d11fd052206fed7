"""From an edit file to tokenized edits, with bad records set aside, each with its reason."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.errors import InputError, InvalidRequest
from editing.turn import TokenizedEdit, tokenize

_READ_WHOLE_BYTES = 2**24
"""Texts up to this length are read to their end before a run starts."""

_LOOKED_AT = 1000
"""Records of any other input that are read before a run starts."""


class Intake:
    """The usable edits of a file, in order, from any record on.

    Args:
        source: The edit file.
        tokenizer: The model's joiner, or its tokenizer for the default one.
        max_tokens: The model's context length.
        limit: Stop after this many usable edits.
        strict: Raise at the first bad record.
        after: Leave out the records up to this number, which were read before.
        taken: Usable edits among those.

    Attributes:
        record: Number of the last record that was read.
        taken: Usable edits so far.
    """

    def __init__(
        self, source: EditFile, tokenizer: Any, *, max_tokens: int | None, limit: int | None, strict: bool, after: int = 0, taken: int = 0
    ) -> None:
        self._source, self._tokenizer, self._max_tokens = source, tokenizer, max_tokens
        self._limit, self._strict = limit, strict
        self.record, self.taken = after, taken

    def edits(self, on_bad: Callable[[BadRecord], None] = lambda _: None) -> Iterator[TokenizedEdit]:
        """Usable edits, in the file's order; ``on_bad`` is called with every other record.

        Raises:
            InputError: The file cannot be read, or a record is bad and ``strict`` is set.
        """
        if self.taken == self._limit:
            return
        for record in self._source.records(after=self.record):
            self.record = record.number
            usable = self._tokenize(record)
            if isinstance(usable, BadRecord):
                if self._strict:
                    raise InputError(f"{self._source.path}: record {usable.number}: {usable.reason}")
                on_bad(usable)
                continue
            self.taken += 1
            yield usable
            if self.taken == self._limit:
                return

    def _tokenize(self, record: NumberedRequest | BadRecord) -> TokenizedEdit | BadRecord:
        if isinstance(record, BadRecord):
            return record
        try:
            return tokenize(self._tokenizer, record.request, max_tokens=self._max_tokens, record=record.number)
        except InvalidRequest as error:
            return BadRecord(record.number, str(error), {"prompt": record.request.prompt, "target": record.request.target})


def look_ahead(source: EditFile, limit: int | None) -> int | None:
    """An early look at a file: all of a short text, else the first records.

    Returns:
        About how many usable edits there will be, before tokenization; ``None`` if only reading on would tell.

    Raises:
        InputError: The file cannot be read, is of no known format, or was read to its end and holds no usable record.
    """
    whole = source.text_bytes is not None and source.text_bytes <= _READ_WHOLE_BYTES
    first_bad: BadRecord | None = None
    read = usable = 0
    for record in islice(source, None if whole else _LOOKED_AT):
        read += 1
        if isinstance(record, BadRecord):
            first_bad = first_bad or record
        else:
            usable += 1
    if whole or read < _LOOKED_AT:
        if not usable:
            why = f"; record {first_bad.number}: {first_bad.reason}" if first_bad else ""
            raise InputError(f"{source.path}: holds no usable edit{why}")
        known: int | None = usable
    else:
        known = source.num_records
    return min((n for n in (known, limit) if n is not None), default=None)
