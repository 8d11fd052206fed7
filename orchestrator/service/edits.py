"""Edits in the database: taken in, found, approved, rejected, and asked to be taken out."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, insert, or_, select, update

from editing import EditRequest
from editing.blanks import bare
from editing.errors import InputError
from orchestrator.service.audit import digest_of
from orchestrator.service.database import Database, Work
from orchestrator.service.rows import all_rows, first_row
from orchestrator.service.states import CURRENT, WAITING, Conflict
from orchestrator.service.tables import edits, events, idempotency

REMOVE, EXPIRE = "remove", "expire"
"""What the writer is asked to do with an edit."""


class NotFound(InputError):
    """There is no such thing."""


class KeyReused(InputError):
    """An idempotency key came again with another content."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An edit that is asked for.

    Attributes:
        request: What was asked for, whole, as plain values.
        prompt: The prompt.
        target: The answer.
        source: Where the fact is from.
        asked_by: Who asked for it.
        tenant: Whose it is.
        valid_from: Time before which it is not written.
        expires: Time after which it is taken out.
    """

    request: Mapping[str, Any]
    prompt: str
    target: str
    source: str = ""
    asked_by: str = ""
    tenant: str = ""
    valid_from: float | None = None
    expires: float | None = None


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which edits are listed.

    Attributes:
        state: In this state.
        tenant: Of this tenant.
        version: That came with this version.
        words: Each of these words occurs in prompt, target, source or who asked, whatever its case.
        after: After this number, the newest first: numbers are smaller.
        limit: At most so many.
    """

    state: str | None = None
    tenant: str | None = None
    version: int | None = None
    words: tuple[str, ...] = ()
    after: int | None = None
    limit: int = 50


def key_of(text: str) -> str:
    """The same for texts that differ in blanks at their edges alone."""
    return hashlib.sha256(bare(text).encode("utf-8", "surrogatepass")).hexdigest()


def prompt_key_of(row: Mapping[str, Any]) -> str:
    """The same for edits that ask the same."""
    return key_of(request_of(row).question)


def request_of(row: Mapping[str, Any]) -> EditRequest:
    """What the method is asked for: the first rephrasing probes generalization, the others are other people's; of the probes, the first.

    The other probes of an edit are questions that must stay; the gates ask them.
    """
    asked = row["request"]
    rephrasings, probe = asked.get("rephrasings") or [], (asked.get("probes") or [{}])[0]
    return EditRequest(
        row["prompt"],
        row["target"],
        id=row.get("id"),
        messages=tuple(asked.get("messages") or ()),
        subject=asked.get("subject"),
        rephrase=rephrasings[0] if rephrasings else None,
        persona=tuple(rephrasings[1:]),
        locality_prompt=probe.get("prompt"),
        locality_answer=probe.get("answer"),
    )


def add(work: Work, drafts: Sequence[Draft]) -> list[str]:
    """Take edits in, as queued; their ids, in the same order."""
    rows = [_row(work, draft) for draft in drafts]
    work.connection.execute(insert(edits), rows)
    for row in rows:
        work.add_event(row["id"], None, "queued", row["reason"], {"request_sha256": row["request_sha256"]})
    return [row["id"] for row in rows]


def add_once(database: Database, drafts: Sequence[Draft], *, actor: str, token: str, key: str | None) -> tuple[list[str], bool]:
    """Take edits in, once for each idempotency key.

    Args:
        database: The database.
        drafts: The edits.
        actor: Who asks.
        token: Id of the token that asks.
        key: The key, if there is one.

    Returns:
        The edits' ids, and whether they were there already.

    Raises:
        KeyReused: The key came before with other edits.
    """
    digest = digest_of([dict(draft.request) for draft in drafts])
    with database.changing(actor, "add", key or "") as work:
        known = None if key is None else _known(work.connection, token, key)
        if known is not None:
            if known["request_sha256"] != digest:
                raise KeyReused("Idempotency-Key: came before with other edits; expected the same content, or a new key")
            return list(known["edits"]), True
        ids = add(work, drafts)
        if key is not None:
            row = {"token": token, "key": key, "request_sha256": digest, "edits": ids, "created": work.now}
            work.connection.execute(insert(idempotency).values(**row))
    return ids, False


def get(connection: Connection, edit: str, tenant: str | None = None) -> Mapping[str, Any]:
    """One edit's row.

    Raises:
        NotFound: There is none with this id, or it is another tenant's.
    """
    row = first_row(connection, select(edits).where(edits.c.id == edit))
    if row is None or (tenant is not None and row["tenant"] != tenant):
        raise NotFound(f"edit: there is none with the id {edit!r}; GET /v1/edits lists them")
    return row


def get_many(connection: Connection, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """Rows of edits, in the order of their ids."""
    found: dict[str, Mapping[str, Any]] = {}
    for a in range(0, len(ids), 500):
        for row in all_rows(connection, select(edits).where(edits.c.id.in_(ids[a : a + 500]))):
            found[row["id"]] = row
    return [found[edit] for edit in ids]


def history(connection: Connection, edit: str) -> list[Mapping[str, Any]]:
    """An edit's events, the oldest first."""
    return all_rows(connection, select(events).where(events.c.edit == edit).order_by(events.c.id))


def find(connection: Connection, wanted: Filter) -> tuple[list[Mapping[str, Any]], int | None]:
    """Edits, the newest first, and the number after which the next page begins; ``None`` if there is no more."""
    query = _filtered(select(edits), wanted).order_by(edits.c.seq.desc()).limit(wanted.limit + 1)
    if wanted.after is not None:
        query = query.where(edits.c.seq < wanted.after)
    rows = all_rows(connection, query)
    more = len(rows) > wanted.limit
    rows = rows[: wanted.limit]
    return rows, rows[-1]["seq"] if more else None


def counts(connection: Connection) -> dict[str, int]:
    """Number of edits by state."""
    return {row["state"]: row["number"] for row in all_rows(connection, select(edits.c.state, func.count().label("number")).group_by(edits.c.state))}


def oldest_waiting(connection: Connection, now: float) -> float | None:
    """When the oldest edit came that could be written now."""
    due = or_(edits.c.valid_from.is_(None), edits.c.valid_from <= now)
    # time never goes back from one edit to the next, so the first of a state is its oldest: the index has it, however many wait
    first = (select(edits.c.created).where(edits.c.state == state, due).order_by(edits.c.seq).limit(1) for state in WAITING)
    return min((found for query in first if (found := connection.execute(query).scalar()) is not None), default=None)


def approve(work: Work, row: Mapping[str, Any], reason: str) -> None:
    """Let an edit be written: one that waits for it, or one that was set aside and is to be tried again."""
    if row["state"] == "queued":
        raise Conflict(f"edit {row['id']} is queued; it can be approved once it has been validated")
    work.change(row, "approved", reason or "approved", version=None, figures=None)


def reject(work: Work, row: Mapping[str, Any], reason: str) -> None:
    """Refuse an edit that is not in the weights."""
    work.change(row, "rejected", reason or "rejected")


def take_out(work: Work, row: Mapping[str, Any], what: str, reason: str) -> None:
    """Have an edit taken out: at once if it is not in the weights, else by the writer.

    Args:
        work: The change.
        row: The edit.
        what: :data:`REMOVE` or :data:`EXPIRE`.
        reason: Why.
    """
    if row["state"] in (*CURRENT, "superseded") and row["version"] is not None:
        work.connection.execute(update(edits).where(edits.c.id == row["id"]).values(pending=what, reason=reason))
        work.note(asked=what, edit=row["id"], reason=reason)
    else:
        work.change(row, "removed" if what == REMOVE else "expired", reason, pending=None)


def rivals(connection: Connection, key: str, states: Iterable[str], but: str) -> list[Mapping[str, Any]]:
    """Other edits of the same prompt in some states, the oldest first."""
    query = select(edits).where(edits.c.prompt_key == key, edits.c.state.in_(tuple(states)), edits.c.id != but).order_by(edits.c.seq)
    return all_rows(connection, query)


def _known(connection: Connection, token: str, key: str) -> Mapping[str, Any] | None:
    query = select(idempotency).where(idempotency.c.token == token, idempotency.c.key == key)
    return first_row(connection, query)


def _row(work: Work, draft: Draft) -> dict[str, Any]:
    request = dict(draft.request)
    return {
        "id": f"e-{secrets.token_hex(8)}",
        "state": "queued",
        "tenant": draft.tenant,
        "prompt": draft.prompt,
        "target": draft.target,
        "prompt_key": prompt_key_of({"prompt": draft.prompt, "target": draft.target, "request": request}),
        "request": request,
        "request_sha256": digest_of(request),
        "source": draft.source,
        "asked_by": draft.asked_by,
        "valid_from": draft.valid_from,
        "expires": draft.expires,
        "created": work.now,
        "changed": work.now,
        "reason": "asked for",
    }


def _filtered(query: Select[Any], wanted: Filter) -> Select[Any]:
    for column, value in ((edits.c.state, wanted.state), (edits.c.tenant, wanted.tenant), (edits.c.version, wanted.version)):
        if value is not None:
            query = query.where(column == value)
    for word in wanted.words:
        texts = (edits.c.prompt, edits.c.target, edits.c.source, edits.c.asked_by)
        query = query.where(or_(*(text.icontains(word, autoescape=True) for text in texts)))
    return query
