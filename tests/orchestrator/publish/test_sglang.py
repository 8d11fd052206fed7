"""Publications into SGLang, against answers written from its source: it was not run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.publish.conftest import Run, outcomes, refused
from tests.support.command_line import Outcome
from tests.support.loopback_engines import LoopbackSglang

Call = Callable[..., Outcome]


@pytest.fixture
def publish_there(ultraedit: Run, run: Path, sglang: LoopbackSglang) -> Call:
    def call(*options: object) -> Outcome:
        return ultraedit("publish", run, "--to", f"sglang://127.0.0.1:{sglang.port}", "--verify", 8, "--timeout", 20, *options)

    return call


def test_an_adapter_is_unloaded_and_loaded_and_taken_back(publish_there: Call, ultraedit: Run, sglang: LoopbackSglang, run: Path) -> None:
    folder = run.with_name("run.published")
    done = publish_there()
    assert done.code == 0, done.stderr
    assert "(SGLang 0.5.23)" in done.stdout
    sglang.faults.add("request between")  # the engine loads the former one again by itself, and refuses the new one once
    assert publish_there("--rank", 40).code == 0
    assert sglang.adapters == {"edited": folder / "0002-peft"}
    assert outcomes(run) == {1: "replaced by 2", 2: "live"}
    assert ultraedit("published", run, "--take-back", 2).code == 0
    assert sglang.adapters == {"edited": folder / "0001-peft"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fault", "told", "outcome"),
    [
        ("rank", "with rank 100 is incompatible with the current LoRA memory pool", "failed, the former version is served"),
        ("load fails", "No such file or directory", "failed"),
    ],
)
def test_what_it_refuses_leaves_the_former_adapter(
    fault: str, told: str, outcome: str, publish_there: Call, sglang: LoopbackSglang, run: Path
) -> None:
    assert publish_there().code == 0
    sglang.faults.add(fault)
    assert told in refused(publish_there("--rank", 40))
    assert sglang.adapters == {"edited": run.with_name("run.published") / "0001-peft"}
    assert outcomes(run) == {1: "live", 2: outcome}


def test_weights_are_updated_without_an_end_to_any_request(publish_there: Call, ultraedit: Run, sglang: LoopbackSglang, run: Path) -> None:
    done = publish_there("--how", "weights")
    assert done.code == 0, done.stderr
    assert sglang.weights == run.with_name("run.published") / "0001-checkpoint"
    assert "/pause_generation" not in sglang.calls  # by default it aborts what is under way
    assert ultraedit("published", run, "--take-back", 1).code == 0
    assert sglang.weights.name == "unedited-whole"
