"""The audit log: every change of the database in one chain of hashes, together with the history of the edits that it changed.

    hash of an entry = SHA-256 of (hash of the one before, number, time, actor, action, subject, detail)
    detail.events    = first and last number of the events written with it, and the SHA-256 of their content

Whoever alters, removes or inserts an entry or an event breaks the chain from there on. What a chain cannot show by itself is
that its end was cut off: keep the hash of its end elsewhere, and give it to ``ultraedit audit verify --head``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from editing.errors import InputError
from orchestrator.service.rows import all_rows, streamed_rows
from orchestrator.service.tables import audit, chain, edits, events

GENESIS = "0" * 64
"""What stands before the first entry."""

_EVENT = ("id", "edit", "at", "actor", "before", "after", "reason", "data")
_ENTRY = ("seq", "at", "actor", "action", "subject", "detail", "before")


class Altered(InputError):
    """The audit log is not what was written."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification has read.

    Attributes:
        entries: Entries of the log.
        events: Events of edits.
        edits: Edits, each in the state that its last event says.
        head: Hash of the last entry.
    """

    entries: int
    events: int
    edits: int
    head: str


def canonical(value: Any) -> bytes:
    """A value as JSON in one way only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def entry_hash(entry: Mapping[str, Any]) -> str:
    """Hash of an entry, from all of its columns but the hash."""
    return digest_of([entry[name] for name in _ENTRY])


def events_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of events in the order of their numbers."""
    return digest_of([[row[name] for name in _EVENT] for row in rows])


def verify(connection: Connection, head: str | None = None) -> Verified:
    """Read the whole log and all events, and check every hash.

    Args:
        connection: To the database.
        head: Hash of an entry that must be in the log: its end as it was known at some time.

    Raises:
        Altered: Naming the first entry, event or edit that is not what was written.
    """
    before, seq, last_event, seen = GENESIS, 0, 0, head is None
    for row in streamed_rows(connection, select(audit).order_by(audit.c.seq)):
        seq += 1
        _check_entry(row, seq, before)
        last_event = _check_events(connection, row, last_event)
        before = row["hash"]
        seen = seen or before == head
    _check_end(connection, seq, last_event, before)
    if not seen:
        raise Altered(f"audit: no entry has the hash {head}; expected that of an entry, so the end of the log was cut off or another log is there")
    return Verified(seq, last_event, _check_edits(connection), before)


def _check_entry(row: Mapping[str, Any], seq: int, before: str) -> None:
    if row["seq"] != seq:
        raise Altered(f"audit: entry {seq} is missing; the next one there is {row['seq']}")
    if row["before"] != before or entry_hash(row) != row["hash"]:
        raise Altered(f"audit: entry {seq} ({row['action']} by {row['actor']}) is not what was written; the log holds up to entry {seq - 1}")


def _check_events(connection: Connection, row: Mapping[str, Any], last: int) -> int:
    told = row["detail"].get("events")
    if told is None:
        return last
    found = all_rows(connection, select(events).where(events.c.id.between(told["first"], told["last"])).order_by(events.c.id))
    if told["first"] != last + 1 or events_hash(found) != told["sha256"]:
        raise Altered(f"audit: the events of entry {row['seq']}, numbers {told['first']} to {told['last']}, are not what was written")
    return int(told["last"])


def _check_end(connection: Connection, seq: int, last_event: int, head: str) -> None:
    end = connection.execute(select(chain)).mappings().one()
    if (end["seq"], end["events"], end["hash"]) != (seq, last_event, head):
        raise Altered(f"audit: the log ends at entry {seq}, and it was written up to entry {end['seq']}; entries at its end are missing")
    stray = connection.execute(select(events.c.id).where(events.c.id > last_event).limit(1)).scalar()
    if stray is not None:
        raise Altered(f"audit: event {stray} belongs to no entry of the log")


def _check_edits(connection: Connection) -> int:
    """Each edit's state is that of its last event, and its content that of its first."""
    last: dict[str, tuple[str, str]] = {}
    for row in streamed_rows(connection, select(events).order_by(events.c.id)):
        content = row["data"]["request_sha256"] if row["before"] is None else last[row["edit"]][1]
        last[row["edit"]] = (row["after"], content)
    for row in streamed_rows(connection, select(edits)):
        state, content = last.pop(row["id"], ("", ""))
        if state != row["state"]:
            raise Altered(f"audit: edit {row['id']} is {row['state']}, and its history says {state or 'nothing'}")
        if content != row["request_sha256"] or digest_of(row["request"]) != content:
            raise Altered(f"audit: edit {row['id']} does not have the content that was asked for")
    if last:
        raise Altered(f"audit: edit {next(iter(last))} is missing; its history is there")
    return int(connection.execute(select(func.count()).select_from(edits)).scalar_one())
