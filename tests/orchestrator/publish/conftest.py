"""A run whose edits can be told from the unedited model by their text, copied for each test, and engines that serve its base."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import Outcome, run_command_line
from tests.support.loopback_engines import LoopbackSglang, LoopbackVllm, serving
from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"

Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def known_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight edits, of which the model then writes most."""
    out = tmp_path_factory.mktemp("known") / "run"
    settings = ["--modules", "model.layers.{1,2}.mlp.{gate,up,down}_proj", "--learning-rate", "1e-2", "--passes", "8", "--edits-per-turn", "8"]
    edits = ["--edits", PARITY / "llama-tiny" / "edits.json", "--limit", "8"]
    done = run_command_line("edit", "--model", MODEL, *edits, *settings, "--no-eval", "--tracking-uri", "none", "--output", out)
    assert done.code == 0, done.stderr
    return out


@pytest.fixture
def run(known_run: Path, tmp_path: Path) -> Path:
    """A copy of it, for what is published is written beside it."""
    shutil.copytree(known_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def vllm() -> Iterator[LoopbackVllm]:
    """A server that answers as vLLM does."""
    with serving(LoopbackVllm(MODEL)) as engine:
        yield engine


@pytest.fixture
def sglang() -> Iterator[LoopbackVllm]:
    """A server that answers as SGLang's source says."""
    with serving(LoopbackSglang(MODEL)) as engine:
        yield engine


@pytest.fixture
def publish(run: Path, vllm: LoopbackVllm) -> Run:
    """``ultraedit publish`` of the run to the server."""

    def call(*options: object) -> Outcome:
        return publish_to(vllm, run, *options)

    return call


def publish_to(vllm: LoopbackVllm, run: Path, *options: object) -> Outcome:
    return run_command_line("publish", run, "--to", f"vllm://127.0.0.1:{vllm.port}", "--verify", 8, "--timeout", 20, *options)


def outcomes(run: Path) -> dict[int, str]:
    """The last word about each publication."""
    lines = (run.with_name("run.published") / "publications.jsonl").read_text().splitlines()
    return {line["number"]: line["outcome"] for line in map(json.loads, lines)}


def refused(done: Outcome) -> str:
    assert done.code == 1
    assert len(done.errors) == 1
    assert "live:" not in done.stdout
    return done.errors[0]
