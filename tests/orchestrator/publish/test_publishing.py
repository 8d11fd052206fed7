"""Publications: live only if the engine says what the edited model says; whatever fails, the former version is served."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.publish.conftest import MODEL
from tests.support.command_line import Outcome
from tests.support.loopback_engines import LoopbackLlamaCpp, LoopbackVllm, serving, write
from tests.support.ports import free_ports

Run = Callable[..., Outcome]


@pytest.fixture
def publish(ultraedit: Run, run: Path, vllm: LoopbackVllm) -> Run:
    """``ultraedit publish`` of the run to the server."""

    def call(*options: object) -> Outcome:
        return ultraedit("publish", run, "--to", f"vllm://127.0.0.1:{vllm.port}", "--verify", 8, "--timeout", 20, *options)

    return call


def outcomes(run: Path) -> dict[int, str]:
    """The last word about each publication."""
    lines = (run.with_name("run.published") / "publications.jsonl").read_text().splitlines()
    return {line["number"]: line["outcome"] for line in map(json.loads, lines)}


def refused(done: Outcome) -> str:
    assert done.code == 1
    assert len(done.errors) == 1
    assert "live:" not in done.stdout
    return done.errors[0]


def test_an_adapter_is_live_once_the_engine_answers_as_the_edited_model(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    done = publish()
    assert done.code == 0, done.stderr
    assert "live: publication 1, as edited, 8 edits" in done.stdout
    assert vllm.adapters == {"edited": run.with_name("run.published") / "0001-peft"}  # what was tried out beside it is gone
    first = json.loads((run.with_name("run.published") / "publications.jsonl").read_text().splitlines()[-1])
    telling = first["verdict"]["tells the edited model from the unedited"]
    assert telling["asked"] == telling["hold"] >= 3
    assert first["engine"] == "vLLM 0.32.0"


def test_another_version_takes_the_place_and_each_can_be_taken_back(publish: Run, ultraedit: Run, vllm: LoopbackVllm, run: Path) -> None:
    assert publish().code == 0
    assert publish("--rank", 40).code == 0
    folder = run.with_name("run.published")
    assert vllm.adapters == {"edited": folder / "0002-peft"}  # another content, another path
    assert outcomes(run) == {1: "replaced by 2", 2: "live"}
    assert "take-back: publication 1 is not served" in refused(ultraedit("published", run, "--take-back", 1))
    assert ultraedit("published", run, "--take-back", 2).code == 0
    assert vllm.adapters == {"edited": folder / "0001-peft"}
    assert outcomes(run) == {1: "live", 2: "taken back"}
    done = ultraedit("published", run, "--take-back", 1)
    assert done.code == 0, done.stderr
    assert not vllm.adapters
    assert "taken back" in ultraedit("published", run).stdout


def test_weights_are_loaded_in_a_pause_and_taken_back_to_the_unedited_ones(publish: Run, ultraedit: Run, vllm: LoopbackVllm, run: Path) -> None:
    done = publish("--how", "weights")
    assert done.code == 0, done.stderr
    assert not vllm.is_paused
    calls = [call for call in vllm.calls if not call.startswith("/v1")]
    assert calls == ["/version", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    prompt = json.loads((MODEL.parent / "edits.json").read_text())[0]["prompt"]
    unedited = write(MODEL, None, None, prompt, 8)
    assert write(MODEL, None, vllm.weights, prompt, 8) != unedited
    assert "the edits would be there twice" in refused(publish())
    assert ultraedit("published", run, "--take-back", 1).code == 0
    assert vllm.weights is not None
    assert vllm.weights.name == "unedited"
    assert write(MODEL, None, vllm.weights, prompt, 8) == unedited


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("rank", "LoRA rank 100 is greater than max_lora_rank 64"),
        ("no lora", "takes no adapters while it runs; start it with --enable-lora"),
    ],
)
def test_what_the_engine_refuses_changes_nothing(fault: str, told: str, publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    assert publish().code == 0
    served = dict(vllm.adapters)
    vllm.faults.add(fault)
    assert told in refused(publish("--rank", 40))
    assert vllm.adapters == served
    assert outcomes(run) == {1: "live", 2: "failed, the former version is served"}


def test_a_version_that_answers_otherwise_is_never_served(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    assert publish().code == 0
    served = dict(vllm.adapters)
    assert "tried out beside what is served" in refused(publish("--rank", 1))
    assert vllm.adapters == served
    assert outcomes(run) == {1: "live", 2: "failed, the former version is served"}


def test_an_engine_that_says_done_and_serves_the_old_one_is_found_out(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    vllm.faults.add("ignores loads")
    error = refused(publish("--how", "weights"))
    assert "0 of the" in error
    assert outcomes(run) == {1: "failed"}


def test_with_rollback_the_weights_before_are_loaded_again(publish: Run, vllm: LoopbackVllm, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload, loads = vllm._reload, []

    def first_is_lost(folder: Path) -> tuple[int, object]:
        loads.append(folder.name)
        return vllm._said("reloaded") if len(loads) == 1 else reload(folder)

    monkeypatch.setattr(vllm, "_reload", first_is_lost)
    refused(publish("--how", "weights", "--rollback-on-failure"))
    assert loads == ["0001-checkpoint", "unedited"]
    assert outcomes(run) == {1: "failed, the former version is served"}


def test_an_engine_that_dies_after_the_load_is_not_acknowledged(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    vllm.faults.add("dies after a load")
    assert "the connection broke" in refused(publish("--rollback-on-failure"))
    assert outcomes(run) == {1: "failed, the former version is served"}  # it was only tried out


def test_a_wrong_token_is_refused_and_the_right_one_is_nowhere_on_disk(
    publish: Run, vllm: LoopbackVllm, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.token = "a-secret-of-this-test"
    assert "the token was refused (status 401)" in refused(publish())
    monkeypatch.setenv("ENGINE_KEY", vllm.token)
    assert publish("--token-env", "ENGINE_KEY").code == 0
    assert not [path for path in run.parent.rglob("*") if path.is_file() and vllm.token.encode() in path.read_bytes()]


def test_an_engine_that_is_down_is_one_line_before_anything_is_loaded(ultraedit: Run, run: Path) -> None:
    done = ultraedit("publish", run, "--to", f"vllm://127.0.0.1:{free_ports(1)[0]}")
    assert "nothing listens there" in refused(done)
    assert not run.with_name("run.published").exists()


def test_an_engine_that_does_not_answer_is_given_up_after_the_timeout(ultraedit: Run, run: Path, vllm: LoopbackVllm) -> None:
    held = threading.Event()
    vllm.answer = lambda path, body: held.wait(5) and (200, {})  # type: ignore[assignment, method-assign, return-value]
    done = ultraedit("publish", run, "--to", f"vllm://127.0.0.1:{vllm.port}", "--timeout", 0.2)
    held.set()
    assert "no answer within 0.2 s" in refused(done)


def test_an_altered_export_is_not_published_again(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    assert publish().code == 0
    weights = run.with_name("run.published") / "0001-peft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "was altered or is not whole" in refused(publish())
    assert outcomes(run) == {1: "live"}


@pytest.mark.parametrize("to", ["vllm://localhost", "http://127.0.0.1:1", "vllm://h:99999", "folder:", "vllm://user:word@h:1"])
def test_an_address_that_is_none_is_one_line(to: str, ultraedit: Run, run: Path) -> None:
    assert "to: expected vllm://HOST:PORT" in refused(ultraedit("publish", run, "--to", to))


def test_llama_cpp_is_told_how_to_start_and_then_switches_its_adapter(ultraedit: Run, run: Path, tmp_path: Path) -> None:
    folder = run.with_name("run.published") / "0001-gguf-lora"
    assert ultraedit("export", run, "--as", "peft", "--measure", 0, "--output", tmp_path / "same").code == 0
    with serving(LoopbackLlamaCpp(MODEL, tmp_path / "same", tmp_path / "another.gguf")) as server:
        address = f"llamacpp://127.0.0.1:{server.port}"
        assert f"start llama-server with: --lora-scaled {folder}/adapter.gguf:0" in refused(ultraedit("publish", run, "--to", address))
        assert server.scale == 0.0
        server.path = folder / "adapter.gguf"
        done = ultraedit("publish", run, "--to", address, "--verify", 8)
        assert done.code == 0, done.stderr
        assert server.scale == 1.0
        assert ultraedit("published", run, "--take-back", 1).code == 0
        assert server.scale == 0.0
        assert "how: " in refused(ultraedit("publish", run, "--to", address, "--how", "weights"))


@pytest.mark.parametrize(("how", "link"), [("adapter", "edited"), ("weights", "weights")])
def test_a_folder_gets_a_copy_and_a_link_that_is_changed_in_one_step(how: str, link: str, ultraedit: Run, run: Path, tmp_path: Path) -> None:
    place = tmp_path / "served"
    assert ultraedit("publish", run, "--to", f"folder:{place}", "--how", how, "--verify", 8).code == 0
    assert (place / link).is_symlink()
    assert (place / link / "certificate.json").is_file()
    assert ultraedit("published", run, "--take-back", 1).code == 0
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
