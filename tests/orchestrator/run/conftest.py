"""Runs that are rolled back, compared and gone on with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.tiny_runs import arguments, write_records


@pytest.fixture
def run(tmp_path: Path, ultraedit: Callable[..., Outcome]) -> Callable[..., Path]:
    """Makes a run of some records with checkpoints at every fourth turn, three of them kept."""

    def make(name: str, records: list[dict[str, str]], *more: object) -> Path:
        out = tmp_path / name
        flags = arguments(write_records(tmp_path / f"{name}.jsonl", records), out, "--checkpoint-every", "4", "--keep", "9", *more)
        assert ultraedit(*flags).code == 0
        return out

    return make
