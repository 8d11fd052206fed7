"""One service that several tests ask, over the tiny model; each test brings facts of its own."""

from collections.abc import Iterator
from itertools import count

import pytest

from orchestrator.service.client import Client, Edit
from tests.support.live_service import LiveService, fact, write_model

_numbers = count()


@pytest.fixture(scope="package")
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


@pytest.fixture
def facts() -> Iterator[Edit]:
    """Facts that no other test has asked for."""
    return (fact(next(_numbers)) for _ in count())
