"""What a person should know of an edit file beside its edits: fields that nobody reads, edits that change nothing, ids given twice.

Counted while records go by, at constant memory; told by ``ultraedit data inspect`` and, of the records looked at first, at the start of a run.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from editing.datasets import BadRecord, EditFile, NumberedRequest
from editing.errors import InputError
from editing.subjects import subject_span
from orchestrator.wording import counted

_KINDS = 50
"""Fields, or remarks, that are told apart."""

_TOLD = 8
"""Lines at the start of a run."""


@dataclass(slots=True)
class Tally:
    """How often something was found, and where first.

    Attributes:
        count: Number of records, or of questions.
        first_record: Number of the first such record.
        near: For a field that is not read: the known one that it resembles.
    """

    count: int
    first_record: int
    near: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"count": self.count, "first_record": self.first_record, **({"did_you_mean": self.near} if self.near else {})}


class Findings:
    """What there is to say of the records so far.

    Args:
        on_disk: Keep the ids seen in a temporary file, at constant memory.

    Attributes:
        unread: Fields that nobody reads, by name.
        unused: Fields that the format knows and no edit needs.
        not_asked: Fields with more questions than are asked, or questions without an answer, counted in questions.
        no_change: Edits that seem to change nothing, by why.
        subject_not_in_prompt: Edits whose subject does not stand in their prompt.
        repeated_ids: Edits whose id an earlier one has.
        repeated_id: The first such id, and the records that have it.
    """

    def __init__(self, *, on_disk: bool = False) -> None:
        self.unread: dict[str, Tally] = {}
        self.unused: dict[str, Tally] = {}
        self.not_asked: dict[str, Tally] = {}
        self.no_change: dict[str, Tally] = {}
        self.subject_not_in_prompt: Tally | None = None
        self.repeated_ids = 0
        self.repeated_id: tuple[str, int, int] | None = None
        self._ids = sqlite3.connect("" if on_disk else ":memory:", isolation_level=None)
        if on_disk:  # nothing of it is needed after a crash
            self._ids.executescript("pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -16384")
        self._ids.execute("begin")
        self._ids.execute("create table seen (id integer primary key, record integer)")

    def add(self, found: NumberedRequest) -> None:
        """Take a record into account."""
        number, notes, request = found.number, found.notes, found.request
        for name, near in notes.unread:
            _count(self.unread, name, number, near=near)
        for name in notes.unused:
            _count(self.unused, name, number)
        for name, count in notes.not_asked:
            _count(self.not_asked, name, number, count)
        for remark in notes.remarks:
            _count(self.no_change, remark, number)
        if request.subject is not None and subject_span(request.prompt, request.subject) is None:
            self.subject_not_in_prompt = self.subject_not_in_prompt or Tally(0, number)
            self.subject_not_in_prompt.count += 1
        self._see_id(request.id or str(number), number)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        groups = ("unread", "unused", "not_asked", "no_change")
        repeated = (
            None
            if self.repeated_id is None
            else {"count": self.repeated_ids, "first": dict(zip(("id", "earlier_record", "record"), self.repeated_id, strict=True))}
        )
        missing = self.subject_not_in_prompt
        return {
            **{name: {key: tally.as_dict() for key, tally in getattr(self, name).items()} for name in groups},
            "subject_not_in_prompt": None if missing is None else missing.as_dict(),
            "repeated_ids": repeated,
        }

    def lines(self) -> Iterator[str]:
        """What the start of a run says, a line each."""
        for name, tally in list(self.unread.items())[:_TOLD]:
            hint = f"; did you mean {tally.near}?" if tally.near else ""
            yield f"{name}: unread in {counted(tally.count, 'record')}, record {tally.first_record} the first{hint}"
        if len(self.unread) > _TOLD:
            yield f"{len(self.unread) - _TOLD} more fields are unread; 'ultraedit data inspect' lists them"
        for remark, tally in self.no_change.items():
            yield f"no change: {remark} in {counted(tally.count, 'record')}, record {tally.first_record} the first"
        if self.repeated_id is not None:
            name, earlier, later = self.repeated_id
            several = counted(self.repeated_ids, "record")
            yield f"ids: {several} with an id that an earlier edit has, {name!r} of records {earlier} and {later} the first"

    def _see_id(self, name: str, record: int) -> None:
        key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
        before = self._ids.execute("select record from seen where id = ?", (key,)).fetchone()
        if before is None:
            self._ids.execute("insert into seen values (?, ?)", (key, record))
            return
        self.repeated_ids += 1
        self.repeated_id = self.repeated_id or (name, before[0], record)


def _count(tallies: dict[str, Tally], name: str, record: int, count: int = 1, *, near: str | None = None) -> None:
    name = name if name in tallies or len(tallies) < _KINDS else "others"
    tallies.setdefault(name, Tally(0, record, near)).count += count


def refuse_unread(source: EditFile, record: NumberedRequest | BadRecord) -> None:
    """Refuse a record with a field that nobody reads.

    Raises:
        InputError: It has one.
    """
    if isinstance(record, NumberedRequest) and record.notes.unread_reason:
        raise InputError(f"{source.path}: record {record.number}: {record.notes.unread_reason}")
