"""Whatever fails while a version is brought into an engine: one line, the former version is served on, and nothing is half published."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.orchestrator.publish.conftest import MODEL, Run, outcomes, publish_to, refused
from tests.support.failing_disk import fail_syncs, files_of_at_most
from tests.support.loopback_engines import LoopbackVllm, serving, write
from tests.support.ports import free_ports

PROMPT = json.loads((MODEL.parent / "edits.json").read_text())[0]["prompt"]
UNTOUCHED = "failed, the former version is served"

Answers = Callable[[], tuple[str, str]]


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackVllm]:
    with serving(LoopbackVllm(MODEL)) as listening:
        yield listening


@pytest.fixture
def vllm(engine: LoopbackVllm) -> LoopbackVllm:
    """One engine at one address for all tests, as if it had just been started."""
    engine.start_anew()
    return engine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of every test is: a publication that was made there once holds for each."""
    return tmp_path_factory.mktemp("place") / "of-the-run"


@pytest.fixture
def run(known_run: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(known_run, place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def published(known_run: Path, place: Path, engine: LoopbackVllm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that place after a first publication."""
    kept = tmp_path_factory.mktemp("published") / "place"
    shutil.copytree(known_run, place / "run")
    assert publish_to(engine, place / "run").code == 0
    assert engine.adapters == {"edited": place / "run.published" / "0001-peft"}
    shutil.move(place, kept)
    return kept


@pytest.fixture
def answer(vllm: LoopbackVllm) -> Answers:
    """Which adapter the engine has under its name, and what it says to who asks for it."""

    def asked() -> tuple[str, str]:
        adapter = vllm.adapters.get("edited")
        return adapter.name if adapter else "", write(vllm.base, adapter, vllm.weights, PROMPT, 8)

    return asked


@pytest.fixture
def live(published: Path, run: Path, vllm: LoopbackVllm, answer: Answers) -> tuple[str, str]:
    """A version is live: the same of it."""
    _, before = answer()
    shutil.rmtree(run.parent)
    shutil.copytree(published, run.parent)
    vllm.adapters["edited"] = run.with_name("run.published") / "0001-peft"
    assert answer()[1] != before
    return answer()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("rank", "LoRA rank 100 is greater than max_lora_rank 64"),
        pytest.param("unknown module", "expected target modules in", marks=pytest.mark.thorough),
        pytest.param("half written", "incomplete metadata, file not fully covered", marks=pytest.mark.thorough),
        pytest.param("no lora", "takes no adapters while it runs; start it with --enable-lora", marks=pytest.mark.thorough),
        ("dies after a load", "the connection broke"),
        pytest.param("slow /v1/load_lora_adapter", "/v1/load_lora_adapter: no answer within 0.5 s", marks=pytest.mark.thorough),
    ],
)
def test_what_fails_when_it_is_tried_out_changes_nothing(
    fault: str, told: str, publish: Run, vllm: LoopbackVllm, run: Path, live: tuple[str, str], answer: Answers
) -> None:
    vllm.faults.add(fault)
    timeout = ["--timeout", 0.5] if fault.startswith("slow") else []
    assert told in refused(publish("--rank", 40, *timeout))
    vllm.released.set()
    assert answer() == live
    assert outcomes(run) == {1: "live", 2: UNTOUCHED}
    if fault != "dies after a load":  # what was tried out is gone
        assert list(vllm.adapters) == ["edited"]


@pytest.mark.parametrize("how", [pytest.param("adapter", marks=pytest.mark.thorough), "weights"])
def test_an_engine_that_dies_between_load_and_verify_is_not_acknowledged(
    how: str, publish: Run, vllm: LoopbackVllm, run: Path, request: pytest.FixtureRequest
) -> None:
    if how == "adapter":
        request.getfixturevalue("live")
    vllm.faults.add("dies in place")
    told = refused(publish("--how", how, "--tolerance", 0.2, "--rollback-on-failure"))
    assert "the connection broke" in told
    assert "and the former version could not be loaded again" in told
    assert list(outcomes(run).values())[-1] == "failed"


@pytest.mark.thorough
def test_a_pause_that_takes_too_long_is_ended(publish: Run, vllm: LoopbackVllm, live: tuple[str, str], answer: Answers) -> None:
    """The engine waits for the requests under way, longer than the client waits for it, and would then be paused for ever."""
    vllm.faults.add("slow /pause?mode=wait")
    assert "/pause?mode=wait: no answer within 0.5 s" in refused(publish("--rank", 40, "--timeout", 0.5))
    vllm.released.set()
    assert not vllm.is_paused
    assert answer() == live


def test_an_engine_that_is_paused_is_one_line_and_no_long_wait(publish: Run, vllm: LoopbackVllm, run: Path) -> None:
    vllm.is_paused = True  # as a publication leaves it that was killed while it swapped
    assert f"answers nobody; let it go on with: curl -X POST http://127.0.0.1:{vllm.port}/resume" in refused(publish())
    assert not run.with_name("run.published").exists()


@pytest.mark.parametrize("how", [pytest.param("adapter", marks=pytest.mark.thorough), "weights"])
def test_a_load_that_fails_in_the_pause_ends_the_pause(
    how: str, publish: Run, vllm: LoopbackVllm, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if how == "adapter":
        request.getfixturevalue("live")
    load = vllm._load
    refuses = lambda name, folder, in_place: vllm._said("rank", NAME=name) if in_place else load(name, folder, in_place=False)  # noqa: E731
    monkeypatch.setattr(vllm, "_load", refuses)
    monkeypatch.setattr(vllm, "_reload", lambda folder: vllm._said("no such weights"))
    assert "Worker failed with error" in refused(publish("--how", how))
    assert not vllm.is_paused


@pytest.mark.thorough
def test_without_the_developer_mode_weights_alone_are_refused(publish: Run, vllm: LoopbackVllm, run: Path, live: tuple[str, str]) -> None:
    vllm.faults.add("no dev mode")
    assert publish("--rank", 40).code == 0
    assert vllm.adapters["edited"].name == "0002-peft"
    vllm.adapters.clear()
    run.with_name("run.published").joinpath("publications.jsonl").unlink()  # as before the first
    assert "takes no weights while it runs; start it with VLLM_SERVER_DEV_MODE=1" in refused(publish("--how", "weights"))
    assert vllm.weights is None


def test_a_wrong_token_is_refused_and_the_right_one_is_nowhere_on_disk(
    publish: Run, vllm: LoopbackVllm, run: Path, live: tuple[str, str], answer: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.token = "a-secret-of-this-test"
    assert "the token was refused (status 401)" in refused(publish("--rank", 40))
    assert answer() == live
    assert outcomes(run) == {1: "live"}
    monkeypatch.setenv("ENGINE_KEY", vllm.token)
    assert publish("--rank", 40, "--token-env", "ENGINE_KEY").code == 0
    assert not [path for path in run.parent.rglob("*") if path.is_file() and vllm.token.encode() in path.read_bytes()]


def test_an_engine_that_is_down_is_one_line_before_anything_is_loaded(ultraedit: Run, run: Path) -> None:
    done = ultraedit("publish", run, "--to", f"vllm://127.0.0.1:{free_ports(1)[0]}")
    assert "nothing listens there" in refused(done)
    assert not run.with_name("run.published").exists()


def test_an_engine_that_does_not_answer_is_given_up_after_the_timeout(publish: Run, run: Path, vllm: LoopbackVllm) -> None:
    vllm.faults.add("slow /version")
    assert "/version: no answer within 0.2 s" in refused(publish("--timeout", 0.2))
    vllm.released.set()
    assert not run.with_name("run.published").exists()


def test_an_engine_with_another_base_is_found_out_before_anybody_is_served(ultraedit: Run, run: Path, tmp_path: Path) -> None:
    other = another_model(tmp_path / "other")
    with serving(LoopbackVllm(other)) as engine:
        done = ultraedit("publish", run, "--to", f"vllm://127.0.0.1:{engine.port}", "--verify", 8)
        assert "tried out beside what is served" in refused(done)
        assert not engine.adapters
    assert outcomes(run) == {1: UNTOUCHED}


def test_a_base_of_other_weights_is_refused_by_its_digest(publish: Run, run: Path, vllm: LoopbackVllm, tmp_path: Path) -> None:
    assert "is not the model that" in refused(publish("--model", another_model(tmp_path / "other")))
    assert vllm.calls == ["/version", "/is_paused"]
    assert not run.with_name("run.published").exists()


def test_an_altered_export_is_not_published_again(publish: Run, run: Path, live: tuple[str, str], answer: Answers) -> None:
    weights = run.with_name("run.published") / "0001-peft" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "was altered or is not whole" in refused(publish())
    assert outcomes(run) == {1: "live"}


@pytest.mark.parametrize("left", [".0002-peft.partial-4711", pytest.param("0002-peft", marks=pytest.mark.thorough)])
def test_what_a_killed_export_left_is_never_loaded(left: str, publish: Run, vllm: LoopbackVllm, run: Path, live: tuple[str, str]) -> None:
    folder = run.with_name("run.published")
    whole = (folder / "0001-peft" / "adapter_model.safetensors").read_bytes()
    (folder / left).mkdir()
    (folder / left / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert publish("--rank", 40).code == 0
    assert vllm.adapters["edited"].name == ("0002-peft" if left.startswith(".") else "0003-peft")
    assert (vllm.adapters["edited"] / "certificate.json").is_file()


def test_a_disk_that_is_full_at_the_export_changes_nothing(publish: Run, run: Path, live: tuple[str, str], answer: Answers) -> None:
    before = sorted(run.with_name("run.published").iterdir())
    with files_of_at_most(20_000):
        assert "could not be written" in refused(publish("--rank", 40))
    assert answer() == live
    assert outcomes(run) == {1: "live"}
    assert sorted(run.with_name("run.published").iterdir()) == before


@pytest.mark.parametrize(("line", "last"), [(1, {1: "live"}), (2, {1: "live", 2: "failed"})], ids=["before the load", "after it"])
def test_a_record_that_cannot_be_written_leaves_the_former_version(
    line: int, last: dict[int, str], publish: Run, run: Path, live: tuple[str, str], answer: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", os.fsync)  # put back at the end
    fail_syncs(line, errno.ENOSPC)
    assert "publications.jsonl: could not be written (No space left on device)" in refused(publish("--rank", 40))
    assert answer() == live
    assert outcomes(run) == last


@pytest.mark.thorough
def test_a_folder_on_a_full_disk_keeps_its_link(ultraedit: Run, run: Path, tmp_path: Path) -> None:
    place, larger = tmp_path / "served", tmp_path / "larger"
    assert ultraedit("publish", run, "--to", f"folder:{place}", "--verify", 8).code == 0
    assert ultraedit("publish", run, "--to", f"folder:{larger}", "--verify", 8, "--rank", 40).code == 0  # it is exported now
    before = sorted(place.iterdir()), os.readlink(place / "edited")
    with files_of_at_most(20_000):
        assert "could not be written" in refused(ultraedit("publish", run, "--to", f"folder:{place}", "--verify", 8, "--rank", 40))
    assert (sorted(place.iterdir()), os.readlink(place / "edited")) == before
    assert outcomes(run)[1] == "live"


def another_model(folder: Path) -> Path:
    """The same architecture, other weights."""
    shutil.copytree(MODEL, folder)
    for file in folder.glob("*.safetensors"):
        dice = torch.Generator().manual_seed(5)
        weights = load_file(file)
        save_file({name: weight + torch.randn(weight.shape, generator=dice) for name, weight in weights.items()}, file, {"format": "pt"})
    return folder
