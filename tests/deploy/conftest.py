"""One cluster for all tests that need one: it takes ten seconds to start."""

from collections.abc import Iterator

import pytest

from tests.support.loopback_cluster import LoopbackCluster, loopback_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[LoopbackCluster]:
    with loopback_cluster("0123456789abcdef" * 4) as running:
        yield running
    assert running.processes_of() == []
