"""What the API asks of the writer, besides edits: a row that waits, and its answer."""

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from orchestrator.service.database import Work
from orchestrator.service.edits import NotFound
from orchestrator.service.rows import first_row
from orchestrator.service.tables import jobs

WAITING, DONE, FAILED = "waiting", "done", "failed"


def ask(work: Work, kind: str, arguments: Mapping[str, Any]) -> str:
    """Ask for something; the job's id."""
    job = f"j-{secrets.token_hex(8)}"
    row = {"id": job, "kind": kind, "arguments": dict(arguments), "actor": work.actor, "state": WAITING, "created": work.now}
    work.connection.execute(insert(jobs).values(**row))
    work.note(job=job, kind=kind, **({} if kind == "dry-run" else {"arguments": dict(arguments)}))
    return job


def next_job(connection: Connection) -> Mapping[str, Any] | None:
    """The job that waits longest."""
    return first_row(connection, select(jobs).where(jobs.c.state == WAITING).order_by(jobs.c.seq).limit(1))


def get(connection: Connection, job: str) -> Mapping[str, Any]:
    """A job's row.

    Raises:
        NotFound: There is none with this id.
    """
    row = first_row(connection, select(jobs).where(jobs.c.id == job))
    if row is None:
        raise NotFound(f"job: there is none with the id {job!r}")
    return row


def finish(connection: Connection, job: str, state: str, result: Mapping[str, Any], now: float) -> None:
    """Write down a job's answer."""
    connection.execute(update(jobs).where(jobs.c.id == job).values(state=state, result=dict(result), finished=now))
