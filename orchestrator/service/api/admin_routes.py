"""Routes of tokens, webhooks, the audit log and the service itself."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from sqlalchemy import select

from orchestrator.service import hooks, tokens
from orchestrator.service.api.context import Admin, Cursor, Here, Limit, Reader, after, following, sees_all
from orchestrator.service.api.edit_routes import Id
from orchestrator.service.api.schemas import Page, TokenIn, WebhookIn, shown
from orchestrator.service.rows import all_rows
from orchestrator.service.status import status_of
from orchestrator.service.tables import audit, deliveries, webhooks
from orchestrator.service.tables import tokens as token_table

router = APIRouter(prefix="/v1", tags=["service"])

TokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{8}$")]


@router.get("/status", response_model=dict[str, Any], summary="What the service is doing")
def get_status(caller: Reader, context: Here) -> dict[str, Any]:
    with context.database.reading() as connection:
        return status_of(connection, context.config.served_name)


@router.get("/audit", response_model=Page, summary="The audit log, the newest first")
def get_audit(caller: Admin, context: Here, limit: Limit = 50, cursor: Cursor = None) -> Page:
    sees_all(caller)
    query = select(audit).order_by(audit.c.seq.desc()).limit(limit + 1)
    with context.database.reading() as connection:
        rows = all_rows(connection, query if cursor is None else query.where(audit.c.seq < after(cursor)))
    more = rows[limit - 1]["seq"] if len(rows) > limit else None
    return Page(items=[shown(row, times=("at",)) for row in rows[:limit]], next=following(more))


@router.post("/tokens", status_code=201, response_model=dict[str, Any], summary="Make a token; it is shown this once")
def post_token(body: TokenIn, caller: Admin, context: Here) -> dict[str, Any]:
    sees_all(caller)
    with context.database.changing(caller.name, "make token", body.name) as work:
        token = tokens.make(work, body.name, body.role, body.tenant)
    return {"token": token, "name": body.name, "role": body.role, "tenant": body.tenant}


@router.get("/tokens", response_model=Page, summary="List tokens, without what makes them worth anything")
def get_tokens(caller: Admin, context: Here) -> Page:
    sees_all(caller)
    with context.database.reading() as connection:
        rows = all_rows(connection, select(token_table).order_by(token_table.c.created).limit(500))
    return Page(items=[shown(row, times=("created", "revoked"), without=("sha256",)) for row in rows], next=None)


@router.delete("/tokens/{token}", status_code=204, summary="Make a token worthless")
def delete_token(token: TokenId, caller: Admin, context: Here) -> None:
    sees_all(caller)
    with context.database.changing(caller.name, "revoke token", token) as work:
        tokens.revoke(work, token)


@router.post("/webhooks", status_code=201, response_model=dict[str, Any], summary="Have an address told what happens")
def post_webhook(body: WebhookIn, caller: Admin, context: Here) -> dict[str, Any]:
    sees_all(caller)
    with context.database.changing(caller.name, "add webhook") as work:
        webhook, secret = hooks.add_webhook(work, body.url, tuple(body.kinds))
    return {"id": webhook, "secret": secret, "url": body.url, "kinds": body.kinds or list(hooks.KINDS), "signature": hooks.SIGNATURE}


@router.get("/webhooks", response_model=Page, summary="List webhooks, with what was delivered last")
def get_webhooks(caller: Admin, context: Here) -> Page:
    sees_all(caller)
    with context.database.reading() as connection:
        rows = all_rows(connection, select(webhooks).order_by(webhooks.c.created).limit(500))
        last = select(deliveries).order_by(deliveries.c.seq.desc()).limit(20)
        items = [
            {
                **shown(row, times=("created",), without=("secret",)),
                "deliveries": [
                    shown(d, times=("due",), without=("seq", "webhook", "body"))
                    for d in all_rows(connection, last.where(deliveries.c.webhook == row["id"]))
                ],
            }
            for row in rows
        ]
    return Page(items=items, next=None)


@router.delete("/webhooks/{webhook}", status_code=204, summary="Tell an address nothing more")
def delete_webhook(webhook: Id, caller: Admin, context: Here) -> None:
    sees_all(caller)
    with context.database.changing(caller.name, "remove webhook", webhook) as work:
        hooks.remove_webhook(work, webhook)
