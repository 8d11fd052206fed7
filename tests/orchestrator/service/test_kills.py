"""Nothing that was acknowledged is lost or written twice, whichever process is killed whenever."""

import random
import threading
import time
from pathlib import Path

import pytest

from orchestrator.service.client import Client, Refused, StoredEdit, Unreachable
from tests.support.live_checks import check
from tests.support.live_service import LiveService, fact

pytestmark = pytest.mark.long


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


def run_killed(folder: Path, kills: int, seed: int, most: int, pause: float) -> None:
    service = LiveService(folder, rate=1e6, burst=10**6)
    load, dice = Load(service, batch=3, most=most, pause=pause / 10), random.Random(seed)
    try:
        service.wait(lambda client: client.status()["version"] is not None)
        for number in range(kills):
            time.sleep(dice.uniform(0, pause))
            kill_one(service, ("writer", "api", "both")[number % 3])
            if number % 4 == 3:
                service.wait(lambda client: client.status()["queue"] == 0 or client.status()["writer"]["doing"] != "", 60)
        acknowledged = load.stop()
        service.settled(300)
    finally:
        load.stop()
        service.stop()
    assert len(acknowledged) >= 6
    check(folder / "serve.yaml", folder / "replay", acknowledged)


def kill_one(service: LiveService, which: str) -> None:
    """SIGKILL to the writer, to the process of the API, or to both; the API is started again."""
    writer = service.writer()
    if which in ("writer", "both") and writer is not None:
        writer.kill()
    if which in ("api", "both"):
        service.kill()
        service.start()


def test_what_was_acknowledged_is_there_once_after_three_kills(tmp_path: Path) -> None:
    run_killed(tmp_path, kills=3, seed=1, most=18, pause=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_is_there_once_after_fifty_kills(tmp_path: Path) -> None:
    run_killed(tmp_path, kills=50, seed=2, most=450, pause=14)
