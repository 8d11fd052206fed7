"""What every request passes before it is read: which host it asks for, how large it is, what it says that it is.

Written as plain ASGI, since a body is to be counted while it comes, whatever its headers say.
"""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from orchestrator.service.api.problems import problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
]
_WITH_BODY = ("POST", "PUT", "PATCH")


class Guard:
    """Middleware: refuses requests of a wrong host, size, type or encoding, and sets headers that browsers heed.

    Args:
        app: What answers the others.
        hosts: Names by which this service may be called; a page of another site that had its name point here is refused.
        max_body: Bytes of a body.
    """

    def __init__(self, app: Application, hosts: Collection[str], max_body: int) -> None:
        self._app, self._hosts, self._max_body = app, frozenset(hosts), max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        guarded = _Guarded(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await problem(*refusal)(scope, receive, guarded.send)
            return
        await self._app(scope, self._counting(receive), guarded.send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or ("*" not in self._hosts and _host(hosts[0]) not in self._hosts):
            return 421, "Host: is not a name of this service; expected the address that it was started with, or one of allowed_hosts"
        lengths = headers.get(b"content-length", [])
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self._max_body:
            return 413, f"body: is longer than {self._max_body} bytes; send fewer edits at a time"
        if scope["method"] in _WITH_BODY and scope["path"].startswith("/v1/") and (lengths not in ([], [b"0"]) or b"transfer-encoding" in headers):
            kinds = headers.get(b"content-type", [b""])
            if kinds[0].partition(b";")[0].strip().lower() != b"application/json":
                return 415, "Content-Type: expected application/json"
            if headers.get(b"content-encoding"):
                return 415, "Content-Encoding: expected none; send the body as it is"
        return None

    def _counting(self, receive: Receive) -> Receive:
        count = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._max_body:
                raise HTTPException(413, f"body: is longer than {self._max_body} bytes; send fewer edits at a time")
            return message

        return counted


class _Guarded:
    """Sends an answer with the headers that all have."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await self._send(message)


def _host(value: bytes) -> str:
    text = value.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
