"""What tests share: the tiny models, the command line in process, a finished run, and a way to write edit files."""

import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ |= {"RAY_worker_niceness": "0"}  # by default 15: on a busy machine its workers would hardly run, and their masters wait
os.environ["OMP_NUM_THREADS"] = "1"  # before the first import of torch, for the processes that tests start too: threads wait by spinning

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.command_line import MODULES, FinishedRun, Outcome, conclude_cheaply, run_command_line
from tests.support.paths import PARITY

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of transformers: no test asks the network
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.register_profile(
    "tests", settings.get_profile("search"), derandomize=True, database=None
)  # the same cases every time; make fuzz looks for others
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))
torch.set_num_threads(1)  # tiny models; and bits are compared between processes, which another number of threads changes


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids that say what a case is: of numbers what they count, of options, records and bytes how they read."""
    if isinstance(val, int | float) and not isinstance(val, bool):
        return f"{argname}={val}"
    if isinstance(val, Mapping):
        words = " ".join(f"{key}={value}" for key, value in val.items())
    elif isinstance(val, list | tuple):
        words = " ".join(map(str, val))
    elif isinstance(val, bytes | BaseException | Path):
        words = repr(val)
    else:
        return val.name if isinstance(getattr(val, "name", None), str) else None
    return words[:60] or "nothing"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests may take an hour. Where several processes share the tests, begin with those that take long: none of them is left for the end."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(3600))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which a single process does without
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from tests.support.side_by_side import SideBySide

    return SideBySide(config, log)


@pytest.fixture(scope="session", autouse=True)
def cheap_conclusions() -> None:
    """Of runs in this process. Plots and the held-out text have tests with their own settings."""
    conclude_cheaply()


@pytest.fixture(scope="session")
def llama_tiny() -> Path:
    """Folder with ``model/``, ``edits.json`` (60 edits), ``run.json`` and ``expected.safetensors``."""
    return PARITY / "llama-tiny"


@pytest.fixture(scope="session")
def gptj_tiny() -> Path:
    """As :func:`llama_tiny`, with learned positions and another layout."""
    return PARITY / "gptj-tiny"


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Iterable[Any]], Path]:
    """Writes a file of JSON lines; a record given as bytes is written as it is."""

    def write(path: Path, records: Iterable[Any]) -> Path:
        lines = (record if isinstance(record, bytes) else json.dumps(record, ensure_ascii=False).encode() for record in records)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def ultraedit() -> Callable[..., Outcome]:
    """The command line, in this process."""
    return run_command_line


@pytest.fixture(scope="session")
def edit_flags(llama_tiny: Path) -> list[str]:
    """Flags of ``ultraedit edit`` for the tiny Llama; ``--edits`` and ``--output`` are left to the test."""
    settings = ["--modules", MODULES, "--learning-rate", "1e-3", "--edits-per-turn", "20", "--tracking-uri", "none"]
    return ["edit", "--model", str(llama_tiny / "model"), *settings]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, llama_tiny: Path, edit_flags: list[str]) -> FinishedRun:
    """One run with everything on. Read it; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    uri = f"sqlite:///{folder}/mlflow.db"
    flags = [
        *edit_flags,
        "--edits",
        llama_tiny / "edits.json",
        "--output",
        folder / "out",
        "--tracking-uri",
        uri,
        "--generate",
        "5",
        "--watch-every",
        "1",
    ]
    return FinishedRun(folder / "out", uri, run_command_line(*flags))
