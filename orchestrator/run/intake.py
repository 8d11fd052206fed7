"""From an edit file to tokenized edits, with bad records set aside, each with its reason.

The first records are read once, before the model is loaded, and are kept: they tell what is wrong with the file while it
costs nothing yet, how many edits there are in a short one, and go on into the warm-up and the first turns. The file stays
open meanwhile, and what follows is read from there. So a run reads its input once, beside the thread that computes its SHA-256.
"""

import logging
from collections.abc import Iterator
from itertools import islice

from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.errors import InputError
from editing.turn import TokenizedEdit
from orchestrator.findings import Findings, refuse_unread
from orchestrator.run.windows import Cursor, Window, in_windows
from orchestrator.tokenizing import RequestTokenizer

logger = logging.getLogger("ultraedit")

_READ_WHOLE_BYTES = 2**24
"""Texts up to this length are read to their end before a run starts."""

_FIRST_RECORDS = 1000
"""Records of any other input that are read before a run starts; so many of any input are kept."""

_KEPT_CHARACTERS = 2**24
"""Characters of all kept records together, about."""

Record = NumberedRequest | BadRecord


class FirstLook:
    """The first records of an edit file, read once and kept: all of a short text, else as many as tell what it is.

    What a person should know of them is logged (:mod:`orchestrator.findings`).

    Args:
        source: The edit file.
        limit: Usable edits that the run takes.
        strict: Refuse a field that nobody reads, among those edits.

    Raises:
        InputError: The file cannot be read, is of no known format, or was read to its end and holds no usable record; or as ``strict`` says.
    """

    def __init__(self, source: EditFile, *, limit: int | None = None, strict: bool = False) -> None:
        self.source = source
        self._open: Iterator[Record] | None = source.records()
        self._kept: list[Record] = []
        self._num_usable = self._num_records = self._characters = 0
        self._reads_whole = source.text_bytes is not None and source.text_bytes <= _READ_WHOLE_BYTES
        first_bad: BadRecord | None = None
        findings = Findings()
        for record in islice(self._open, None if self._reads_whole else _FIRST_RECORDS):
            self._add(record)
            first_bad = first_bad or (record if isinstance(record, BadRecord) else None)
            if not isinstance(record, BadRecord) and (limit is None or self._num_usable <= limit):
                findings.add(record)
                if strict:
                    refuse_unread(source, record)
        self._saw_end = self._reads_whole or self._num_records < _FIRST_RECORDS
        for line in findings.lines():
            logger.warning("edits     %s", line if self._saw_end else f"of the first {self._num_records:,}: {line}")
        if self._saw_end and not self._num_usable:
            why = f"; record {first_bad.number}: {first_bad.reason}" if first_bad else ""
            raise InputError(f"{source.path}: holds no usable edit{why}")

    def num_edits(self, limit: int | None) -> int | None:
        """About how many usable edits there are, before tokenization, up to a limit; ``None`` if only reading on would tell."""
        known = self._num_usable if self._saw_end else self.source.num_records
        return min((n for n in (known, limit) if n is not None), default=None)

    def records(self, *, after: int = 0) -> Iterator[Record]:
        """The file's records after a number. Kept ones are not read again; those that follow are read on from there by the first who asks."""
        kept_all = len(self._kept) == self._num_records
        last_kept = self._kept[-1].number if self._kept else 0
        yield from (record for record in self._kept if record.number > after)
        if self._saw_end and kept_all:
            return
        following, self._open = self._open, None
        if following is None or not kept_all or after > last_kept:
            following = self.source.records(after=max(after, last_kept))
        yield from following

    def _add(self, record: Record) -> None:
        self._num_records += 1
        self._num_usable += not isinstance(record, BadRecord)
        kept_all_before = len(self._kept) == self._num_records - 1
        if kept_all_before and self._num_records <= _FIRST_RECORDS and self._characters < _KEPT_CHARACTERS:
            self._kept.append(record)
            self._characters += _num_characters(record)


class Intake:
    """The usable edits of a file, in order, from any record on.

    Args:
        look: The file, whose first records have been read.
        tokenizer: Tokenizes them for the model.
        limit: Stop after this many usable edits of the file.
        strict: Raise at the first bad record.
    """

    def __init__(self, look: FirstLook, tokenizer: RequestTokenizer, *, limit: int | None = None, strict: bool = False) -> None:
        self._look, self._tokenizer, self._limit, self._strict = look, tokenizer, limit, strict

    def items(self, *, after: int = 0, num_usable: int = 0, limit: int | None = None) -> Iterator[TokenizedEdit | BadRecord]:
        """Usable edits and bad records, in the file's order.

        Args:
            after: Leave out the records up to this number, which were read before.
            num_usable: Usable edits among those.
            limit: Stop earlier, after so many usable edits.

        Raises:
            InputError: The file cannot be read, or a record is bad, or has a field that nobody reads, and ``strict`` is set.
        """
        last = min((n for n in (self._limit, limit) if n is not None), default=None)
        if num_usable == last:
            return
        for record in self._look.records(after=after):
            if self._strict:
                refuse_unread(self._look.source, record)
            item = self._tokenizer.tokenize_record(record)
            if isinstance(item, BadRecord) and self._strict:
                raise InputError(f"{self._look.source.path}: record {item.number}: {item.reason}")
            num_usable += not isinstance(item, BadRecord)
            yield item
            if num_usable == last:
                return

    def first_edits(self, count: int) -> Iterator[TokenizedEdit]:
        """The first usable edits of the file, at the most so many."""
        return (item for item in self.items(limit=count) if not isinstance(item, BadRecord))

    def windows(self, begin: Cursor, *, edits_per_turn: int, turns_per_window: int, num_turns: int) -> Iterator[Window]:
        """Windows of turns from a cursor on; see :func:`~orchestrator.run.windows.in_windows`."""
        items = self.items(after=begin.record, num_usable=begin.num_usable)
        return in_windows(items, begin, edits_per_turn=edits_per_turn, turns_per_window=turns_per_window, num_turns=num_turns)


def _num_characters(record: Record) -> int:
    """Characters of a record's texts, about."""
    if isinstance(record, BadRecord):
        texts = [record.raw, *(record.raw.values() if isinstance(record.raw, dict) else ())]
    else:
        texts = [getattr(record.request, name) for name in type(record.request).__slots__]
    return sum(len(text) for text in texts if isinstance(text, (str, tuple, list)))
