"""Runs that are rolled back, compared and gone on with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.tiny_runs import CHAT_TEMPLATE, MODEL, arguments, write_records


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, ultraedit: Callable[..., Outcome]) -> Callable[..., Path]:
    """Makes a run of some records with checkpoints at every fourth turn, three of them kept; the same one only once."""
    made: dict[str, Path] = {}

    def make(records: list[dict[str, str]], *more: object) -> Path:
        key = repr((records, more))
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            flags = arguments(write_records(folder / "edits.jsonl", records), folder / "out", "--checkpoint-every", "4", "--keep", "9", *more)
            assert ultraedit(*flags).code == 0
            made[key] = folder / "out"
        return made[key]

    return make


@pytest.fixture
def run(tmp_path: Path, made_once: Callable[..., Path]) -> Callable[..., Path]:
    """Gives the test a run of its own, of some records, as :func:`made_once` makes it."""

    def make(name: str, records: list[dict[str, str]], *more: object) -> Path:
        return shutil.copytree(made_once(records, *more), tmp_path / name)

    return make
