"""Which prompts were edited before, and to what: two facts cannot both be the answer to one prompt.

The later one wins. An index of all prompts so far finds conflicts while the run goes on. It holds 64-bit hashes in a small
database in memory, tens of bytes for each prompt.
"""

import hashlib
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from editing.blanks import bare
from editing.requests import EditRequest
from orchestrator.run.ledger import Entry

if TYPE_CHECKING:  # ``data inspect`` counts conflicts without torch
    from editing.turn import Turn


@dataclass(frozen=True, slots=True)
class Conflict:
    """An edit that gives a prompt another target than an earlier one did.

    Attributes:
        prompt: The prompt.
        target: The new target, which wins.
        record: Number of the new edit's record.
        earlier_record: Number of the record that it overrules.
        earlier_turn: The turn that applied that one; ``None`` if it is in the same turn, which leaves it out.
    """

    prompt: str
    target: str
    record: int
    earlier_record: int
    earlier_turn: int | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        when = "the same turn" if self.earlier_turn is None else f"turn {self.earlier_turn}"
        return f"record {self.record} gives {self.prompt!r} the target {self.target!r}; it overrules record {self.earlier_record} of {when}"


@dataclass(frozen=True, slots=True)
class Earlier:
    """The newest request before one of the same prompt.

    Attributes:
        same_target: Whether its target is the same too.
        record: Number of its record.
        turn: The turn that applied it, if one did.
    """

    same_target: bool
    record: int
    turn: int | None


class PromptIndex:
    """The newest target of every prompt edited so far.

    Args:
        on_disk: Keep it in a temporary file, at constant memory.
    """

    def __init__(self, *, on_disk: bool = False) -> None:
        self._table = sqlite3.connect("" if on_disk else ":memory:", isolation_level=None)
        if on_disk:  # nothing of it is needed after a crash; 64 MiB of it are kept in memory
            self._table.executescript("pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -65536")
        self._table.execute("begin")  # and never commit, which would write every page again
        self._table.execute("create table newest (prompt integer primary key, target integer, record integer, turn integer)")

    def add(self, request: EditRequest, record: int, turn: int) -> Conflict | None:
        """Add an applied edit. Returns the conflict with the edit that it overrules, if there is one."""
        before = self._exchange(request, record, turn)
        if before is None or before.same_target:
            return None
        return Conflict(request.prompt, request.target, record, before.record, before.turn)

    def see(self, request: EditRequest, record: int) -> Earlier | None:
        """Add a request of a file. Returns the one before it with the same prompt, if there is one."""
        return self._exchange(request, record, None)

    def _exchange(self, request: EditRequest, record: int, turn: int | None) -> Earlier | None:
        prompt, target = _hash(request.question), _hash(bare(request.target))
        before = self._table.execute("select target, record, turn from newest where prompt = ?", (prompt,)).fetchone()
        self._table.execute("insert or replace into newest values (?, ?, ?, ?)", (prompt, target, record, turn))
        return None if before is None else Earlier(before[0] == target, before[1], before[2])

    def add_turn(self, turn: "Turn", number: int, *, applied: bool) -> list[Conflict]:
        """Add a turn's edits if they were applied. Returns their conflicts, also those within the turn."""
        edits = turn.in_request_order
        found = [conflict for edit in edits if applied and (conflict := self.add(edit.request, edit.record, number))]
        for edit in turn.superseded:
            winner = next(e for e in edits if e.request.asks_as(edit.request))
            found.append(Conflict(edit.request.prompt, winner.request.target, winner.record, edit.record, None))
        return found

    def fill(self, entries: Iterable[Entry]) -> None:
        """Add all applied edits of a ledger."""
        rows = ((_hash(e.request.question), _hash(bare(e.request.target)), e.record, e.turn) for e in entries if e.applied)
        self._table.executemany("insert or replace into newest values (?, ?, ?, ?)", rows)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
