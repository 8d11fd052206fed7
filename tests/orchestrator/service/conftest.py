"""One service for the tests of a file, over the tiny model; each test brings facts of its own.

Not one for all files: a model of this size holds so few facts that what a test sees would depend on which files ran before it.
"""

from collections.abc import Iterator
from itertools import count

import pytest

from orchestrator.service.client import Client, Edit
from tests.support.live_service import LiveService, fact, write_model


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("service")
    running = LiveService(folder, write_model(folder / "model"), webhooks_to_private=True, max_body=200_000)
    try:
        running.settled()
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(service: LiveService) -> Iterator[Client]:
    with service.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def facts() -> Iterator[Edit]:
    """Facts that no other test of the file has asked for."""
    return map(fact, count())
