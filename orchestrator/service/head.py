"""The newest version, opened in a live run: where every change of the weights begins, and how it becomes the next version.

    try a turn, or replay --> files of the version on the disk --> its row and the states of its edits, in one transaction

The row is what counts. A writer that dies before it leaves files that the next one replaces.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from editing import EditRequest
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.ledger import APPLIED, Entry, Ledger
from orchestrator.run.live import LiveRun, applied_ids
from orchestrator.service import versions
from orchestrator.service.database import Database, Work
from orchestrator.service.edits import key_of, request_of
from orchestrator.service.folders import StateFolder
from orchestrator.service.lease import Lease
from orchestrator.service.rows import all_rows
from orchestrator.service.states import CURRENT, WRITTEN
from orchestrator.service.tables import edits

ACTOR = "writer"


class Head:
    """The newest version.

    Args:
        database: Where versions are.
        folder: Where their files are.
        lease: That of this writer.
        run: The run, whose model is loaded.

    Attributes:
        row: The version's row.
    """

    def __init__(self, database: Database, folder: StateFolder, lease: Lease, run: LiveRun) -> None:
        self.database, self.folder, self.lease, self.run = database, folder, lease, run
        self.row: Mapping[str, Any] = {}
        self._name = ""

    def open(self, *, keep: int) -> None:
        """Open the newest version in a branch of its run; the first time, begin a run.

        Args:
            keep: Newest versions whose files are kept; what else is there is removed.
        """
        with self.database.reading() as connection:
            row = versions.head(connection)
        if row is None:
            self._begin()
        else:
            self._enter(row)
        self.clean(keep)

    def commit(
        self, checkpoint: Checkpoint, kind: str, gates: Mapping[str, Any], settle: Callable[[Work, int], None], *, began: float, **columns: Any
    ) -> int:
        """Make what was kept the next version.

        Args:
            checkpoint: What was kept.
            kind: ``turn``, ``removal`` or ``rollback``.
            gates: What the gates measured.
            settle: Changes the states of edits in the same transaction; it is given the number of the version.
            began: When the work on it began, by :func:`time.perf_counter`.
            **columns: Others of its row: ``num_edits``, and ``parent`` and ``of`` where they are not the version before.

        Returns:
            The version's number.
        """
        number = int(self.row["number"]) + 1
        self.folder.keep(number, checkpoint)
        row = {
            "number": number,
            "kind": kind,
            "parent": self.row["number"],
            "of": None,
            "run": self._name,
            "turn": checkpoint.turn,
            "total_edits": len(applied_ids(self.run.journal.ledger)),
            "digests": self.run.worker.digest(),
            "gates": dict(gates),
            "seconds": time.perf_counter() - began,
            "has_state": True,
            **columns,
        }
        with self.database.changing(ACTOR, kind, f"version {number}") as work:
            self.lease.check(work.connection)
            row["created"] = work.now
            versions.add(work.connection, row)
            work.note(version=number, digests=row["digests"], parent=row["parent"])
            settle(work, number)
        self.row = row
        return number

    def go_to(self, row: Mapping[str, Any]) -> None:
        """Open another version in a branch of its run. The next commit is what counts; until then :meth:`back` undoes it."""
        name = self.folder.branch(row, self.lease.epoch)
        self.run.open(self.folder.run(name), row["turn"])
        self._name = name

    def back(self) -> None:
        """Open the newest version again, whatever the run is at."""
        self._enter(self.row)

    def ledger(self) -> Ledger:
        """The ledger of the version, apart from the open one."""
        return Ledger.first_parts(self.folder.run(self.row["run"]) / "ledger", self.folder.manifest(self.row["number"])["num_ledger_parts"])

    def clean(self, keep: int) -> None:
        """Remove the files of versions that are too old."""
        with self.database.bookkeeping() as connection:
            self.lease.check(connection)
            kept = versions.kept(connection, keep)
            versions.mark_kept(connection, [row["number"] for row in kept])
        self.folder.clean([row["number"] for row in kept], {self._name, *(row["run"] for row in kept)})

    def current_requests(self, but: Collection[str] = ()) -> list[EditRequest]:
        """Edits that the model is supposed to know, the oldest first."""
        with self.database.reading() as connection:
            rows = all_rows(connection, select(edits).where(edits.c.state.in_(CURRENT)).order_by(edits.c.seq))
            return [request_of(row) for row in rows if row["id"] not in but]

    def _begin(self) -> None:
        began = time.perf_counter()
        self._name = self.folder.new_run(self.lease.epoch)
        self.row = {"number": -1}
        checkpoint = self.run.begin(self.folder.run(self._name))
        self.commit(checkpoint, "base", {}, lambda work, number: None, began=began, parent=None, num_edits=0)

    def _enter(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.go_to(row)


def settle_all(work: Work, entries: Sequence[Entry], live: bool, outside: str, reason: str) -> None:
    """Give every edit the state that a ledger says: what is in it is current unless it was overruled, what is not is set aside.

    Args:
        work: The change.
        entries: The ledger of the version that is now the newest.
        live: Whether that version is live.
        outside: State of those that are in the weights no more.
        reason: Why they are not.
    """
    overruled = _overruled([entry for entry in entries if entry.outcome == APPLIED])
    current = "live" if live else "verified"
    for row in all_rows(work.connection, select(edits).where(edits.c.state.in_(WRITTEN))):
        if row["id"] not in overruled:
            work.change(row, outside, reason, version=None, pending=None)  # type: ignore[arg-type]
        elif overruled[row["id"]] is None and row["state"] == "superseded":
            work.change(row, current, "what had overruled it is gone")  # type: ignore[arg-type]
        elif overruled[row["id"]] is not None and row["state"] != "superseded":
            work.change(row, "superseded", f"overruled by {overruled[row['id']]}")


def _overruled(entries: Sequence[Entry]) -> dict[str, str | None]:
    """By id, which later edit gives its prompt another target; ``None`` if there is none."""
    newest: dict[str, tuple[str, str]] = {}
    found: dict[str, str | None] = {}
    for entry in reversed(entries):
        key, target = key_of(entry.request.question), key_of(entry.request.target)
        later = newest.setdefault(key, (target, entry.id))
        found[entry.id] = None if later[0] == target and found.get(later[1]) is None else later[1]
        if later[0] != target:
            newest[key] = (target, entry.id)
    return found


def make_live(work: Work, connection: Connection, number: int, reason: str) -> None:
    """Have a version be the live one: its edits are live, those of later versions are verified."""
    versions.set_setting(connection, versions.LIVE, number)
    for row in all_rows(connection, select(edits).where(edits.c.state.in_(CURRENT))):
        after = "live" if row["version"] <= number else "verified"
        if row["state"] != after:
            work.change(row, after, reason)  # type: ignore[arg-type]
    work.note(live=number)
