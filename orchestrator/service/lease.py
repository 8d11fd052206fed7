"""One writer at a time, by lease in the database. A second one waits, and takes over once the first is silent.

The holder counts up a number every few seconds. Who waits watches whether it changes, so that no clocks are compared. Each
holder has a higher epoch than the one before it, and every change of a holder checks in its own transaction that its epoch is
still the current one: one that was only asleep can change nothing when it wakes up.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection, insert, select, update

from editing.errors import UltraEditError
from orchestrator.service.database import Database, Unavailable
from orchestrator.service.rows import first_row
from orchestrator.service.tables import lease

WRITER = "writer"
_RENEW_SECONDS = 1.0
TAKE_OVER_SECONDS = 6.0
"""Silence after which a holder counts as dead."""


class LeaseLost(UltraEditError):
    """Another writer has taken over."""


class Lease:
    """The right to change weights.

    Args:
        database: Where it is.
        take_over: Seconds of silence after which the holder counts as dead.

    Attributes:
        epoch: Number of this holder; 0 before it is one.
        doing: What the holder does, shown by the API.
    """

    def __init__(self, database: Database, take_over: float = TAKE_OVER_SECONDS) -> None:
        self._database, self._take_over = database, take_over
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.epoch, self.doing = 0, ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until this process is the holder. Returns whether it is: not if it was told to stop before."""
        seen, since = self._look(), time.monotonic()
        while not should_stop():
            now = self._look()
            if now != seen:
                seen, since = now, time.monotonic()
            if (now is None or _is_gone(now[2]) or time.monotonic() - since > self._take_over) and self._take(now):
                self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
                self._thread.start()
                return True
            time.sleep(0.2)
        return False

    def check(self, connection: Connection) -> None:
        """Refuse to go on, in a transaction, if another one is the holder.

        Raises:
            LeaseLost: It is.
        """
        held = update(lease).where(lease.c.name == WRITER, lease.c.epoch == self.epoch, lease.c.owner == self._owner)
        if not connection.execute(held.values(renewals=lease.c.renewals + 1)).rowcount:
            raise LeaseLost("lease: another writer has taken over; this one stops")

    def release(self) -> None:
        """Let the next one take over at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.epoch:
            with self._database.bookkeeping() as connection:
                connection.execute(update(lease).where(lease.c.owner == self._owner).values(owner="", doing=""))

    def _look(self) -> tuple[int, int, str] | None:
        with self._database.reading() as connection:
            row = first_row(connection, select(lease).where(lease.c.name == WRITER))
            return None if row is None else (row["epoch"], row["renewals"], row["owner"])

    def _take(self, seen: tuple[int, int, str] | None) -> bool:
        with self._database.changing("writer", "lease", self._owner) as work:
            if seen is None:
                if work.connection.execute(select(lease.c.name)).first() is not None:
                    return False
                work.connection.execute(insert(lease).values(name=WRITER, owner=self._owner, epoch=1, renewals=0, doing=""))
                self.epoch = 1
            else:
                same = update(lease).where(lease.c.name == WRITER, lease.c.epoch == seen[0], lease.c.renewals == seen[1])
                if not work.connection.execute(same.values(owner=self._owner, epoch=seen[0] + 1, renewals=0)).rowcount:
                    return False
                self.epoch = seen[0] + 1
            work.note(epoch=self.epoch)
        return True

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            values = {"renewals": lease.c.renewals + 1, "doing": self.doing}
            try:
                with self._database.bookkeeping() as connection:
                    connection.execute(update(lease).where(lease.c.owner == self._owner, lease.c.epoch == self.epoch).values(**values))
            except Unavailable:  # the next one may go through; a holder that is silent for too long finds out at its next change
                continue


def _is_gone(owner: str) -> bool:
    """Whether nobody holds the lease, or a process of this machine that has died. Of another machine only its silence tells."""
    host, pid, _ = owner.rsplit(":", 2) if owner else ("", "", "")
    if not owner:
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return host == socket.gethostname()
    except PermissionError:
        return False
    return False
