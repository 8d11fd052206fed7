"""``ultraedit serve``: the API in this process, the writer in another, which is started again when it dies."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from sqlalchemy import select

from editing.errors import InputError
from orchestrator.cli.console import say
from orchestrator.service import tokens
from orchestrator.service.api.app import make_app
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Database, check_address
from orchestrator.service.folders import StateFolder
from orchestrator.service.tables import tokens as token_table
from orchestrator.service.writer_process import WriterProcess

logger = logging.getLogger("ultraedit")

TOKEN_VARIABLE = "ULTRAEDIT_SERVE_TOKEN"
"""Where the first token may be given, so that several front ends know the same."""

_DRAIN_SECONDS = 10
_SWITCH_SECONDS = 5e-4
"""How long a thread may keep Python to itself while others wait: reads go on while many edits are taken in."""


def serve(config: ServeConfig) -> int:
    """Run the service until it is interrupted. Returns the exit code.

    Raises:
        InputError: The port cannot be had, or the database's address is none.
        UltraEditError: The database does not answer.
    """
    check_address(config.database_url)
    StateFolder(config.state)
    database = Database(config.database_url)
    if config.role == "writer":
        return _write_only(config)
    listening = listen(config.host, config.port)
    _first_token(database)
    writer = WriterProcess(config) if config.role == "all" else None
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = _Server(uvicorn.Config(make_app(config, database), **_SETTINGS))
    if writer is not None:
        writer.start(on_give_up=server.give_up)
    address = f"http://{_shown(config.host)}:{listening.getsockname()[1]}"
    say(f"listening: {address}")
    say(f"console: {address}/")
    try:
        server.run(sockets=[listening])
    finally:
        if writer is not None:
            writer.stop()
        database.close()
    return server.code


_SETTINGS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": _DRAIN_SECONDS,
    "timeout_keep_alive": 30,
    "h11_max_incomplete_event_size": 65536,
    "ws": "none",
}


class _Server(uvicorn.Server):
    """Ends with an error where there is nothing to serve."""

    code = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the service well; uvicorn would raise them again once it has ended."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def give_up(self) -> None:
        self.code, self.should_exit = 1, True


def _write_only(config: ServeConfig) -> int:
    stop, code = threading.Event(), [0]

    def give_up() -> None:
        code[0] = 1
        stop.set()

    writer = WriterProcess(config)
    writer.start(on_give_up=give_up)
    try:
        stop.wait()
    finally:
        writer.stop()
    return code[0]


def _first_token(database: Database) -> None:
    """Make a token for an admin where there is none at all, and print it once."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None and len(given) < 20:
        raise InputError(f"{TOKEN_VARIABLE}: expected a token of at least 20 characters")
    with database.changing("service", "make token", "admin") as work:
        if work.connection.execute(select(token_table.c.id).limit(1)).first() is not None:
            return
        token = tokens.make(work, "admin", "admin", secret=given)
    if given is None:
        say(f"token: {token}")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: The port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named, for asyncio turns off Nagle's algorithm for it alone: else each answer on a connection that stays waits 40 ms for the client's ACK
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError(f"port: {host}:{port} cannot be listened on ({error.strerror}); give another --port, or 0 for a free one") from None
    listening.listen(1024)
    return listening


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
