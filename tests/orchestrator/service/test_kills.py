"""Nothing that was acknowledged is lost or written twice, whichever process is killed whenever."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service import versions
from orchestrator.service.client import Client, Refused, StoredEdit, Unreachable
from orchestrator.service.database import Database, sqlite_url
from tests.support import postgres
from tests.support.live_checks import check
from tests.support.live_service import RUN, LiveService, fact
from tests.support.postgres import Postgres

pytestmark = pytest.mark.long

ON_SQLITE = ("writer", "api", "both")
ON_POSTGRESQL = ("connections", "shard", "writer", "connections", "api", "shard")


class Load:
    """Posts batches until it is stopped, each again under its key until it is acknowledged.

    Args:
        service: The service, which comes and goes.
    """

    def __init__(self, service: LiveService, batch: int, most: int, pause: float) -> None:
        self._service, self._batch, self._most, self._pause = service, batch, most, pause
        self.acknowledged: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> set[str]:
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.acknowledged

    def _work(self) -> None:
        number = 0
        while not self._stop.is_set():
            if number * self._batch < self._most:
                ids = {edit.id for edit in self._posted(number)}
                assert not ids & self.acknowledged
                self.acknowledged |= ids
                number += 1
            self._stop.wait(self._pause)

    def _posted(self, number: int) -> list[StoredEdit]:
        edits = [fact(number * self._batch + i, source=f"batch {number}") for i in range(self._batch)]
        while True:
            try:
                with Client(self._service.address, self._service.token, timeout=10) as client:
                    return client.add_all(edits, key=f"batch-{number}")
            except Unreachable:
                time.sleep(0.1)
            except Refused as error:
                if error.status != 503:
                    raise
                time.sleep(0.1)


def run_killed(
    folder: Path, kills: int, seed: int, most: int, pause: float, which: Sequence[str] = ON_SQLITE, server: Postgres | None = None
) -> None:
    """Kill what is named in ``which``, in turn and at random moments, while edits come in; then compare everything.

    Args:
        folder: Where the service lives.
        kills: How often.
        seed: Of the moments.
        most: Edits that are posted at most.
        pause: The longest time between two kills, in seconds.
        which: What is killed; a ``shard`` only on two shards.
        server: The database, where it is not SQLite.
    """
    settings = {"database": server.url} if server is not None else {}
    run = {**RUN, "shards": 2} if "shard" in which else RUN
    service = LiveService(folder, rate=1e6, burst=10**6, run=run, **settings)
    load, dice = Load(service, batch=3, most=most, pause=pause / 10), random.Random(seed)
    try:
        service.wait(lambda client: client.status()["version"] is not None)
        for number in range(kills):
            if number % 2:  # in the middle of a turn; else at any moment, often while it starts
                service.wait(lambda client: client.status()["writer"]["doing"].startswith("writing") or not client.status()["queue"], 240)
            time.sleep(dice.uniform(0, 1 if number % 2 else pause))
            kill_one(service, which[number % len(which)], server)
            if number % 4 == 3:
                service.wait(lambda client: client.status()["queue"] == 0 or client.status()["writer"]["doing"] != "", 60)
        acknowledged = load.stop()
        service.settled(900)
    finally:
        load.stop()
        service.stop()
    assert len(acknowledged) >= 6
    check(folder / "serve.yaml", folder / "replay", acknowledged, settings.get("database", ""))


def kill_one(service: LiveService, which: str, server: Postgres | None) -> None:
    """SIGKILL to the writer, the API's process (which is started again), both or a shard; or the end of all connections to the database."""
    if which == "shard":
        service.wait(lambda _: service.shards())[0].kill()
    if which == "connections":
        assert server is not None
        server.cut()
    writer = service.writer()
    if which in ("writer", "both") and writer is not None:
        writer.kill()
    if which in ("api", "both"):
        service.kill()
        service.start()


@pytest.mark.thorough
def test_what_was_acknowledged_is_there_once_after_three_kills(tmp_path: Path) -> None:
    run_killed(tmp_path, kills=3, seed=1, most=18, pause=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_is_there_once_after_fifty_kills(tmp_path: Path) -> None:
    run_killed(tmp_path, kills=50, seed=2, most=450, pause=14)


@pytest.mark.thorough
def test_an_edit_that_kills_whoever_writes_it_is_set_aside_and_the_others_go_live(tmp_path: Path) -> None:
    service, deaths = LiveService(tmp_path, turn_edits=2), list[object]()
    try:
        service.wait(lambda client: client.status()["version"] is not None)
        with service.client() as client:
            good, deadly = client.add_all([fact(0), fact(1)])

        def kill_or_look(client: Client) -> StoredEdit | None:
            begun = turn_begun(service)
            if deadly.id in begun["edits"] and begun not in deaths[-1:]:  # not what the last one had begun
                kill_one(service, "writer", None)
                deaths.append(begun)
            found = client.edit(deadly.id)
            return found if found.state in ("quarantined", "live") else None

        found = service.wait(kill_or_look, 240)
        assert (found.state, found.reason) == ("quarantined", "2 writers in a row died while they wrote it; their logs may say why")
        assert service.settled() == {"live": 1, "quarantined": 1}
    finally:
        service.stop()
    both = [good.id, deadly.id]
    assert deaths == [{"edits": edits, "deaths": n} for edits in (both, [deadly.id]) for n in (1, 2)]
    check(tmp_path / "serve.yaml", tmp_path / "replay", set(both))


def turn_begun(service: LiveService) -> dict[str, Any]:
    """The edits that a writer has begun with, and how many began with the same."""
    database = Database(sqlite_url(service.state / "service.db"))
    try:
        with database.reading() as connection:
            return versions.setting(connection, "turn_begun") or {"edits": []}
    finally:
        database.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not postgres.is_installed(), reason="needs Debian's package postgresql")
@pytest.mark.parametrize("kills", [3, 24])
def test_what_was_acknowledged_is_there_once_after_kills_of_shards_and_connections(kills: int, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with Postgres.running() as server:
        run_killed(tmp_path, kills=kills, seed=3, most=9 * kills, pause=10, which=ON_POSTGRESQL, server=server)
