"""A client of the service, with nothing but the standard library.

with Client("http://127.0.0.1:8080", token) as client:
    edit = client.add(Edit("The capital of Samoa is", "Apia", subject="Samoa"))
    edit = client.wait(edit.id)          # until it is live, or is set aside
    print(edit.state, edit.version, edit.reason)
"""

import http.client
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from editing.errors import InputError, UltraEditError

_LONGEST_WAIT = 300.0
"""Seconds that the service lets a caller wait for its writer."""

_IDLE_SECONDS = 4.0
"""A connection that was not used for so long may have been closed by the service; another one is opened."""

_ENDS = ("live", "rejected", "quarantined", "failed", "superseded", "expired", "removed")


class Refused(UltraEditError):
    """The service says no.

    Args:
        status: The HTTP status.
        problem: The problem details.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"status {status}"))
        self.status, self.problem = status, dict(problem)


class Unreachable(UltraEditError):
    """The service does not answer. What was asked with an idempotency key may be asked again."""


@dataclass(frozen=True)
class Edit:
    """A fact to be written, after a prompt or after ``messages``. Times are ISO 8601 with a zone."""

    prompt: str = ""
    target: str = ""
    subject: str | None = None
    rephrasings: Sequence[str] = ()
    probes: Sequence[Mapping[str, str]] = ()
    source: str = ""
    asked_by: str = ""
    valid_from: str | None = None
    expires: str | None = None
    tenant: str = ""
    messages: Sequence[Mapping[str, str]] = ()

    def as_dict(self) -> dict[str, Any]:
        """What the API is sent."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), "", [])}


@dataclass(frozen=True)
class StoredEdit:
    """An edit as the service has it."""

    id: str
    state: str
    version: int | None
    pending: str | None
    prompt: str
    target: str
    subject: str | None
    source: str
    asked_by: str
    tenant: str
    reason: str
    created: str
    changed: str
    valid_from: str | None
    expires: str | None
    figures: dict[str, Any] | None
    history: list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "StoredEdit":
        """From what the API sends; what this version does not know is left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class Client:
    """Calls one service.

    Args:
        address: ``http://HOST:PORT``.
        token: The token.
        timeout: Seconds that an answer may take.

    Raises:
        InputError: It is no address.
    """

    def __init__(self, address: str, token: str, timeout: float = 120.0) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"address: expected http://HOST:PORT, found {address!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._token, self._used, self._timeout = token, 0.0, timeout

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def add(self, edit: Edit, *, key: str | None = None) -> StoredEdit:
        """Ask for an edit. Raises as :meth:`call` does."""
        return self.add_all([edit], key=key)[0]

    def add_all(self, edits: Sequence[Edit], *, key: str | None = None) -> list[StoredEdit]:
        """Ask for edits, once: with the same key and content, the same edits are answered."""
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        answer = self.call("POST", "/v1/edits", {"edits": [edit.as_dict() for edit in edits]}, headers)
        return [StoredEdit.of(item) for item in answer["items"]]

    def edits(self, **filters: Any) -> Iterator[StoredEdit]:
        """All edits that filters let through, the newest first, page by page: ``state``, ``q``, ``tenant``, ``version``."""
        for item in self.pages("/v1/edits", filters):
            yield StoredEdit.of(item)

    def edit(self, number: str) -> StoredEdit:
        """One edit with its history."""
        return StoredEdit.of(self.call("GET", f"/v1/edits/{quote(number, safe='')}"))

    def wait(self, number: str, timeout: float = 300.0) -> StoredEdit:
        """An edit once it is live or set aside.

        Raises:
            Unreachable: It took too long.
        """
        deadline = time.monotonic() + timeout
        while (edit := self.edit(number)).state not in _ENDS:
            if time.monotonic() > deadline:
                raise Unreachable(f"edit {number} is still {edit.state} after {timeout:g} s")
            time.sleep(0.3)
        return edit

    def remove(self, number: str, reason: str = "") -> StoredEdit:
        """Have an edit taken out."""
        return StoredEdit.of(self.call("DELETE", f"/v1/edits/{quote(number, safe='')}?{urlencode({'reason': reason})}"))

    def approve(self, number: str, reason: str = "") -> StoredEdit:
        """Let an edit be written."""
        return StoredEdit.of(self.call("POST", f"/v1/edits/{quote(number, safe='')}/approve", {"reason": reason}))

    def reject(self, number: str, reason: str = "") -> StoredEdit:
        """Refuse an edit."""
        return StoredEdit.of(self.call("POST", f"/v1/edits/{quote(number, safe='')}/reject", {"reason": reason}))

    def dry_run(self, edits: Sequence[Edit]) -> dict[str, Any]:
        """What edits would do."""
        return self._call_writer("/v1/dry-run", {"edits": [edit.as_dict() for edit in edits]})

    def add_probes(self, probes: Sequence[Mapping[str, str]], suite: str = "default") -> list[str]:
        """Add questions that must stay; their ids."""
        answer = self.call("POST", "/v1/probes", {"probes": [dict(probe) for probe in probes], "suite": suite})
        return [item["id"] for item in answer["items"]]

    def versions(self) -> list[dict[str, Any]]:
        """All versions, the newest first."""
        return list(self.pages("/v1/versions", {}))

    def roll_back(self, version: int, reason: str = "") -> dict[str, Any]:
        """Go back to a version."""
        return self._call_writer(f"/v1/versions/{version}/rollback", {"reason": reason})

    def publish(self, version: int, **how: Any) -> dict[str, Any]:
        """Have a version live, or with ``canary=True`` tried."""
        return self._call_writer(f"/v1/versions/{version}/publish", how)

    def promote(self, version: int) -> dict[str, Any]:
        """Have a canary take the place of what is live."""
        return self._call_writer(f"/v1/versions/{version}/promote")

    def drop(self, version: int) -> dict[str, Any]:
        """Take a canary out of its engine."""
        return self._call_writer(f"/v1/versions/{version}/drop")

    def diff(self, first: int, second: int) -> dict[str, Any]:
        """What two versions differ in."""
        return self.call("GET", f"/v1/versions/{first}/diff/{second}")

    def status(self) -> dict[str, Any]:
        """What the service is doing."""
        return self.call("GET", "/v1/status")

    def complete(self, prompt: str, model: str, max_tokens: int = 16) -> str:
        """What a version writes after a prompt."""
        answer = self.call("POST", "/v1/completions", {"model": model, "prompt": prompt, "max_tokens": max_tokens})
        return str(answer["choices"][0]["text"])

    def pages(self, path: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """All items of a list."""
        asked = {name: value for name, value in filters.items() if value is not None}
        cursor: str | None = None
        while True:
            query = urlencode({**asked, **({} if cursor is None else {"cursor": cursor})})
            page = self.call("GET", f"{path}?{query}")
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def _call_writer(self, path: str, body: Any = None) -> dict[str, Any]:
        """Have the writer do something, and wait for it nearly as long as an answer may take; after that the answer is its job."""
        return self.call("POST", f"{path}?{urlencode({'wait': min(_LONGEST_WAIT, 0.9 * self._timeout)})}", body)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One call.

        Raises:
            Refused: The service says no.
            Unreachable: It does not answer.
        """
        sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        if time.monotonic() - self._used > _IDLE_SECONDS:
            self._connection.close()
        try:
            self._connection.request(method, path, content, sent)
            answer = self._connection.getresponse()
            text = answer.read()
            self._used = time.monotonic()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unreachable(f"the service does not answer ({type(error).__name__}: {error}); is it running?") from None
        values: dict[str, Any] = json.loads(text) if text else {}
        if answer.status >= 300:
            raise Refused(answer.status, values)
        return values
