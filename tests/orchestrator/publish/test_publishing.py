"""Publications: live only if the engine says what the edited model says; whatever fails, the former version is served."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.publish.conftest import MODEL, outcomes, refused
from tests.support.command_line import Outcome
from tests.support.loopback_engines import LoopbackLlamaCpp, LoopbackVllm, serving, write

Run = Callable[..., Outcome]


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
    assert calls == ["/version", "/is_paused", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    prompt = json.loads((MODEL.parent / "edits.json").read_text())[0]["prompt"]
    unedited = write(MODEL, None, None, prompt, 8)
    assert write(MODEL, None, vllm.weights, prompt, 8) != unedited
    assert "the edits would be there twice" in refused(publish())
    assert ultraedit("published", run, "--take-back", 1).code == 0
    assert vllm.weights is not None
    assert vllm.weights.name == "unedited"
    assert write(MODEL, None, vllm.weights, prompt, 8) == unedited


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


@pytest.mark.thorough
def test_with_rollback_the_weights_before_are_loaded_again(publish: Run, vllm: LoopbackVllm, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload, loads = vllm._reload, []

    def first_is_lost(folder: Path) -> tuple[int, object]:
        loads.append(folder.name)
        return vllm._said("reloaded") if len(loads) == 1 else reload(folder)

    monkeypatch.setattr(vllm, "_reload", first_is_lost)
    refused(publish("--how", "weights", "--rollback-on-failure"))
    assert loads == ["0001-checkpoint", "unedited"]
    assert outcomes(run) == {1: "failed, the former version is served"}


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
