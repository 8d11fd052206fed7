"""Routes of versions: list, compare, publish, go back; and canaries."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from sqlalchemy import Connection, select

from orchestrator.service import versions
from orchestrator.service.api.context import Approver, Cursor, Here, Limit, Reader, Wait, after, asked_of_writer, following, sees_all
from orchestrator.service.api.edit_routes import job_answer
from orchestrator.service.api.schemas import Page, PublishIn, ReasonIn, shown, version_out
from orchestrator.service.diffs import diff
from orchestrator.service.rows import all_rows
from orchestrator.service.tables import gate_failures, publications

router = APIRouter(prefix="/v1/versions", tags=["versions"])

Number = Annotated[int, Path(ge=0, lt=2**31, description="Number of a version; 0 is the unedited model.")]


@router.get("", response_model=Page, summary="List versions, the newest first")
def list_versions(caller: Reader, context: Here, limit: Limit = 50, cursor: Cursor = None) -> Page:
    with context.database.reading() as connection:
        rows, more = versions.newest_first(connection, after(cursor), limit)
        live, published = versions.live(connection), publications_of(connection, [row["number"] for row in rows])
    return Page(items=[version_out(row, live, published) for row in rows], next=following(more))


@router.get("/{number}", response_model=dict[str, Any], summary="One version with its gates")
def get_version(number: Number, caller: Reader, context: Here) -> dict[str, Any]:
    with context.database.reading() as connection:
        row, live = versions.get(connection, number), versions.live(connection)
        failures = all_rows(connection, select(gate_failures).where(gate_failures.c.version == number).order_by(gate_failures.c.id).limit(100))
        published = publications_of(connection, [number])
    return {**version_out(row, live, published), "failures_after": [shown(failure, times=("at",), without=("id", "version")) for failure in failures]}


@router.get("/{number}/diff/{other}", response_model=dict[str, Any], summary="What another version has that this one has not, and the reverse")
def get_diff(number: Number, other: Number, caller: Reader, context: Here) -> dict[str, Any]:
    sees_all(caller)
    with context.database.reading() as connection:
        return diff(connection, context.folder, number, other)


@router.post("/{number}/publish", response_model=dict[str, Any], summary="Have a version live, or try it as a canary")
async def publish(number: Number, caller: Approver, context: Here, body: PublishIn | None = None, wait: Wait = 60) -> Response:
    """Without an engine the version is what this service answers with. With one it is loaded there, asked, and taken back if it fails."""
    sees_all(caller)
    _known(context, number)
    asked = body or PublishIn()
    return job_answer(await asked_of_writer(context, caller, "publish", {"version": number, **asked.model_dump()}, wait))


@router.post("/{number}/rollback", response_model=dict[str, Any], summary="Go back to a version")
async def rollback(number: Number, caller: Approver, context: Here, body: ReasonIn | None = None, wait: Wait = 60) -> Response:
    """A new version that is the old one again. What came since is quarantined; what was withdrawn since stays out."""
    sees_all(caller)
    _known(context, number)
    return job_answer(await asked_of_writer(context, caller, "rollback", {"version": number, "reason": body.reason if body else ""}, wait))


@router.post("/{number}/promote", response_model=dict[str, Any], summary="Have a canary take the place of what is live")
async def promote(number: Number, caller: Approver, context: Here, wait: Wait = 60) -> Response:
    sees_all(caller)
    _known(context, number)
    return job_answer(await asked_of_writer(context, caller, "promote", {"version": number}, wait))


@router.post("/{number}/drop", response_model=dict[str, Any], summary="Take a canary back")
async def drop(number: Number, caller: Approver, context: Here, wait: Wait = 60) -> Response:
    sees_all(caller)
    _known(context, number)
    return job_answer(await asked_of_writer(context, caller, "drop", {"version": number}, wait))


def publications_of(connection: Connection, numbers: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Publications by version."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in all_rows(connection, select(publications).where(publications.c.version.in_(numbers)).order_by(publications.c.seq)):
        found.setdefault(row["version"], []).append(shown(row, times=("at",), without=("seq", "version", "number")))
    return found


def _known(context: Any, number: int) -> None:
    with context.database.reading() as connection:
        versions.get(connection, number)
