"""Webhooks: what happened, told to addresses, signed. Events wait in the database with the change that they tell of, so none is lost.

    X-UltraEdit-Signature: t=SECONDS,v1=HMAC-SHA256(secret, "SECONDS." + body)

A delivery that fails is tried again after 1, 2, 4, ... seconds, ten times. Redirects are not followed.
"""

import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete, insert, select, update

from editing.errors import InputError
from orchestrator.service.database import Database, Unavailable, Work
from orchestrator.service.edits import NotFound
from orchestrator.service.rows import Row, all_rows, first_row
from orchestrator.service.tables import deliveries, webhooks

logger = logging.getLogger("ultraedit")

KINDS = ("version.live", "version.rolled_back", "edit.quarantined", "edit.failed", "edit.removed", "edit.expired", "publish.failed")
SIGNATURE = "X-UltraEdit-Signature"
_MAX_ATTEMPTS, _TIMEOUT, _IDLE = 10, 5.0, 0.5


def add_webhook(work: Work, url: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Add an address. Returns its id, and the secret that signs what it is told.

    Raises:
        InputError: It is no address, or there is no such kind of event.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise InputError("url: expected http://HOST/PATH or https://HOST/PATH, without a user in it")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"kinds: expected some of {', '.join(KINDS)}, found {unknown[0]!r}")
    row = {"id": f"w-{secrets.token_hex(6)}", "url": url, "secret": secrets.token_urlsafe(32), "kinds": list(kinds or KINDS), "created": work.now}
    work.connection.execute(insert(webhooks).values(**row))
    work.note(webhook=row["id"], host=parts.hostname)
    return str(row["id"]), str(row["secret"])


def remove_webhook(work: Work, webhook: str) -> None:
    """Tell an address nothing more.

    Raises:
        NotFound: There is none with this id.
    """
    if not work.connection.execute(delete(webhooks).where(webhooks.c.id == webhook)).rowcount:
        raise NotFound(f"webhook: there is none with the id {webhook!r}; GET /v1/webhooks lists them")
    work.connection.execute(update(deliveries).where(deliveries.c.webhook == webhook, deliveries.c.state == "waiting").values(state="given up"))
    work.note(webhook=webhook)


def announce(work: Work, kind: str, content: Mapping[str, Any]) -> None:
    """Have an event told to all who want it, once this change is committed."""
    rows = all_rows(work.connection, select(webhooks))
    body = json.dumps({"kind": kind, "at": work.now, **content})
    wanted = [
        {"webhook": row["id"], "kind": kind, "body": body, "attempts": 0, "due": work.now, "state": "waiting"} for row in rows if kind in row["kinds"]
    ]
    if wanted:
        work.connection.execute(insert(deliveries), wanted)


def signature(secret: str, seconds: int, body: str) -> str:
    """What signs a body that is sent at some time."""
    digest = hmac.new(secret.encode(), f"{seconds}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


class Deliverer:
    """A thread that delivers what is due.

    Args:
        database: Where deliveries wait.
        to_private: Whether addresses of this machine and of private networks are allowed.
    """

    def __init__(self, database: Database, *, to_private: bool) -> None:
        self._database, self._to_private = database, to_private
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Deliver no more."""
        self._stop.set()
        self._thread.join(timeout=2 * _TIMEOUT)

    def _work(self) -> None:
        while not self._stop.wait(_IDLE):
            try:
                while not self._stop.is_set() and self.deliver_one():
                    pass
            except Unavailable:  # the database is locked or restarting: what is due waits there
                self._stop.wait(_IDLE)

    def deliver_one(self) -> bool:
        """Deliver what is due first. Returns whether anything was."""
        with self._database.reading() as connection:
            due = first_row(connection, _due(time.time()))
        if due is None:
            return False
        told = _send(due["url"], due["secret"], due["body"], to_private=self._to_private)
        with self._database.bookkeeping() as connection:
            _note(connection, due, told)
        return True


def _due(now: float) -> Any:
    query = select(deliveries, webhooks.c.url, webhooks.c.secret).join(webhooks, webhooks.c.id == deliveries.c.webhook)
    return query.where(deliveries.c.state == "waiting", deliveries.c.due <= now).order_by(deliveries.c.due).limit(1)


def _note(connection: Connection, due: Row, told: str) -> None:
    attempts = due["attempts"] + 1
    state = "delivered" if not told else "given up" if attempts >= _MAX_ATTEMPTS else "waiting"
    if told:
        logger.warning("webhook   %s: attempt %d: %s", due["webhook"], attempts, told)
    values = {"attempts": attempts, "state": state, "due": time.time() + 2 ** (attempts - 1), "last_error": told}
    connection.execute(update(deliveries).where(deliveries.c.seq == due["seq"]).values(**values))


def _send(url: str, secret: str, body: str, *, to_private: bool) -> str:
    """Send a body; what went wrong, or nothing. The address that was checked is the one that is connected to."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    seconds = int(time.time())
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
        if not to_private and not ipaddress.ip_address(str(address).partition("%")[0]).is_global:
            return f"{host} is an address of this machine or of a private network; set webhooks_to_private to allow it"
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
        raw = socket.create_connection((str(address), port), timeout=_TIMEOUT)
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if parts.scheme == "https" else raw
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Content-Type": "application/json", SIGNATURE: signature(secret, seconds, body)}
            connection.request("POST", path, body.encode(), headers)
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if 200 <= status < 300 else f"it answered {status}"
