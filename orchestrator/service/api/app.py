"""The application: routes, guards and the answer to every error, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy import select

from editing.version import __version__
from orchestrator.service import versions
from orchestrator.service.api import admin_routes, edit_routes, openai_routes, problems, version_routes
from orchestrator.service.api.context import Context, Here, Reader
from orchestrator.service.api.guard import Guard
from orchestrator.service.api.limits import RateLimit
from orchestrator.service.config import ServeConfig
from orchestrator.service.console import routes
from orchestrator.service.database import Database, Unavailable
from orchestrator.service.folders import StateFolder
from orchestrator.service.rows import first_row
from orchestrator.service.speaking import Speaking
from orchestrator.service.status import metrics_of
from orchestrator.service.tables import lease

_ABOUT = """Facts into a language model, proved before they are live, and taken out again.

Every call needs `Authorization: Bearer TOKEN`. Errors are problem details (RFC 9457). Lists come as `{"items": [...], "next": ...}`.
"""
_STRANGERS_RATE, _STRANGERS_BURST = 5.0, 50


def make_app(config: ServeConfig, database: Database) -> FastAPI:
    """The application of one front end."""
    speaking = _speaking(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if speaking is not None:
            await speaking.close()

    app = FastAPI(
        title="UltraEdit live editing",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_RESPONSES,
    )
    limits = RateLimit(config.rate, config.burst), RateLimit(_STRANGERS_RATE, _STRANGERS_BURST)
    app.state.context = Context(config, database, StateFolder(config.state), speaking, *limits)
    problems.install(app, routes.problem_page)
    for module in (edit_routes, version_routes, openai_routes, admin_routes):
        app.include_router(module.router)
    routes.install(app)
    _add_health(app)
    hosts = {config.host, "127.0.0.1", "localhost", "[::1]", *(host.lower() for host in config.allowed_hosts)}
    app.add_middleware(Guard, hosts=hosts, max_body=config.max_body)
    _secure(app)
    return app


_PROBLEM: dict[str, Any] = {
    "description": "A problem",
    "content": {
        problems.MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                },
            }
        }
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {**_PROBLEM, "description": told}
    for code, told in {
        400: "Not JSON",
        401: "No token",
        403: "Not this role",
        404: "Not found",
        409: "Not in this state",
        413: "Too long",
        415: "Not JSON by its type",
        422: "Not as expected",
        429: "Too often",
        501: "Turned off",
        503: "Not now",
        507: "Disk full",
    }.items()
}


def _speaking(config: ServeConfig) -> Speaking | None:
    """Who answers questions to the model: nobody, where the model is not held whole by one process."""
    whole = int(config.run.get("shards", 1) or 1) == 1 and not config.run.get("device_memory")
    if not config.chat or not whole:
        return None
    return Speaking({"model": config.model, "device": config.run.get("device", "auto"), "dtype": config.run.get("dtype", "auto")})


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", tags=["health"], summary="Whether this process answers", response_model=dict[str, str])
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], summary="Whether edits can be taken in", response_model=dict[str, Any], responses={503: _PROBLEM})
    def ready(context: Here) -> Response:
        """Edits are taken in whenever the database answers; `writer` says whether they are written."""
        try:
            with context.database.reading() as connection:
                held, first = first_row(connection, select(lease)), versions.head(connection)
        except Unavailable as error:
            return JSONResponse({"status": "unavailable", "detail": str(error)}, 503)
        writer = "none" if held is None or not held["owner"] else "loading" if first is None else "ready"
        return JSONResponse({"status": "ok", "writer": writer})

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=PlainTextResponse)
    def metrics(caller: Reader, context: Here) -> Response:
        with context.database.reading() as connection:
            return PlainTextResponse(metrics_of(connection, context.config.served_name), media_type="text/plain; version=0.0.4; charset=utf-8")


def _secure(app: FastAPI) -> None:
    """Say in the OpenAPI document that calls need a token."""
    plain = app.openapi

    def with_token() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, calls in document["paths"].items():
            for call in calls.values():
                call["security"] = [] if path in ("/healthz", "/readyz") else [{"token": []}]
        return document

    app.openapi = with_token  # type: ignore[method-assign]
