"""From an edit file to tokenized edits, with bad records set aside, each with its reason."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.errors import InputError, InvalidRequest
from editing.turn import TokenizedEdit, tokenize


class Intake:
    """The usable edits of a file, in order. Can be iterated any number of times and gives the same edits each time.

    Args:
        source: The edit file.
        tokenizer: The model's tokenizer.
        max_tokens: The model's context length.
        limit: Stop after this many usable edits.
        strict: Raise at the first bad record.
        on_bad: Called with every bad record.

    Raises:
        InputError: While iterating: the file cannot be read, or a record is bad and ``strict`` is set.
    """

    def __init__(self, source: EditFile, tokenizer: Any, *, max_tokens: int | None, limit: int | None, strict: bool) -> None:
        self._source, self._tokenizer, self._max_tokens = source, tokenizer, max_tokens
        self._limit, self._strict = limit, strict

    def edits(self, on_bad: Callable[[BadRecord], None] = lambda _: None) -> Iterator[TokenizedEdit]:
        """Usable edits, in the file's order."""
        taken = 0
        for record in self._source:
            if taken == self._limit:
                return
            usable = self._tokenize(record)
            if isinstance(usable, BadRecord):
                if self._strict:
                    raise InputError(f"{self._source.path}: record {usable.number}: {usable.reason}")
                on_bad(usable)
                continue
            taken += 1
            yield usable

    def _tokenize(self, record: NumberedRequest | BadRecord) -> TokenizedEdit | BadRecord:
        if isinstance(record, BadRecord):
            return record
        try:
            return tokenize(self._tokenizer, record.request, max_tokens=self._max_tokens, record=record.number)
        except InvalidRequest as error:
            return BadRecord(record.number, str(error), {"prompt": record.request.prompt, "target": record.request.target})


class RejectedFile:
    """``rejected.jsonl``: one line for each record that was not applied, with the reason."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._file = path.open("w", encoding="utf-8")

    def add(self, number: int, reason: str, record: Any) -> None:
        line = {"record": number, "reason": reason, "content": record}
        # a lone surrogate cannot be written as UTF-8; an escape can
        self._file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
        self.count += 1

    def close(self) -> None:
        self._file.close()


def count_records(source: EditFile) -> int:
    """Usable records of a file before tokenization: the progress bar's total, and an early look at the whole file.

    Raises:
        InputError: The file cannot be read, or holds no usable record.
    """
    first_bad: BadRecord | None = None
    count = 0
    for record in source:
        if isinstance(record, BadRecord):
            first_bad = first_bad or record
        else:
            count += 1
    if not count:
        why = f"; record {first_bad.number}: {first_bad.reason}" if first_bad else ""
        raise InputError(f"{source.path}: holds no usable edit{why}")
    return count
