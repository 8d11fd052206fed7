"""Tokens and roles. A token is shown once; what is kept of it is a SHA-256, which says nothing of a secret of 256 bits."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, delete, insert, select, update

from editing.config import check_choice
from orchestrator.service.database import Database, Work
from orchestrator.service.edits import NotFound
from orchestrator.service.rows import Row, all_rows, first_row
from orchestrator.service.tables import sessions, tokens

Role = Literal["reader", "editor", "approver", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
"""From the least to the most: each may do what those before it may."""

_PREFIX = "ue"
_SESSION_SECONDS = 12 * 3600.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        token: Id of the token.
        name: Its name.
        role: What it may do.
        tenant: The only tenant whose edits it sees; ``None`` for all.
    """

    token: str
    name: str
    role: str
    tenant: str | None

    def may(self, role: Role) -> bool:
        """Whether it may do what a role may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def make(work: Work, name: str, role: str, tenant: str | None = None, secret: str | None = None) -> str:
    """Make a token. Returns it: it cannot be shown again.

    Args:
        work: The change.
        name: Whose it is.
        role: What it may do.
        tenant: The only tenant whose edits it sees.
        secret: The token itself, where it was chosen before.

    Raises:
        InputError: There is no such role.
    """
    check_choice("role", role, ROLES)
    number, token = secrets.token_hex(4), secret
    if token is None:
        token = f"{_PREFIX}_{number}_{secrets.token_urlsafe(32)}"
    row = {"id": number, "name": name, "role": role, "tenant": tenant, "sha256": _hash(token), "created": work.now}
    work.connection.execute(insert(tokens).values(**row))
    work.note(token=number, name=name, role=role)
    return token


def revoke(work: Work, number: str) -> None:
    """Make a token worthless, and all console sessions that it began.

    Raises:
        NotFound: There is none with this id.
    """
    found = work.connection.execute(update(tokens).where(tokens.c.id == number, tokens.c.revoked.is_(None)).values(revoked=work.now))
    if not found.rowcount:
        raise NotFound(f"token: there is none with the id {number!r} that is not revoked; GET /v1/tokens lists them")
    work.connection.execute(delete(sessions).where(sessions.c.token == number))
    work.note(token=number)


def who(connection: Connection, token: str) -> Caller | None:
    """Whose a token is; ``None`` if it is nobody's. All hashes are compared, each in constant time."""
    digest, found = _hash(token), None
    for row in all_rows(connection, select(tokens).where(tokens.c.revoked.is_(None))):
        if hmac.compare_digest(digest, row["sha256"]):
            found = _caller(row)
    return found


def begin_session(database: Database, caller: Caller) -> str:
    """Begin a session of the console. Returns what its cookie holds."""
    secret = secrets.token_urlsafe(32)
    row = {"sha256": _hash(secret), "token": caller.token, "form_key": secrets.token_urlsafe(24), "expires": time.time() + _SESSION_SECONDS}
    with database.bookkeeping() as connection:
        connection.execute(delete(sessions).where(sessions.c.expires < time.time()))
        connection.execute(insert(sessions).values(**row))
    return secret


def of_session(connection: Connection, secret: str) -> tuple[Caller, str] | None:
    """Who began a session, and what its forms must hold; ``None`` if there is none, or its token was revoked."""
    query = select(tokens, sessions.c.form_key).join(sessions, sessions.c.token == tokens.c.id)
    query = query.where(sessions.c.sha256 == _hash(secret), sessions.c.expires > time.time(), tokens.c.revoked.is_(None))
    row = first_row(connection, query)
    return None if row is None else (_caller(row), row["form_key"])


def end_session(database: Database, secret: str) -> None:
    """End a session of the console."""
    with database.bookkeeping() as connection:
        connection.execute(delete(sessions).where(sessions.c.sha256 == _hash(secret)))


def _caller(row: Row) -> Caller:
    return Caller(row["id"], row["name"], row["role"], row["tenant"])


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
