"""What tests share: the tiny models, the command line in process, a finished run, and a way to write edit files."""

import io
import json
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of transformers: no test asks the network
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
torch.set_num_threads(1)  # tiny models; and bits are compared between processes, which another number of threads changes

PARITY = Path(__file__).parent / "data" / "parity"
MODULES = "model.layers.{1,2}.mlp.{gate,up}_proj"


@dataclass(frozen=True)
class Outcome:
    """What one call of ``ultraedit`` gave."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines that say why a run stopped."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


@dataclass(frozen=True)
class FinishedRun:
    """A complete run of the tiny Llama, tracked in a database of its own."""

    path: Path
    tracking_uri: str
    outcome: Outcome


def run_command_line(*arguments: object) -> Outcome:
    from orchestrator.cli.main import main

    logger = logging.getLogger("ultraedit")
    before = logger.handlers, logger.propagate
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main([str(a) for a in arguments])
    finally:
        logger.handlers, logger.propagate = before  # other tests listen to it in their own way
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


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
