"""Routes of edits, probes and dry runs."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import JSONResponse, Response

from orchestrator.service import edits, jobs
from orchestrator.service.api.context import Approver, Context, Cursor, Editor, Here, Limit, Reader, Wait, after, asked_of_writer, following, sees_all
from orchestrator.service.api.problems import Problem
from orchestrator.service.api.schemas import EditIn, EditOut, EditsIn, EditsOut, Page, ProbesIn, ReasonIn, edit_out, shown
from orchestrator.service.edits import Filter
from orchestrator.service.probing import add_probes, list_probes, remove_probe
from orchestrator.service.states import STATES
from orchestrator.service.tokens import Caller

router = APIRouter(prefix="/v1", tags=["edits"])

Id = Annotated[str, Path(pattern=r"^[a-z]-[0-9a-f]{6,32}$", description="Id, as a list shows it.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]
Words = Annotated[str | None, Query(max_length=200, description="Words that occur in prompt, target, source or who asked.")]
StateName = Literal[STATES]  # type: ignore[valid-type]


@router.post("/edits", status_code=202, response_model=EditOut | EditsOut, summary="Ask for one edit or for many")
def add(body: EditIn | EditsIn | list[EditIn], caller: Editor, context: Here, response: Response, key: Key = None) -> EditOut | EditsOut:
    """Once this is answered, the edits are on the disk. The same `Idempotency-Key` with the same content is answered with the same edits."""
    asked = [body] if isinstance(body, EditIn) else body.edits if isinstance(body, EditsIn) else body
    if not 1 <= len(asked) <= context.config.max_edits:
        raise Problem(422, f"body: expected 1 to {context.config.max_edits} edits, found {len(asked)}")
    drafts = [edit.draft(caller.tenant) for edit in asked]
    ids, again = edits.add_once(context.database, drafts, actor=caller.name, token=caller.token, key=key)
    if again:
        response.headers["Idempotency-Replayed"] = "true"
    with context.database.reading() as connection:
        found = [edit_out(row) for row in edits.get_many(connection, ids)]
    return found[0] if isinstance(body, EditIn) else EditsOut(items=found, next=None)


@router.get("/edits", response_model=EditsOut, summary="List edits, the newest first")
def list_edits(
    caller: Reader,
    context: Here,
    state: Annotated[StateName | None, Query()] = None,
    q: Words = None,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
    version: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EditsOut:
    wanted = Filter(
        state=state,
        tenant=plain(tenant, "tenant") if caller.tenant is None else caller.tenant,
        version=version,
        words=tuple((plain(q, "q") or "").split()),
        after=after(cursor),
        limit=limit,
    )
    with context.database.reading() as connection:
        rows, more = edits.find(connection, wanted)
    return EditsOut(items=[edit_out(row) for row in rows], next=following(more))


@router.get("/edits/{edit}", response_model=EditOut, summary="One edit with its whole history")
def get(edit: Id, caller: Reader, context: Here) -> EditOut:
    return _shown(context, caller, edit)


@router.delete("/edits/{edit}", status_code=202, response_model=EditOut, summary="Take an edit out")
def delete(edit: Id, caller: Editor, context: Here, reason: Annotated[str, Query(max_length=2000)] = "") -> EditOut:
    """What is not in the weights yet is removed at once; else the writer takes it out by replay, and measures what the model says then."""
    with context.database.changing(caller.name, "remove", edit) as work:
        row = edits.get(work.connection, edit, caller.tenant)
        edits.take_out(work, row, edits.REMOVE, plain(reason, "reason") or f"removed by {caller.name}")
    return _shown(context, caller, edit)


@router.post("/edits/{edit}/approve", response_model=EditOut, summary="Let an edit be written")
def approve(edit: Id, caller: Approver, context: Here, body: ReasonIn | None = None) -> EditOut:
    """An edit that was set aside may be approved as well: it is tried again."""
    with context.database.changing(caller.name, "approve", edit) as work:
        row = edits.get(work.connection, edit, caller.tenant)
        edits.approve(work, row, body.reason if body else "")
    return _shown(context, caller, edit)


@router.post("/edits/{edit}/reject", response_model=EditOut, summary="Refuse an edit")
def reject(edit: Id, caller: Approver, context: Here, body: ReasonIn | None = None) -> EditOut:
    with context.database.changing(caller.name, "reject", edit) as work:
        edits.reject(work, edits.get(work.connection, edit, caller.tenant), body.reason if body else "")
    return _shown(context, caller, edit)


@router.post("/dry-run", summary="What edits would do", response_model=dict[str, Any])
async def dry_run(body: EditIn | EditsIn | list[EditIn], caller: Editor, context: Here, wait: Wait = 60) -> Response:
    """Conflicts, near duplicates, and what the gates would say: the edits are applied to the newest version, measured, and undone."""
    asked = [body] if isinstance(body, EditIn) else body.edits if isinstance(body, EditsIn) else body
    if not 1 <= len(asked) <= context.config.turn_edits:
        raise Problem(422, f"body: expected 1 to {context.config.turn_edits} edits, those of one turn; found {len(asked)}")
    drafts = [edit.draft(caller.tenant) for edit in asked]
    arguments = {"edits": [{"prompt": d.prompt, "target": d.target, "request": dict(d.request), "tenant": caller.tenant} for d in drafts]}
    return job_answer(await asked_of_writer(context, caller, "dry-run", arguments, wait))


@router.get("/jobs/{job}", summary="What the writer was asked for", response_model=dict[str, Any])
def get_job(job: Id, caller: Reader, context: Here) -> dict[str, Any]:
    with context.database.reading() as connection:
        row = jobs.get(connection, job)
    if caller.tenant is not None and row["actor"] != caller.name:
        raise edits.NotFound(f"job: there is none with the id {job!r}")
    return shown(row, times=("created", "finished"), without=("seq", "arguments"))


@router.post("/probes", status_code=201, summary="Add questions that must stay", response_model=dict[str, Any])
def post_probes(body: ProbesIn, caller: Editor, context: Here) -> dict[str, Any]:
    """Asked after every turn. A turn after which one of them has another answer is undone."""
    sees_all(caller)
    with context.database.changing(caller.name, "add probes") as work:
        ids = add_probes(work, [probe.model_dump() for probe in body.probes], body.suite)
    return {"items": [{"id": probe} for probe in ids], "next": None}


@router.get("/probes", response_model=Page, summary="List questions that must stay")
def get_probes(caller: Reader, context: Here, limit: Limit = 50, cursor: Cursor = None) -> Page:
    with context.database.reading() as connection:
        rows, more = list_probes(connection, after(cursor), limit)
    return Page(items=[shown(row, times=("created",), without=("seq", "removed")) for row in rows], next=following(more))


@router.delete("/probes/{probe}", status_code=204, summary="Ask a question no more")
def delete_probe(probe: Id, caller: Approver, context: Here) -> None:
    sees_all(caller)
    with context.database.changing(caller.name, "remove probe", probe) as work:
        remove_probe(work, probe)


def job_answer(job: Any) -> Response:
    """A job's result, or where it can be asked for."""
    if job["state"] == jobs.WAITING:
        return JSONResponse({"job": job["id"], "state": job["state"]}, 202, {"Location": f"/v1/jobs/{job['id']}"})
    return JSONResponse({**job["result"], "job": job["id"]})


def plain(value: str | None, name: str) -> str | None:
    """A parameter that the database can hold.

    Raises:
        Problem: It cannot.
    """
    if value is not None and ("\x00" in value or any("\ud800" <= sign <= "\udfff" for sign in value)):
        raise Problem(422, f"{name}: expected text without NUL characters and lone surrogates")
    return value


def _shown(context: Context, caller: Caller, edit: str) -> EditOut:
    with context.database.reading() as connection:
        row = edits.get(connection, edit, caller.tenant)
        return edit_out(row, edits.history(connection, edit))
