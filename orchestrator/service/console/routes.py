"""The console's pages."""

import html
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from editing.errors import UltraEditError
from orchestrator.service import edits, jobs, tokens, versions
from orchestrator.service.api.context import Context, Cursor, after, context_of, following, sees_all, too_often
from orchestrator.service.api.edit_routes import Id, StateName, Words, plain
from orchestrator.service.api.openai_routes import list_models, speaking_of, state_of
from orchestrator.service.api.problems import Problem, status_and_headers
from orchestrator.service.api.schemas import EditIn, edit_out, shown, version_out
from orchestrator.service.api.version_routes import Number
from orchestrator.service.console.pages import COOKIE, FOLDER, LoginNeeded, Looks, Visit, form_of, go, page, visit_of
from orchestrator.service.console.plots import plots_of
from orchestrator.service.diffs import diff
from orchestrator.service.edits import Filter
from orchestrator.service.probing import add_probes, list_probes, remove_probe
from orchestrator.service.rows import Row, all_rows
from orchestrator.service.states import STATES
from orchestrator.service.status import health_of, status_of
from orchestrator.service.tables import gate_failures

router = APIRouter(prefix="/console", include_in_schema=False)

_PAGE = 50
_SAID_TOKENS = 24
_EMPTY = {"prompt": "", "target": "", "subject": "", "rephrasings": "", "source": ""}

Part = Annotated[bool, Query()]


def install(app: FastAPI) -> None:
    """Add the console to an application."""
    app.mount("/console/static", StaticFiles(directory=FOLDER / "static"), name="console files")
    app.include_router(router)

    @app.get("/", include_in_schema=False)
    def root() -> Response:
        return RedirectResponse("/console/edits", 307)

    @app.exception_handler(LoginNeeded)
    async def on_login_needed(request: Request, _: LoginNeeded) -> Response:
        if request.headers.get("hx-request"):
            return Response(status_code=204, headers={"HX-Redirect": "/console/login"})
        return go("/console/login")


@router.get("/login")
def login_page(request: Request) -> Response:
    context = context_of(request)
    return _login(context, "")


@router.post("/login")
async def log_in(request: Request) -> Response:
    context, fields = context_of(request), await form_of(request)
    client = request.client.host if request.client else "?"
    if wait := context.strangers.take(client):
        raise too_often(wait)
    caller = await run_in_threadpool(_caller_of, context, fields.get("token", "").strip())
    if caller is None:
        return _login(context, "The token is not known here, or was revoked.", 401)
    secret = await run_in_threadpool(tokens.begin_session, context.database, caller)
    answer = go("/console/edits")
    answer.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return answer


@router.post("/logout")
async def log_out(visit: Looks) -> Response:
    await visit.form()
    await run_in_threadpool(tokens.end_session, visit.context.database, visit.request.cookies.get(COOKIE, ""))
    answer = go("/console/login")
    answer.delete_cookie(COOKIE, path="/")
    return answer


@router.get("/edits")
def edits_page(visit: Looks, state: Annotated[StateName | str, Query()] = "", q: Words = None, cursor: Cursor = None, rows: Part = False) -> Response:
    chosen = state if state in STATES else None
    wanted = Filter(state=chosen, tenant=visit.caller.tenant, words=tuple((plain(q, "q") or "").split()), after=after(cursor), limit=_PAGE)
    with visit.context.database.reading() as connection:
        found, more = edits.find(connection, wanted)
        counts = edits.counts(connection)
    query = urlencode({"state": state, "q": q or ""})
    values: dict[str, Any] = {"edits": [edit_out(row) for row in found], "next": following(more), "cursor": cursor, "query": query}
    if rows:
        return page("edit_rows.html", **values)
    return visit.page("edits.html", "Edits", "edits", states=STATES, counts=counts, chosen=chosen, q=q or "", **values)


@router.get("/edits/{edit}")
def edit_page(edit: Id, visit: Looks) -> Response:
    with visit.context.database.reading() as connection:
        row = edits.get(connection, edit, visit.caller.tenant)
        found = edit_out(row, edits.history(connection, edit))
    return visit.page("edit.html", f"Edit {edit}", "edits", edit=found)


@router.get("/edits/{edit}/say")
async def say(edit: Id, visit: Looks, which: Annotated[str, Query(pattern="^(base|live)$")]) -> Response:
    context = visit.context
    row = await run_in_threadpool(_edit_of, context, edit, visit.caller.tenant)
    name = context.config.served_name
    text, wrong = await _said(context, f"{name}@base" if which == "base" else name, _question(row))
    return HTMLResponse(f'<span class="bad">{html.escape(text)}</span>' if wrong else html.escape(text) or "(nothing)")


def _question(row: Row) -> dict[str, Any]:
    """What an edit asks, for the process that speaks."""
    messages = row["request"].get("messages")
    return {"messages": messages} if messages else {"prompt": row["prompt"]}


@router.post("/edits/{edit}/{verb}")
async def change(edit: Id, visit: Looks, verb: Annotated[str, Path(pattern="^(approve|reject|remove)$")]) -> Response:
    visit.needs("editor" if verb == "remove" else "approver")
    fields = await visit.form()
    await run_in_threadpool(_change, visit, edit, verb, plain(fields.get("reason", ""), "reason") or "")
    return go(f"/console/edits/{edit}")


@router.get("/new")
def new_page(visit: Looks) -> Response:
    return visit.page("new.html", "New edit", "new", values=_EMPTY)


@router.post("/new")
async def ask_for(visit: Looks) -> Response:
    visit.needs("editor")
    fields = await visit.form()
    try:
        drafts = [_asked(fields).draft(visit.caller.tenant)]
    except (ValidationError, UltraEditError) as error:
        return _again(visit, fields, error)
    ids, _ = await run_in_threadpool(
        lambda: edits.add_once(visit.context.database, drafts, actor=visit.caller.name, token=visit.caller.token, key=None)
    )
    return go(f"/console/edits/{ids[0]}")


@router.post("/dry-run")
async def dry_run(visit: Looks) -> Response:
    visit.needs("editor")
    fields = await visit.form()
    try:
        draft = _asked(fields).draft(visit.caller.tenant)
    except (ValidationError, UltraEditError) as error:
        return _again(visit, fields, error)
    asked = {"prompt": draft.prompt, "target": draft.target, "request": dict(draft.request), "tenant": visit.caller.tenant}
    return await _job(visit, "dry-run", {"edits": [asked]})


@router.get("/versions")
def versions_page(visit: Looks, cursor: Cursor = None) -> Response:
    with visit.context.database.reading() as connection:
        rows, more = versions.newest_first(connection, after(cursor), _PAGE)
        live, head = versions.live(connection), versions.head(connection)
        failures = all_rows(connection, select(gate_failures).order_by(gate_failures.c.id.desc()).limit(20))
    values = {"versions": [version_out(row, live) for row in rows], "newest": head["number"] if head else None, "next": following(more)}
    return visit.page("versions.html", "Versions", "versions", failures=[shown(f, times=("at",)) for f in failures], **_with_gates(values))


@router.get("/versions/{number}")
def version_page(number: Number, visit: Looks) -> Response:
    context = visit.context
    with context.database.reading() as connection:
        row, live = versions.get(connection, number), versions.live(connection)
        other = live if live != number else row["parent"]
        both = other is not None and context.folder.has_state(number) and context.folder.has_state(other)
        changes = diff(connection, context.folder, other, number) if both and visit.caller.tenant is None else None
    return visit.page("version.html", f"Version {number}", "versions", v=version_out(row, live), changes=changes)


@router.post("/versions/{number}/{verb}")
async def change_version(number: Number, visit: Looks, verb: Annotated[str, Path(pattern="^(rollback|publish)$")]) -> Response:
    visit.needs("approver")
    sees_all(visit.caller)
    await visit.form()
    return await _job(visit, verb, {"version": number})


@router.get("/jobs/{job}")
def job_page(job: Id, visit: Looks, part: Part = False) -> Response:
    with visit.context.database.reading() as connection:
        row = jobs.get(connection, job)
    if row["actor"] != visit.caller.name:
        raise edits.NotFound(f"job: there is none with the id {job!r}")
    return page("job_fragment.html", job=row) if part else visit.page("job.html", row["kind"].capitalize(), "", job=row)


@router.get("/probes")
def probes_page(visit: Looks) -> Response:
    with visit.context.database.reading() as connection:
        rows, _ = list_probes(connection, None, 500)
    return visit.page("probes.html", "Probes", "probes", probes=rows)


@router.post("/probes")
async def add_probe(visit: Looks) -> Response:
    visit.needs("editor")
    sees_all(visit.caller)
    fields = await visit.form()
    prompt, answer = ((plain(fields.get(name, ""), name) or "").strip() for name in ("prompt", "answer"))
    if not prompt:
        raise Problem(422, "prompt: expected a question")
    await run_in_threadpool(_add_probe, visit, prompt, answer)
    return go("/console/probes")


@router.post("/probes/{probe}/remove")
async def drop_probe(probe: Id, visit: Looks) -> Response:
    visit.needs("approver")
    sees_all(visit.caller)
    await visit.form()
    await run_in_threadpool(_remove_probe, visit, probe)
    return go("/console/probes")


@router.get("/chat")
def chat_page(visit: Looks) -> Response:
    models = [model["id"] for model in list_models(visit.caller, visit.context)["data"]]
    return visit.page("chat.html", "Two versions next to each other", "chat", models=models, answers=[], prompt="", can_chat=True)


@router.post("/chat")
async def ask_both(visit: Looks) -> Response:
    fields = await visit.form()
    prompt = plain(fields.get("prompt", ""), "prompt") or ""
    if not prompt.strip():
        raise Problem(422, "prompt: expected a question")
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if fields.get("how") == "chat" else {"prompt": prompt}
    answers = []
    for side in ("left", "right"):
        model = fields.get(side, "")
        answers.append((model, *await _said(visit.context, model, asked, tokens=96)))
    if visit.request.headers.get("hx-request"):
        return page("answers.html", answers=answers, prompt=prompt)
    models = [model["id"] for model in (await run_in_threadpool(list_models, visit.caller, visit.context))["data"]]
    return visit.page("chat.html", "Two versions next to each other", "chat", models=models, answers=answers, prompt=prompt, can_chat=True)


@router.get("/health")
def health_page(visit: Looks) -> Response:
    with visit.context.database.reading() as connection:
        status, rows = status_of(connection, visit.context.config.served_name), health_of(connection)
    return visit.page("health.html", "Health", "health", doing=status, plots=plots_of(rows))


def _login(context: Context, message: str, status: int = 200) -> Response:
    values = {"title": "Log in", "name": context.config.served_name, "caller": None, "message": message, "wrong": bool(message), "here": ""}
    return page("login.html", status, **values, form_key="")


def _caller_of(context: Context, token: str) -> tokens.Caller | None:
    with context.database.reading() as connection:
        return tokens.who(connection, token)


def _edit_of(context: Context, edit: str, tenant: str | None) -> Mapping[str, Any]:
    with context.database.reading() as connection:
        return edits.get(connection, edit, tenant)


async def _said(context: Context, model: str, asked: Mapping[str, Any], tokens: int = _SAID_TOKENS) -> tuple[str, bool]:
    """What a version says, or why it says nothing."""
    try:
        state = await run_in_threadpool(state_of, context, model)
        pieces = speaking_of(context).ask({**asked, "state": state, "max_tokens": tokens})
        return "".join([piece.get("text", "") async for piece in pieces]), False
    except UltraEditError as error:
        return str(error), True


def _change(visit: Visit, edit: str, verb: str, reason: str) -> None:
    with visit.context.database.changing(visit.caller.name, verb, edit) as work:
        row = edits.get(work.connection, edit, visit.caller.tenant)
        if verb == "remove":
            edits.take_out(work, row, edits.REMOVE, reason or f"removed by {visit.caller.name}")
        else:
            (edits.approve if verb == "approve" else edits.reject)(work, row, reason)


def _asked(fields: Mapping[str, str]) -> EditIn:
    lists = {"rephrasings": [line.strip() for line in fields.get("rephrasings", "").splitlines() if line.strip()]}
    texts = {name: fields[name] for name in ("prompt", "target", "subject", "source") if fields.get(name, "").strip()}
    return EditIn(**{**texts, **lists})  # type: ignore[arg-type]


def _again(visit: Visit, fields: Mapping[str, str], error: Exception) -> Response:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        told = f"{'/'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
    else:
        told = str(error)
    values = {name: fields.get(name, "") for name in _EMPTY}
    return visit.page("new.html", "New edit", "new", 422, values=values, message=told, wrong=True)


async def _job(visit: Visit, kind: str, arguments: Mapping[str, Any]) -> Response:
    def ask() -> str:
        with visit.context.database.changing(visit.caller.name, kind) as work:
            return jobs.ask(work, kind, arguments)

    return go(f"/console/jobs/{await run_in_threadpool(ask)}")


def _add_probe(visit: Visit, prompt: str, answer: str) -> None:
    with visit.context.database.changing(visit.caller.name, "add probes") as work:
        add_probes(work, [{"prompt": prompt, "answer": answer or None}], "default")


def _remove_probe(visit: Visit, probe: str) -> None:
    with visit.context.database.changing(visit.caller.name, "remove probe", probe) as work:
        remove_probe(work, probe)


_FIGURES = ("efficacy", "old_efficacy", "probes_kept", "perplexity_growth")


def _with_gates(values: dict[str, Any]) -> dict[str, Any]:
    """Versions with every figure that the page shows, whether it was measured or not."""
    for version in values["versions"]:
        version["gates"] = {**dict.fromkeys(_FIGURES), **version["gates"]}
    return values


def problem_page(request: Request, error: UltraEditError) -> Response | None:
    """An error as a page, where a person looks at the console; ``None`` for anybody else."""
    if not request.url.path.startswith("/console") or request.headers.get("hx-request"):
        return None
    status, headers = status_and_headers(error)
    try:
        visit = visit_of(request)
    except (LoginNeeded, UltraEditError):
        return None
    answer = visit.page("problem.html", "That did not work", code=status, message=str(error), wrong=True)
    answer.headers.update(headers)
    return answer
