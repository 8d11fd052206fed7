"""The same on PostgreSQL: two services on one database and one state folder, a writer that takes over, a server that restarts."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.service import audit, edits
from orchestrator.service.database import Database, Unavailable
from orchestrator.service.edits import Draft
from tests.support import postgres
from tests.support.live_checks import check
from tests.support.live_service import LiveService, fact
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.long, pytest.mark.skipif(not postgres.is_installed(), reason="needs Debian's package postgresql")]


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres.running() as server:
        yield server


def test_a_restarted_server_is_an_error_that_passes(server: Postgres) -> None:
    database = Database(server.url)
    draft = Draft(request={"prompt": "a", "target": "b"}, prompt="a", target="b")
    edits.add_once(database, [draft], actor="eve", token="t", key="1")
    server.stop()
    with pytest.raises(Unavailable):
        edits.add_once(database, [draft], actor="eve", token="t", key="2")
    server.start()
    edits.add_once(database, [draft], actor="eve", token="t", key="2")
    with database.reading() as connection:
        assert audit.verify(connection).edits == 2
    database.close()


@pytest.mark.thorough
def test_a_second_service_takes_over_and_nothing_is_lost_when_the_server_restarts(server: Postgres, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    shared = {"database": server.url, "state": str(tmp_path / "state")}
    first = LiveService(tmp_path, **shared)
    first.wait(lambda client: client.status()["writer"])  # or the second's writer may be there before the first's
    second = LiveService(tmp_path / "second", token=first.token, **shared)
    acknowledged: set[str] = set()
    try:
        with second.client() as client:  # the front end of one, the writer of the other
            acknowledged |= {edit.id for edit in client.add_all([fact(i) for i in range(4)])}
        second.settled()
        epoch = second.wait(lambda client: client.status()["writer"]["epoch"])
        writer = first.writer()
        assert writer is not None
        first.kill()
        if writer.is_running():
            writer.kill()
        with second.client() as client:
            acknowledged |= {edit.id for edit in client.add_all([fact(i) for i in range(4, 8)])}
        second.settled()
        assert second.wait(lambda client: client.status()["writer"]["epoch"]) > epoch
        server.stop()
        time.sleep(1)
        server.start()
        with second.client() as client:
            acknowledged |= {edit.id for edit in client.add_all([fact(i) for i in range(8, 12)])}
        assert second.settled() == {"live": 12}
    finally:
        second.stop()
        if first.process.poll() is None:
            first.stop()
    check(tmp_path / "serve.yaml", tmp_path / "replay", acknowledged, server.url)
