"""Errors as problem details (RFC 9457), in one form for whatever went wrong."""

import logging
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from editing.errors import InputError, InvalidRequest, UltraEditError
from orchestrator.service.database import DiskFull, Unavailable
from orchestrator.service.edits import KeyReused, NotFound
from orchestrator.service.speaking import SpeakerBusy, SpeakerDown
from orchestrator.service.states import Conflict

logger = logging.getLogger("ultraedit")

MEDIA_TYPE = "application/problem+json"

_STATUS: tuple[tuple[type[UltraEditError], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (KeyReused, 422),
    (InvalidRequest, 422),
    (InputError, 422),
    (Unavailable, 503),
    (DiskFull, 507),
    (SpeakerBusy, 429),
    (SpeakerDown, 503),
)


class Problem(UltraEditError):
    """An answer that is no.

    Args:
        status: The HTTP status.
        detail: What is wrong, what was expected and what to do.
        headers: Of the answer.
        **more: Further members of the problem.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.headers, self.more = status, dict(headers or {}), more


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem as an answer. Clients of OpenAI's API find the message under ``error``."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    body["error"] = {"message": detail, "type": title.lower().replace(" ", "_"), "code": str(status)}
    return JSONResponse(body, status, dict(headers or {}), MEDIA_TYPE)


def _described(error: UltraEditError) -> tuple[int, str, dict[str, str]]:
    status, headers = status_and_headers(error)
    return status, str(error), headers


def status_and_headers(error: UltraEditError) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to an error."""
    if isinstance(error, Problem):
        return error.status, error.headers
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return status, {"Retry-After": "1"} if status in (429, 503) else {}


def install(app: FastAPI, as_page: Callable[[Request, UltraEditError], Response | None]) -> None:
    """Have every error of an application answered as a problem.

    Args:
        app: The application.
        as_page: Gives the answer as a page, where a person looks at one.
    """

    @app.exception_handler(UltraEditError)
    def on_known(request: Request, error: UltraEditError) -> Response:
        shown = as_page(request, error)
        if shown is not None:
            return shown
        return problem(*_described(error), **(error.more if isinstance(error, Problem) else {}))

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        found = [{"at": "/".join(str(part) for part in e["loc"]), "message": e["msg"]} for e in error.errors()]
        if any(e["type"] == "json_invalid" for e in error.errors()):
            return problem(400, "body: is not JSON; expected what the OpenAPI document at /openapi.json says")
        first = found[0] if found else {"at": "body", "message": "is not as expected"}
        return problem(422, f"{first['at']}: {first['message']}", errors=found[:20])

    @app.exception_handler(Exception)
    async def on_unforeseen(request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        logger.error("error %s: %s %s: %s: %s", number, request.method, request.url.path, type(error).__name__, error, exc_info=error)
        return problem(500, f"an error that was not foreseen; the service's log has it under {number}")
