"""Runs that nothing disturbed, which several modules compare theirs with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In one process."""
    return _run(tmp_path_factory, "whole")


@pytest.fixture(scope="package")
def two_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On two shards."""
    return _run(tmp_path_factory, "two-shards", "--shards", "2")


@pytest.fixture(scope="package")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On two replicas of two shards."""
    return _run(tmp_path_factory, "grid", "--shards", "2", "--replicas", "2")


def _run(tmp_path_factory: pytest.TempPathFactory, name: str, *topology: str) -> Path:
    from tests.support.ray_runs import finish, start  # which needs Ray

    out = tmp_path_factory.mktemp(name) / "out"
    finish(start(out, *topology))
    return out
