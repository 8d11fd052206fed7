"""What routes have at hand: the database, who asks, and what the writer answers."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.service import jobs
from orchestrator.service.api.limits import RateLimit
from orchestrator.service.api.problems import Problem
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Database
from orchestrator.service.folders import StateFolder
from orchestrator.service.rows import Row
from orchestrator.service.speaking import Speaking
from orchestrator.service.tokens import Caller, Role, who

_POLL_SECONDS = 0.1
_SCHEME = "bearer "


@dataclass
class Context:
    """What one front end holds.

    Attributes:
        config: The service's configuration.
        database: The database.
        folder: The state folder.
        speaking: Questions to the model; ``None`` where they are turned off.
        callers: Limits of those who have a token.
        strangers: Limits of those who have none.
    """

    config: ServeConfig
    database: Database
    folder: StateFolder
    speaking: Speaking | None
    callers: RateLimit
    strangers: RateLimit


def context_of(request: Request) -> Context:
    """That of the application."""
    found: Context = request.app.state.context
    return found


Here = Annotated[Context, Depends(context_of)]


def _authenticated(request: Request, context: Here) -> Caller:
    """Who asks, by the token of the request.

    Raises:
        Problem: There is none, it is not known, or it asks too often.
    """
    told = request.headers.get("authorization", "")
    client = request.client.host if request.client else "?"
    if not told.lower().startswith(_SCHEME):
        raise _stranger(context, client, "Authorization: expected 'Bearer TOKEN' with the token that the service printed, or one that an admin made")
    with context.database.reading() as connection:
        caller = who(connection, told[len(_SCHEME) :].strip())
    if caller is None:
        raise _stranger(context, client, "Authorization: the token is not known here, or was revoked")
    if wait := context.callers.take(caller.token):
        raise too_often(wait)
    return caller


def _stranger(context: Context, client: str, detail: str) -> Problem:
    if wait := context.strangers.take(client):
        return too_often(wait)
    return Problem(401, detail, {"WWW-Authenticate": 'Bearer realm="ultraedit"'})


def too_often(wait: float) -> Problem:
    """The answer to who asks too often."""
    return Problem(429, f"too many requests; try again in {wait:.1f} s", {"Retry-After": str(max(1, round(wait)))})


def allowed(role: Role) -> Callable[[Caller], Caller]:
    """A dependency: a caller who may do what a role may."""

    def check(caller: Annotated[Caller, Depends(_authenticated)]) -> Caller:
        if not caller.may(role):
            raise Problem(403, f"a token of the role {role} is needed; this one is of a {caller.role}")
        return caller

    return check


Reader = Annotated[Caller, Depends(allowed("reader"))]
Editor = Annotated[Caller, Depends(allowed("editor"))]
Approver = Annotated[Caller, Depends(allowed("approver"))]
Admin = Annotated[Caller, Depends(allowed("admin"))]

Limit = Annotated[int, Query(ge=1, le=500, description="Items of a page.")]
Cursor = Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="`next` of the page before.")]
Wait = Annotated[float, Query(ge=0, le=300, description="Seconds to wait for the writer; after them the answer is 202 with the job.")]


def after(cursor: str | None) -> int | None:
    """The number in a cursor."""
    return None if cursor is None else int(cursor)


def following(number: int | None) -> str | None:
    """The cursor of the next page."""
    return None if number is None else str(number)


async def asked_of_writer(context: Context, caller: Caller, kind: str, arguments: Mapping[str, Any], wait: float) -> Row:
    """Ask the writer for something, and wait a while for it.

    Returns:
        The job's row; it may still be waiting.

    Raises:
        Problem: The writer refused.
    """

    def ask() -> str:
        with context.database.changing(caller.name, kind) as work:
            return jobs.ask(work, kind, arguments)

    def look() -> Row:
        with context.database.reading() as connection:
            return jobs.get(connection, number)

    number = await run_in_threadpool(ask)
    deadline = time.monotonic() + wait
    while (job := await run_in_threadpool(look))["state"] == jobs.WAITING and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    if job["state"] == jobs.FAILED:
        raise Problem(409, job["result"]["reason"], job=job["id"])
    return job


def sees_all(caller: Caller) -> None:
    """Refuse a caller who is bound to one tenant what concerns all.

    Raises:
        Problem: It is.
    """
    if caller.tenant is not None:
        raise Problem(403, "this token is bound to one tenant; this concerns all of them")
