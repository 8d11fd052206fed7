"""The database: SQLite in the state folder, or PostgreSQL by its address; and how it is changed, which is one way only.

Every change is a :class:`Work`: it takes hold of the end of the audit log first, so that changes come one after another, and
writes its own entry there last. Its time never goes back, whatever the machine's clock does.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, insert, select, update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from editing.errors import InputError, UltraEditError, first_line
from orchestrator.service.audit import GENESIS, entry_hash, events_hash
from orchestrator.service.states import State, check_change
from orchestrator.service.tables import audit, chain, edits, events, metadata

_BUSY_SECONDS = 15.0
"""Time that a change waits for another one."""


class Unavailable(UltraEditError):
    """The database cannot be used now: locked, restarted or gone. The same call may succeed later; nothing was changed."""


class DiskFull(UltraEditError):
    """There is no room for a change; nothing was changed."""


class Work:
    """One change of the database, in one transaction.

    Attributes:
        connection: The transaction.
        now: Its time, in seconds since 1970.
        actor: Who changes.
    """

    def __init__(self, connection: Connection, actor: str, action: str, subject: str) -> None:
        self.connection, self.actor = connection, actor
        self._action, self._subject = action, subject
        self._end = connection.execute(select(chain).with_for_update()).mappings().one()
        self.now = max(time.time(), self._end["at"])
        self._events: list[dict[str, Any]] = []
        self._detail: dict[str, Any] | None = None

    def add_event(self, edit: str, before: str | None, after: State, reason: str, data: Mapping[str, Any] | None = None) -> None:
        """Add to an edit's history."""
        number = self._end["events"] + len(self._events) + 1
        row = {"id": number, "edit": edit, "at": self.now, "actor": self.actor, "before": before, "after": after, "reason": reason}
        self._events.append({**row, "data": None if data is None else dict(data)})

    def change(self, edit: Mapping[str, Any], after: State, reason: str, *, data: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Change an edit's state, and write it into its history.

        Args:
            edit: The edit's row; only its id and state are read.
            after: Its new state.
            reason: Why.
            data: Figures that belong to the change.
            **columns: Other columns that change with it.

        Raises:
            Conflict: This state cannot follow the one that it has.
        """
        check_change(edit["id"], edit["state"], after)
        values = {"state": after, "changed": self.now, "reason": reason, **columns}
        self.connection.execute(update(edits).where(edits.c.id == edit["id"]).values(**values))
        self.add_event(edit["id"], edit["state"], after, reason, data)

    def note(self, **detail: Any) -> None:
        """Say more in this change's entry of the audit log."""
        self._detail = {**(self._detail or {}), **detail}

    def seal(self) -> None:
        """Write the events, and the entry of the audit log, unless nothing was done that belongs there."""
        if not self._events and self._detail is None:
            return
        detail = dict(self._detail or {})
        if self._events:
            self.connection.execute(insert(events), self._events)
            detail["events"] = {"first": self._events[0]["id"], "last": self._events[-1]["id"], "sha256": events_hash(self._events)}
        entry = {"seq": self._end["seq"] + 1, "at": self.now, "actor": self.actor, "action": self._action, "subject": self._subject}
        entry |= {"detail": detail, "before": self._end["hash"]}
        digest = entry_hash(entry)
        self.connection.execute(insert(audit).values(**entry, hash=digest))
        end = {"seq": entry["seq"], "events": self._end["events"] + len(self._events), "at": self.now, "hash": digest}
        self.connection.execute(update(chain).values(**end))


class Database:
    """The database of one service.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        InputError: It is no address of a database that can be used.
        Unavailable: It does not answer.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        with _named_errors():
            self._create()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read from.

        Raises:
            Unavailable: The database cannot be used now.
        """
        with _named_errors(), self.engine.connect().execution_options(reads_only=True) as connection:
            yield connection

    @contextmanager
    def changing(self, actor: str, action: str, subject: str = "") -> Iterator[Work]:
        """One change: all of it is on the disk when this is left, or nothing.

        Args:
            actor: Who changes.
            action: What is done, for the audit log.
            subject: What it is done to.

        Raises:
            Unavailable, DiskFull: Nothing was changed.
        """
        with _named_errors(), self.engine.begin() as connection:
            work = Work(connection, actor, action, subject)
            yield work
            work.seal()

    @contextmanager
    def bookkeeping(self) -> Iterator[Connection]:
        """A transaction for what is no change that the audit log tells: leases, deliveries, sessions, answers of jobs."""
        with _named_errors(), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _create(self) -> None:
        with self.engine.begin() as connection:
            if not self.is_sqlite:  # two processes that start together would both create the tables
                connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(7216400)"))
            metadata.create_all(connection)
            if connection.execute(select(chain.c.id)).first() is None:
                connection.execute(insert(chain).values(id=1, seq=0, events=0, at=0.0, hash=GENESIS))


def sqlite_url(file: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{file}"


def check_address(url: str) -> None:
    """Refuse what is no address of a database, before anything is made for it.

    Raises:
        InputError: It is none, or its driver is not installed.
    """
    _engine(url).dispose()


def _engine(url: str) -> Engine:
    scheme = url.partition(":")[0]
    if scheme not in ("sqlite", "postgresql"):
        raise InputError(f"database: expected sqlite:///FILE or postgresql://USER@HOST/NAME, found an address that begins with {scheme!r}")
    if scheme == "sqlite":
        engine = sqlalchemy.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False}, pool_size=20, max_overflow=20)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_at_once)
        return engine
    try:
        return sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1), pool_pre_ping=True, pool_size=20, max_overflow=20)
    except ModuleNotFoundError:
        raise InputError("database: PostgreSQL needs the package psycopg; install it with: pip install 'psycopg[binary]'") from None
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError("database: expected postgresql://USER:PASSWORD@HOST:PORT/NAME; the address could not be read") from None


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # or the driver begins transactions by itself, and too late
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")  # what is acknowledged is on the disk
    connection.execute("pragma foreign_keys = on")


def _begin_at_once(connection: Connection) -> None:
    """A change takes its lock first: two that both read before they write would be in each other's way."""
    connection.exec_driver_sql("begin" if connection.get_execution_options().get("reads_only") else "begin immediate")


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        told = first_line(error.orig or error)
        if "full" in told or "No space left" in told or "disk I/O error" in told:
            raise DiskFull(f"database: there is no room for the change ({told}); free some space; nothing was changed") from None
        raise Unavailable(f"database: cannot be used now ({told}); try again; nothing was changed") from None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("database: the connection broke; try again") from None
        raise
