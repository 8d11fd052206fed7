"""How the service begins: what it cannot use is refused before anything is made; an answer leaves at once, on a connection that stays too."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from editing import InputError
from orchestrator.service.serve import listen
from tests.support.command_line import Outcome


def test_answers_are_not_held_back_until_the_client_has_acknowledged_the_one_before() -> None:
    """By Nagle's algorithm, 40 ms an answer; seen at the socket, since time tells nothing on a busy machine."""

    async def accepted(listening: socket.socket) -> int:
        found = asyncio.get_running_loop().create_future()

        def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(look, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.close()
            return int(await found)

    assert asyncio.run(accepted(listen("127.0.0.1", 0)))


def test_a_port_that_is_taken_is_one_line() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="cannot be listened on"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("address", ["mysql://root@localhost/x", "service.db", "postgresql://host:port/x"])
def test_an_address_of_no_database_is_one_line_and_leaves_no_folder(
    address: str, tmp_path: Path, llama_tiny: Path, ultraedit: Callable[..., Outcome]
) -> None:
    outcome = ultraedit("serve", "--model", llama_tiny / "model", "--state", tmp_path / "state", "--database", address)
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: database: expected ")
    assert outcome.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
